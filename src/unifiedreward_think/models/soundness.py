"""Whether a model folder is sound: its files are whole, and its weights those of the model, all of them, and finite.

    must_be_readable(folder)                            # milliseconds: JSON, and the headers of the weights
    network = load_complete(folder, device_map="meta")  # a second and no memory: every weight, in its shape
    must_be_finite(network.named_parameters(), folder)

transformers itself fills weights that are missing with random numbers, and passes over a generation_config.json that is
damaged; it says so in a warning at most.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.errors import InputError
from unifiedreward_think.terminal import note

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

AGAIN = "download or save it again"
POINTER = b"version https://git-lfs"  # how a file starts that Git LFS has not fetched
INDEX = "model.safetensors.index.json"
# What loading reads -> a key without which it is another file, if there is such a key.
SETTINGS = {
    "config.json": "",
    "adapter_config.json": "",
    "generation_config.json": "",
    INDEX: "weight_map",
    "processor_config.json": "",
    "preprocessor_config.json": "",
    "video_preprocessor_config.json": "",
    "tokenizer_config.json": "tokenizer_class",
    "tokenizer.json": "model",
    "vocab.json": "",
    "added_tokens.json": "",
    "special_tokens_map.json": "",
}
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


class BrokenModelError(InputError):
    """A model that is damaged or incomplete; the message names the file or the weights, and the fix."""


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Let a library read a folder of others; whatever it stumbles over there becomes one line.

    Raises:
        BrokenModelError: names the folder and what the library said. What it raises depends on the damage, and
            tokenizers raises nothing but Exception.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        told = str(error).strip().partition("\n")[0]
        reason = f"{type(error).__name__}: {told}" if told else type(error).__name__
        fix = (
            "install what it needs, or take a model that does not need it" if isinstance(error, ImportError) else AGAIN
        )
        raise BrokenModelError(f"{path}: {what} cannot be loaded ({reason}); {fix}") from error


def must_be_readable(path: str | Path) -> None:
    """Require that the files of a local folder are what their names say; a Hub name's are compared with hashes anyway.

    Raises:
        BrokenModelError: one is a pointer of Git LFS, cut short, missing or no JSON.
    """
    folder = Path(path)
    for name, key in SETTINGS.items():
        if (folder / name).is_file():
            read_object(folder / name, key)
    for file in weight_files(folder):
        _must_be_whole(file)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that a model or an adapter is loaded from, those that are gone among them."""
    if whole := [folder / name for name in WEIGHTS if (folder / name).is_file()]:
        return whole
    if not (folder / INDEX).is_file():
        return []
    places = read_object(folder / INDEX, "weight_map")["weight_map"]
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise BrokenModelError(f"{folder / INDEX}: weight_map is no table of weights and files; {AGAIN}")
    return [folder / name for name in sorted(set(places.values()))]


def read_object(file: Path, key: str = "") -> dict[str, Any]:
    """Return the object in a JSON file, with `key` in it.

    Raises:
        BrokenModelError: the file holds something else.
    """
    data = _bytes(file)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenModelError(f"{file}: not valid JSON ({error}); {AGAIN}") from error
    if not isinstance(value, dict) or (key and key not in value):
        lacks = f"it has no {key}" if isinstance(value, dict) else f"it holds {type(value).__name__}, not an object"
        raise BrokenModelError(f"{file}: not what its name says, {lacks}; {AGAIN}")
    return value


def _bytes(file: Path, most: int = -1) -> bytes:
    """Return the first bytes of a file that is no pointer."""
    try:
        with file.open("rb") as stream:
            data = stream.read(most)
    except OSError as error:
        raise BrokenModelError(f"{file}: cannot be read ({error.strerror or error}); {AGAIN}") from error
    if data.startswith(POINTER):
        raise BrokenModelError(f"{file}: a pointer of Git LFS, not the file; run git lfs pull where it came from")
    return data


def _must_be_whole(file: Path) -> None:
    """Require a safetensors file whose header finds all of its data."""
    from safetensors import SafetensorError, safe_open

    _bytes(file, len(POINTER))
    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise BrokenModelError(f"{file}: cut short or damaged ({error}); {AGAIN}") from error


