"""Load a model and its processor, and the fixes the supported families need.

Each fix answers a silent failure of the pinned libraries and has a test that fails without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.errors import InputError
from unifiedreward_think.models.adapters import adapter_folder, base_of, merge, processor_source
from unifiedreward_think.models.chat_template import show_tags
from unifiedreward_think.models.families import FAMILIES
from unifiedreward_think.models.processors import must_have_processor, must_suit
from unifiedreward_think.models.soundness import (
    files_must_be_finite,
    load_complete,
    must_be_finite,
    must_be_readable,
    reading,
)

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

# Hints for model types that people do try.
INSTEAD = {
    "llava_qwen": "this is the LLaVA-NeXT layout; convert it with python -m unifiedreward_think.models.llava_next",
    "llava_onevision1_5": "it is no model of transformers; use llava_onevision",
}


class UnsupportedModelError(InputError):
    """A model family this project does not train or run; the message says why and what to use."""


def load_processor(
    path: str | Path, *, min_pixels: int | None = None, max_pixels: int | None = None, revision: str = "main"
) -> ProcessorMixin:
    """Load a processor that pads on the left, and whose tokenizer shows the tags of answers.

    TRL's GRPO keeps rows aligned only for left padding; with a right-padding processor `mm_token_type_ids` shifts
    against the tokens without an error.

    Args:
        path: folder or Hub name, of an adapter too.
        min_pixels: pictures below this area are scaled up; None keeps the checkpoint's limit.
        max_pixels: pictures above this area are scaled down; None keeps the checkpoint's limit.
        revision: of the Hub repository.

    Raises:
        UnsupportedModelError: the limits do not suit the processor.
        BrokenModelError: files are missing or damaged, or those of another model.
        InputError: a tag of answers cannot be shown.
    """
    from transformers import AutoConfig, AutoProcessor, PretrainedConfig

    path, revision = processor_source(path, revision)
    must_be_readable(path)
    must_have_processor(path)
    with reading(path, "the processor"):
        processor = AutoProcessor.from_pretrained(path, padding_side="left", revision=revision)
        named = PretrainedConfig.get_config_dict(path, revision=revision)[0]
        config = AutoConfig.from_pretrained(path, revision=revision) if named else None
    must_suit(processor, config, path)
    limits = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    if chosen := {edge: pixels for edge, pixels in limits.items() if pixels is not None}:
        _limit_pixels(processor.image_processor, chosen, path)
    show_tags(processor, path)
    processor.tokenizer.padding_side = "left"
    return processor


def _limit_pixels(image_processor: Any, chosen: dict[str, int], path: str | Path) -> None:
    if "longest_edge" not in image_processor.size:
        raise UnsupportedModelError(
            f"{path}: {type(image_processor).__name__} has a fixed tile size; leave min_pixels and max_pixels out"
        )
    size = {**dict(image_processor.size), **chosen}
    if size["shortest_edge"] > size["longest_edge"]:
        raise UnsupportedModelError(
            f"{path}: min_pixels {size['shortest_edge']} is above max_pixels {size['longest_edge']}; set both"
        )
    image_processor.size = size


def load_model(
    path: str | Path, *, dtype: str = "auto", attn_implementation: str | None = None, revision: str = "main"
) -> PreTrainedModel:
    """Load a supported vision-language model; of the folder of an adapter, its base with the adapter merged into it.

    Raises:
        UnsupportedModelError: there is no model of this name, or its family is not one of FAMILIES.
        BrokenModelError: files or weights are missing, damaged, not finite, or of another model.
        AdapterError: an adapter's base is missing, or another one than it was trained on.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    if (adapter := adapter_folder(path, revision)) is not None:
        model = merge(adapter, lambda base, at: load_model(base, revision=at, **options))
    else:
        if not is_deepspeed_zero3_enabled():  # under which there is no meta device: `training.run` does this before
            must_be_complete(path, revision)
        model = load_complete(path, revision=revision, **options)
        prune_key_renames(model)
    must_be_finite([*model.named_parameters(), *model.named_buffers()], path)
    return model


def must_be_complete(path: str | Path, revision: str = "main") -> None:
    """Require a supported model whose files hold exactly its weights; reads headers alone.

    Raises:
        UnsupportedModelError, BrokenModelError: as `load_model`.
    """
    if not _supported(path, revision).get("quantization_config"):  # whose weights are made on the device
        load_complete(path, device_map="meta", revision=revision)


def load_config(path: str | Path, revision: str = "main") -> PretrainedConfig:
    """Return the config of a supported model; of the folder of an adapter, that of its base.

    Raises:
        UnsupportedModelError, BrokenModelError: as `load_model`.
    """
    from transformers import AutoConfig

    if (adapter := adapter_folder(path, revision)) is not None:
        return load_config(*base_of(adapter))
    _supported(path, revision)
    with reading(path, "its config.json"):
        return AutoConfig.from_pretrained(path, revision=revision)


def _supported(path: str | Path, revision: str) -> dict[str, Any]:
    config = read_config(path, revision)
    family = config.get("model_type")
    if str(family) not in FAMILIES:
        hint = INSTEAD.get(str(family), f"supported: {', '.join(FAMILIES)}")
        raise UnsupportedModelError(f"{path}: model_type {family!r} is not supported; {hint}")
    return config


def read_config(path: str | Path, revision: str = "main") -> dict[str, Any]:
    """Return the config.json of a model whose files can be read.

    Raises:
        UnsupportedModelError: there is none.
        BrokenModelError: a file is missing or damaged.
    """
    from transformers import PretrainedConfig

    must_be_readable(path)
    try:
        # The bare dictionary, because AutoConfig fails on types unknown to transformers without a hint.
        config: dict[str, Any] = PretrainedConfig.get_config_dict(path, revision=revision)[0]
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise UnsupportedModelError(
            f"{path}: no folder of a model here, and not to be had from the Hub ({reason}); check the path or the name"
        ) from error
    if not config:
        raise UnsupportedModelError(f"{path}: a folder without config.json; name one that holds a model")
    return config


def must_be_sound(path: str | Path) -> None:
    """Require a sound folder where another program will load it, as vLLM does; what it fetches itself is left to it.

    Raises:
        UnsupportedModelError, BrokenModelError: as `load_model` and `load_processor`.
    """
    if not Path(path).is_dir():
        return
    if str(read_config(path).get("model_type")) in FAMILIES:  # vLLM runs others, too
        must_be_complete(path)
        load_processor(path)
    files_must_be_finite(Path(path))


def vision_tower(model: Any) -> Module:
    """Return the vision tower of a (possibly PEFT-wrapped) model."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_submodule(FAMILIES[base.config.model_type].vision_tower)


def freeze_vision(model: Any) -> int:
    """Freeze the vision tower and return the number of frozen parameters."""
    tower = vision_tower(model)
    tower.requires_grad_(False)
    # Under ZeRO-3 the parameters are partitioned and numel() is 0.
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in tower.parameters())


def prune_key_renames(model: Any) -> None:
    """Drop the checkpoint key renames that loading did not use.

    transformers 5.23 keeps all of them after loading under ZeRO-3 and applies their inverse on save, so that
    `model.layers.*` is written as `model.model.layers.*`, which vLLM cannot read.
    """
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        model._weight_conversions = [conversion for conversion in conversions if conversion.was_used()]
