"""Each rung of the memory ladder of docs/scaling.md takes less than the one before: the peak of all tensors alive.

python -m pytest -s tests/test_memory_ladder.py        # prints the table of the page
"""

import weakref
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from helpers import stages

LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}
SFT = {
    "as it is": {},
    "gradient_checkpointing: true": {"activation_checkpointing": True},
    "... and per_device_train_batch_size: 1": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "... and max_pixels: 256 instead of 1024": {"max_pixels": 256},
    "... and use_peft: true": {"lora": LORA},
}
GRPO = {
    "shared_prefix: false": {"shared_prefix": False, "activation_checkpointing": True},
    "shared_prefix: true": {"shared_prefix": True},
    "... and max_stream_tokens: 150": {"max_stream_tokens": 150},
}


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is entered, and the most that are alive at a time."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.most = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_iter(output):
            if hasattr(tensor, "untyped_storage"):
                self.see(tensor.untyped_storage())
        return output

    def see(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, key, size)

    def gone(self, key, size):
        self.alive.discard(key)
        self.now -= size


def peaks(train, rungs, models, toy_data, tmp_path, monkeypatch):
    """Climb down the ladder, each rung with all changes so far; return the peak of each in MB."""
    found, options, pixels = {}, {"max_steps": 2}, None
    data = stages.data_arguments
    for number, (name, change) in enumerate(rungs.items()):
        options = {**options, **change}
        pixels = options.pop("max_pixels", pixels)
        monkeypatch.setattr(stages, "data_arguments", partial(with_pixels, data, pixels))
        with Peak() as peak:
            train(models["qwen2_5_vl"], toy_data, tmp_path / str(number), **options)
        found[name] = round(peak.most / 1e6, 2)
    print(*(f"\n| {name} | {size} |" for name, size in found.items()))
    return list(found.values())


def with_pixels(data, pixels, *rows):
    return replace(data(*rows), max_pixels=pixels)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "rungs"), [("sft", SFT), ("grpo", GRPO)], ids=["sft", "grpo"])
def test_each_rung_takes_less_memory(stage, rungs, models, toy_data, tmp_path, monkeypatch):
    train = {"sft": stages.train_sft, "grpo": stages.train_grpo}[stage]
    found = peaks(train, rungs, models, toy_data, tmp_path, monkeypatch)
    assert all(after < before for before, after in pairwise(found)), found
