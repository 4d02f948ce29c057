"""What LoRA needs in a training run: the layers it adapts, and a whole model where a run starts from an adapter."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unifiedreward_think.errors import InputError
from unifiedreward_think.models.adapters import adapter_folder, language_layers, write_merged
from unifiedreward_think.models.families import FAMILIES
from unifiedreward_think.training.survival.checkpoints import flaw, seal

START = "start"  # folder in output_dir: the adapter that training starts from, merged into its base


def adapter_settings(model: Any, model_args: Any, *, freeze: bool) -> Any:
    """Return PEFT's settings of a LoRA run; without `lora_target_modules`, the layers of the language model.

    Raises:
        InputError: the model has no layer of a name in `lora_target_modules`.
    """
    from trl import get_peft_config

    peft_config = get_peft_config(model_args)
    chosen = model_args.lora_target_modules
    if chosen is None and model_args.lora_target_parameters is None:
        peft_config.target_modules = language_layers(model)
    elif isinstance(chosen, str) and chosen.isidentifier():
        # TRL unpacks a list of one, and PEFT takes a string for a pattern of the whole path.
        chosen = peft_config.target_modules = {chosen}
    if isinstance(chosen, (list, set)):
        names = [f".{name}" for name, _ in model.named_modules()]
        if unknown := [name for name in chosen if not any(full.endswith(f".{name}") for full in names)]:
            raise InputError(
                f"lora_target_modules: the model has no layer {', '.join(unknown)}; leave the key out for the linear "
                f"layers of the language model ({language_layers(model)})"
            )
    if freeze:
        # Layers of the tower have the same names (gate_proj, q_proj); their adapters would be trained and merged.
        peft_config.exclude_modules = re.escape(FAMILIES[model.config.model_type].vision_tower) + r"\..*"
    return peft_config


def whole_start(model_args: Any, args: Any) -> tuple[str, str]:
    """Return path and revision of the model that training starts from; an adapter is merged into its base first.

    It is written to `output_dir`: TRL loads the reference model by name, vLLM and ZeRO-3 their weights from files, and
    an adapter that is trained on top names it as its base. Without one it is removed at the end.
    """
    path, revision = model_args.model_name_or_path, model_args.model_revision
    if adapter_folder(path, revision) is None:
        return path, revision
    folder = Path(args.output_dir) / START
    with args.main_process_first(local=False):
        if args.process_index == 0 and flaw(folder):
            with whole_weights(args):
                scratch = folder.with_name(f"{START}.new")
                shutil.rmtree(scratch, ignore_errors=True)
                write_merged(path, scratch, dtype=model_args.dtype, revision=revision)
                seal(scratch, {})
                shutil.rmtree(folder, ignore_errors=True)
                scratch.rename(folder)
    return str(folder), "main"


@contextmanager
def whole_weights(args: Any) -> Iterator[None]:
    """Load models whole on this rank within the block, also where ZeRO-3 spreads them over the ranks."""
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if (settings := getattr(args, "hf_deepspeed_config", None)) is not None:
            set_hf_deepspeed_config(settings)