def load_complete(path: str | Path, **options: Any) -> PreTrainedModel:
    """Return the model of a folder or Hub name, from files that hold exactly its weights.

    A head beside the model, as of a classic reward model, is left out with a note. Under ZeRO-3 transformers does not
    tell what is too much or of another shape; `device_map="meta"` does.

    Args:
        path: folder or Hub name.
        options: of `from_pretrained`.

    Raises:
        BrokenModelError: names the weights that are missing, of another shape, or too many; or nothing ends an answer.
    """
    from transformers import AutoModelForImageTextToText

    with reading(path, "the model"), _unreported():
        network, report = AutoModelForImageTextToText.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    if problem := _difference(network, report):
        raise BrokenModelError(f"{path}: {problem}")
    if network.generation_config.eos_token_id is None:
        raise BrokenModelError(f"{path}: no eos_token_id in generation_config.json or config.json; {AGAIN}")
    if (extra := sorted(report["unexpected_keys"])) and network.device.type != "meta":
        note(f"{path}: {len(extra)} weights beside the model are not used ({_some(extra)})")
    return network


def _difference(network: PreTrainedModel, report: Mapping[str, Any]) -> str | None:
    """Return how the weights in the files differ from those of the model, and the fix; `report` is that of loading."""
    inside = tuple(f"{name}." for name, _ in network.named_children())
    extra = sorted(report["unexpected_keys"])
    if missing := sorted(report["missing_keys"]):
        count = len(network.state_dict())
        return f"lacks {len(missing)} of the model's {count} weights ({_some(missing)}); {_why(extra, inside)}"
    fix = "put back the config.json that belongs to these weights"
    if wrong := sorted(report["mismatched_keys"]):
        shapes = [f"{key} has the shape {tuple(shape)}, config.json wants {tuple(due)}" for key, shape, due in wrong]
        return f"{len(wrong)} weights of another shape ({_some(shapes)}); {fix}"
    if surplus := [key for key in extra if key.startswith(inside)]:
        return (
            f"config.json has no place for {len(surplus)} weights ({_some(surplus)}); {fix}, or {_why(extra, inside)}"
        )
    return None


@contextmanager
def _unreported() -> Iterator[None]:
    """Keep back the table of transformers: what it tells is an error or a note of ours."""

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _why(extra: Sequence[str], inside: tuple[str, ...]) -> str:
    """Return the fix for keys that are not those of the model, told from those that the files have too many."""
    if any(".lora_" in key or ".base_layer." in key for key in extra):
        return "its LoRA adapter was not merged: save the adapter by itself, or call merge_and_unload() before saving"
    starts = Counter(key.partition(".")[0] + "." for key in extra if not key.startswith(inside))
    prefix, count = next(iter(starts.most_common(1)), ("", 0))
    if 2 * count <= len(extra):
        return f"{AGAIN}, with all of its files"
    prefix = {"base_model.": "base_model.model."}.get(prefix, prefix)
    return f"{count} keys begin with {prefix}: save the model out of its wrapper, or take that off the keys"


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def must_be_finite(weights: Iterable[tuple[str, Tensor]], path: str | Path) -> None:
    """Require finite weights; under ZeRO-3 every rank looks at each weight whole, so that all of them agree.

    Raises:
        BrokenModelError: names weights that hold NaN or infinity.
    """
    broken = [(name, weight.dtype) for name, weight in weights if not _finite(weight)]
    if broken:
        names, dtype = [name for name, _ in broken], str(broken[0][1]).removeprefix("torch.")
        raise BrokenModelError(
            f"{path}: {len(names)} weights hold NaN or infinity in {dtype} ({_some(names)}); {AGAIN}, or take a "
            "checkpoint from before its training went wrong"
        )


def _finite(weight: Tensor) -> bool:
    import torch

    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return _finite(weight.data)
    if not weight.is_floating_point():
        return True
    if weight.element_size() == 1:  # float8 has no sum
        weight = weight.to(torch.float32)
    # A sum reads memory ten times as fast as isfinite; one of finite numbers may overflow.
    return bool(weight.sum().isfinite() or weight.isfinite().all())


def files_must_be_finite(folder: Path) -> None:
    """Require finite weights in the files, where another program will load them: one read, one file at a time.

    Raises:
        BrokenModelError: names weights that hold NaN or infinity.
    """
    import torch
    from safetensors import safe_open

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # vLLM forks, and a child cannot use threads that its parent has started
    try:
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as reader:
                must_be_finite(((key, reader.get_tensor(key)) for key in reader.keys()), file)  # noqa: SIM118
    finally:
        torch.set_num_threads(threads)
