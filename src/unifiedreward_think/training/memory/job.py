"""One stage on some GPUs, as the keys of its config describe it: what the memory plan counts from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unifiedreward_think.errors import InputError
from unifiedreward_think.forms import FORMS, PAIRWISE

GIB = 2**30
LENGTH = {"grpo": "max_completion_length", "sampling": "max_new_tokens"}  # the key that limits a completion
# What a config may leave out, with the values that TRL's and transformers' arguments then take.
DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "bf16": True,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": True,
    "deepspeed": None,
    "optim": "adamw_torch_fused",
    "use_peft": False,
    "lora_r": 16,
    "lora_target_modules": None,
    "freeze_vision": True,
    "form": "pairwise",
    "frames": 8,
    "max_pixels": None,
    "point_share": 0.0,
    "beta": 0.0,
    "num_generations": 8,
    "max_completion_length": 512,
    "steps_per_generation": None,
    "shared_prefix": True,
    "max_stream_tokens": None,
    "use_vllm": False,
    "vllm_gpu_memory_utilization": 0.3,
    "samples": 4,
    "orders": "one",
    "batch_size": 8,
    "max_new_tokens": 2048,
    "backend": "transformers",
    "tensor_parallel_size": 1,
    "max_model_len": None,
}
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "auto": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One stage on some GPUs.

    Attributes:
        stage: "sft", "grpo" or "sampling".
        keys: the config's, over DEFAULTS.
        zero: what the DeepSpeed file says; empty without one.
        gpus: how many there are in all.
        gpu_memory: bytes of one.
        prompt_tokens: text tokens of a prompt.
        completion_tokens: of a completion.
    """

    stage: str
    keys: Mapping[str, Any]
    zero: Mapping[str, Any]
    gpus: int
    gpu_memory: int
    prompt_tokens: int
    completion_tokens: int

    def __getitem__(self, key: str) -> Any:
        return self.keys.get(key, DEFAULTS[key])

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight: DeepSpeed trains in bfloat16 where `bf16` says so, whatever the checkpoint's type."""
        return 2 if self.zero and self["bf16"] else SIZES[self["dtype"]]

    @property
    def compute_bytes(self) -> int:
        """Bytes of one number of an activation."""
        return 2 if self["bf16"] and self.stage != "sampling" else self.weight_bytes

    @property
    def pictures(self) -> int:
        """Pictures of the longest prompt, which compares two videos, or scores one."""
        return int(FORMS[self["form"]].candidates * self["frames"])

    @property
    def engine_gpus(self) -> int:
        """GPUs that share a model where completions are sampled."""
        return int(self["tensor_parallel_size"] or 1) if self.vllm else 1

    @property
    def engines(self) -> int:
        """Models that sample side by side."""
        return self.gpus // self.engine_gpus

    @property
    def vllm(self) -> bool:
        """Whether vLLM samples, which decides for itself how many sequences it writes at a time."""
        return self.stage == "sampling" and self["backend"] == "vllm"

    @property
    def rows(self) -> int:
        """Rows of one forward and backward pass."""
        return int(self["per_device_train_batch_size"])

    @property
    def generated_rows(self) -> int:
        """Rows that are generated at a time on one GPU."""
        if self.stage == "sampling":
            return int(self["batch_size"] * self["samples"])
        return self.rows * int(self["steps_per_generation"] or self["gradient_accumulation_steps"])

    @property
    def cuts_pairs(self) -> bool:
        """Whether GRPO would have the scores of a pair's two candidates in two generation batches."""
        if self.stage != "grpo" or (self["form"] == PAIRWISE.name and not self["point_share"]):
            return False
        return self.gpus * self.generated_rows // int(self["num_generations"]) % 2 == 1

    def prompts(self, rows: int) -> int:
        """Prompts that are kept for so many rows."""
        copies = {"sampling": "samples", "grpo": "num_generations" if self["shared_prefix"] else ""}.get(self.stage)
        return -(-rows // int(self[copies])) if copies else rows

    def offloaded(self, what: str) -> bool:
        """Whether the DeepSpeed file keeps "param" or "optimizer" outside the GPU."""
        device: str = self.zero.get(f"offload_{what}", {}).get("device", "none")
        return device != "none"


def make_job(
    keys: Mapping[str, Any],
    gpus: int,
    gpu_memory: float = 80,
    prompt_tokens: int = 1024,
    completion_tokens: int | None = None,
) -> Job:
    """Return the job that a config's keys describe; a key of its own tells the stage.

    Raises:
        InputError: the stage takes no GPU, or another number, or ZeRO's stage is not covered.
    """
    stage = "grpo" if "num_generations" in keys else "sampling" if "samples" in keys else "sft"
    if stage == "sampling" and keys.get("backend") in ("server", "replay"):
        raise InputError(f"backend: {keys['backend']} takes no GPU here; plan its machine with --backend vllm")
    if (form := keys.get("form", DEFAULTS["form"])) not in FORMS:
        raise InputError(f"form {form!r} is none of {', '.join(FORMS)}")
    limit = LENGTH.get(stage)
    length = completion_tokens or (keys.get(limit, DEFAULTS[limit]) if limit else 1024)
    job = Job(
        stage=stage,
        keys=dict(keys),
        zero=deepspeed(keys.get("deepspeed")),
        gpus=gpus,
        gpu_memory=int(gpu_memory * GIB),
        prompt_tokens=prompt_tokens,
        completion_tokens=length,
    )
    if gpus % job.engine_gpus:
        raise InputError(f"{gpus} GPUs are no multiple of tensor_parallel_size: {job.engine_gpus}")
    return job


def deepspeed(path: str | None) -> dict[str, Any]:
    """Return what a DeepSpeed file says about ZeRO.

    Raises:
        InputError: its stage is not 3.
    """
    if path is None:
        return {}
    zero: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))["zero_optimization"]
    if zero["stage"] != 3:
        raise InputError(f"{path}: ZeRO stage {zero['stage']} is not covered; covered: 3")
    return zero
