"""Load a model and its processor, and the fixes the supported families need.

Each fix answers a silent failure of the pinned libraries and has a test that fails without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.errors import InputError

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel, ProcessorMixin

# config.model_type -> path of the vision tower inside the model. Freezing goes by module: the published trainer froze
# parameters whose name starts with "visual.", which matches none since they are called "model.visual.*".
VISION_TOWERS = {
    "qwen2_vl": "model.visual",
    "qwen2_5_vl": "model.visual",
    "qwen3_vl": "model.visual",
    "qwen3_5": "model.visual",
    "llava_onevision": "model.vision_tower",
}
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
    """Load a processor that pads on the left.

    TRL's GRPO keeps rows aligned only for left padding; with a right-padding processor `mm_token_type_ids` shifts
    against the tokens without an error.

    Args:
        path: folder or Hub name.
        min_pixels: pictures below this area are scaled up; None keeps the checkpoint's limit.
        max_pixels: pictures above this area are scaled down; None keeps the checkpoint's limit.
        revision: of the Hub repository.

    Raises:
        UnsupportedModelError: the limits do not suit the processor.
    """
    from transformers import AutoProcessor

    limits = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    processor = AutoProcessor.from_pretrained(path, padding_side="left", revision=revision)
    chosen = {edge: pixels for edge, pixels in limits.items() if pixels is not None}
    if chosen:
        image_processor = processor.image_processor
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
    processor.tokenizer.padding_side = "left"
    return processor


def load_model(
    path: str | Path, *, dtype: str = "auto", attn_implementation: str | None = None, revision: str = "main"
) -> PreTrainedModel:
    """Load a supported vision-language model.

    Raises:
        UnsupportedModelError: there is no model of this name, or its family is not one of VISION_TOWERS.
    """
    from transformers import AutoModelForImageTextToText, PretrainedConfig

    try:
        # The bare dictionary, because AutoConfig fails on types unknown to transformers without a hint.
        config = PretrainedConfig.get_config_dict(path, revision=revision)[0]
    except OSError as error:
        said = str(error).splitlines()[0]
        raise UnsupportedModelError(
            f"{path}: no folder of a model here, and not to be had from the Hub ({said}); check the path or the name"
        ) from error
    if not config:
        raise UnsupportedModelError(f"{path}: a folder without config.json; name one that holds a model")
    family = config.get("model_type")
    if family not in VISION_TOWERS:
        hint = INSTEAD.get(str(family), f"supported: {', '.join(VISION_TOWERS)}")
        raise UnsupportedModelError(f"{path}: model_type {family!r} is not supported; {hint}")
    model = AutoModelForImageTextToText.from_pretrained(
        path, dtype=dtype, attn_implementation=attn_implementation, revision=revision
    )
    prune_key_renames(model)
    return model


def vision_tower(model: Any) -> Module:
    """Return the vision tower of a (possibly PEFT-wrapped) model."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_submodule(VISION_TOWERS[base.config.model_type])


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


class ReloadOnResume:
    """Trainer mixin that restores weights through `from_pretrained` when a run resumes.

    transformers saves Qwen2-VL, Qwen2.5-VL and LLaVA-OneVision under their released key names but resumes with
    `load_state_dict(strict=False)` on the in-memory names, restoring almost nothing with only a warning
    (huggingface/transformers#43701). DeepSpeed, FSDP and PEFT runs take other paths and are left alone.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._stock_resume_works():
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        else:
            self._reload(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._stock_resume_works():
            super()._load_best_model()  # type: ignore[misc]
        else:
            self._reload(self.state.best_model_checkpoint, None)  # type: ignore[attr-defined]

    def _stock_resume_works(self) -> bool:
        from peft import PeftModel

        trainer: Any = self
        wrapped = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
        return bool(trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or wrapped)

    def _reload(self, path: str, model: Any) -> None:
        trainer: Any = self
        target = trainer.accelerator.unwrap_model(trainer.model if model is None else model)
        source = type(target).from_pretrained(path, dtype=target.dtype)
        target.load_state_dict(source.state_dict(), strict=True)
