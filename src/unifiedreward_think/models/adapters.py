"""LoRA adapters: the layers they train by default, and folders that hold one, merged into the base that they name.

    python -m unifiedreward_think.models.adapters outputs/run/adapter --output outputs/merged    # for vLLM

`load_model` and `load_processor` take such a folder wherever they take a model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import InputError
from unifiedreward_think.models.soundness import must_be_finite, must_be_readable, read_object, reading
from unifiedreward_think.writing import write_whole

CONFIG = "adapter_config.json"
BASE = "base.json"  # what the base was when the adapter was saved: family, dtype, and a hash of its weights
PROCESSOR = ("processor_config.json", "preprocessor_config.json")


class AdapterError(InputError):
    """An adapter that cannot be used; the message names adapter, base, and the fix."""


def main() -> None:
    """Merge an adapter into its base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="folder or Hub name of a LoRA adapter")
    parser.add_argument("--output", type=Path, required=True, help="folder for the whole model; new or empty")
    parser.add_argument("--dtype", default="auto", help="of the merged weights (default: the base's)")
    args = parser.parse_args()
    if adapter_folder(args.adapter) is None:
        raise AdapterError(f"{args.adapter}: holds no {CONFIG}, so there is nothing to merge; use it as it is")
    if args.output.exists() and any(args.output.iterdir()):
        raise AdapterError(f"{args.output} is not empty: choose another --output")
    write_merged(args.adapter, args.output, dtype=args.dtype)
    print(args.output)


def language_layers(network: Any) -> str:
    """Return a pattern of the linear layers of the language model: not those of the vision tower, nor the head."""
    from torch.nn import Linear

    decoder = network.get_decoder()
    place = next(name for name, module in network.named_modules() if module is decoder)
    names = {name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, Linear)}
    return rf"{re.escape(place)}\..*\.({'|'.join(sorted(names))})"


def adapter_folder(path: str | Path, revision: str = "main") -> Path | None:
    """Return the folder of an adapter, fetched where a Hub name is given; None where the path is no adapter's."""
    if Path(path).is_dir():
        return Path(path) if (Path(path) / CONFIG).is_file() else None
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        listed = find_adapter_config_file(str(path), revision=revision)
    except OSError:  # no such repository: what loads the model says so
        return None
    return None if listed is None else Path(snapshot_download(str(path), revision=revision))


def base_of(folder: Path) -> tuple[str, str]:
    """Return the base that an adapter names, and its revision.

    Raises:
        AdapterError: it names none.
        BrokenModelError: its settings are damaged.
    """
    settings = read_object(folder / CONFIG)
    if not settings.get("base_model_name_or_path"):
        raise AdapterError(f"{folder}: {CONFIG} names no base; write its folder or name as base_model_name_or_path")
    return settings["base_model_name_or_path"], settings.get("revision") or "main"


def processor_source(path: str | Path, revision: str = "main") -> tuple[str | Path, str]:
    """Return where the processor of a model is: for an adapter without one, where its base's is."""
    folder = adapter_folder(path, revision)
    if folder is None:
        return path, revision
    if any((folder / name).is_file() for name in PROCESSOR):
        return folder, "main"
    return processor_source(*base_of(folder))


def merge(folder: Path, load: Callable[[str, str], Any]) -> Any:
    """Return the base of an adapter with the adapter merged into it.

    Args:
        folder: of the adapter.
        load: returns the model of a name and a revision.

    Raises:
        AdapterError: the base cannot be loaded, or is not the one that the adapter was trained on.
        BrokenModelError: the adapter's files are damaged, or its weights not finite.
    """
    name, revision = base_of(folder)
    settings, saved = _read(folder)
    fix = f"correct base_model_name_or_path in {folder / CONFIG}, or take the merged weights if its run kept them"
    try:
        base = load(name, revision)
    except InputError as error:
        raise AdapterError(f"{folder}: the base of this adapter cannot be loaded: {error}; or {fix}") from error
    try:
        merged = _join(base, folder, settings, saved)
    except ValueError as error:
        raise AdapterError(f"{folder} was not trained on {name}: {error}; {fix}") from error
    merged.requires_grad_(True)
    merged.name_or_path = merged.config._name_or_path = str(folder)
    return merged


def _read(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the settings of an adapter as PEFT reads them, and its weights."""
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    must_be_readable(folder)
    with reading(folder, "the adapter"):
        settings, saved = PeftConfig.from_pretrained(folder), load_peft_weights(str(folder), device="cpu")
    must_be_finite(saved.items(), folder)
    return settings, saved


def _join(base: Any, folder: Path, settings: Any, saved: Mapping[str, Any]) -> Any:
    """Return the base with an adapter's weights added to its own.

    Raises:
        ValueError: they do not belong together; says why. PEFT itself raises it where no layer fits, and would load the
            weights that fit where others do not.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if reason := _another_base(folder, base):
        raise ValueError(reason)
    network = get_peft_model(base, settings)
    if reason := _difference(saved, get_peft_model_state_dict(network, save_embedding_layers=False)):
        raise ValueError(reason)
    set_peft_model_state_dict(network, saved)
    return network.merge_and_unload()


def _difference(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Return how the weights of an adapter differ from those that its base would have."""
    if unknown := sorted(saved.keys() - expected.keys()):
        return f"{len(unknown)} of its weights have no layer there, {unknown[0]} for one"
    if missing := sorted(expected.keys() - saved.keys()):
        return f"it lacks {len(missing)} weights for that base, {missing[0]} for one"
    for key, weight in saved.items():
        if weight.shape != expected[key].shape:
            return f"{key} has the shape {tuple(weight.shape)}, the base needs {tuple(expected[key].shape)}"
    return None


def write_base(folder: Path, base: Any) -> None:
    """Keep what the base of an adapter was, so that another one of the same name is noticed."""
    row = {"model_type": base.config.model_type, "dtype": str(base.dtype), "weights": fingerprint(base)}
    write_whole(folder / BASE, json.dumps(row) + "\n")


def _another_base(folder: Path, base: Any) -> str | None:
    """Return why a base is not the one that was kept, as far as is known: weights are compared in the same dtype."""
    if not (folder / BASE).is_file():
        return None
    kept = read_object(folder / BASE, "weights")
    if kept["model_type"] != base.config.model_type:
        return f"that is {base.config.model_type}, the adapter is for {kept['model_type']}"
    if kept["dtype"] == str(base.dtype) and kept["weights"] != fingerprint(base):
        return "its weights have changed since, as when it is trained again"
    return None


def fingerprint(network: Any) -> str:
    """Return a short hash of evenly spaced weights: a model trained again into the same folder is another model."""
    import torch

    digest = hashlib.sha256()
    for _, weights in sorted(network.named_parameters()):
        flat = weights.detach().flatten()
        digest.update(flat[:: max(1, flat.numel() // 4096)].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:12]


def write_merged(path: str | Path, output: Path, *, dtype: str = "auto", revision: str = "main") -> None:
    """Write an adapter merged into its base, with its processor, as a whole model."""
    from unifiedreward_think.models.loading import load_model, load_processor

    load_model(path, dtype=dtype, revision=revision).save_pretrained(output)
    load_processor(path, revision=revision).save_pretrained(output)


def must_be_whole(path: str, what: str) -> None:
    """Refuse an adapter where only a whole model will do.

    Raises:
        AdapterError: names the command that makes one of it.
    """
    if adapter_folder(path) is not None:
        raise AdapterError(
            f"{path} is an adapter, and {what} takes whole models: merge it first with "
            f"python -m unifiedreward_think.models.adapters {path} --output FOLDER (a run of ours has kept the merged "
            "weights in the folder above its adapter/)"
        )


if __name__ == "__main__":
    run_main(main)
