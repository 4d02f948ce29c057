"""The shared-prefix trainer takes the steps that TRL's own passes take, whatever the options; the rest is refused."""

import sys

import pytest
import torch
import two_ranks
from stages import read_log, train_grpo
from test_zero3 import checked

from unifiedreward_think.records import InputError
from unifiedreward_think.training import grpo, shared_prefix

LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "up_proj", "down_proj"]}
# Logged over micro-batches, whose composition may differ where the gradient does not; see docs/speed.md.
COMPOSED = ("kl", "entropy", "policy_tokens_skipped")


def both(model, toy_data, folder, *, steps=3, **options):
    """Train on TRL's passes and on shared prefixes; return the two logs."""
    chosen = {"max_completion_length": 24, "max_steps": steps, **options}
    stock = train_grpo(model, toy_data, folder / "stock", shared_prefix=False, **chosen)
    return stock, train_grpo(model, toy_data, folder / "ours", **chosen)


def close(value, expected):
    return value == pytest.approx(expected, rel=1e-5, abs=2e-6)


def check_equal(stock, ours, *, leave_out=()):
    assert len(stock) == len(ours)
    for before, after in zip(stock, ours, strict=True):
        for key in before.keys() - set(leave_out):
            same = after[key] is None if before[key] is None else close(after[key], before[key])
            assert same, (before["step"], key, before[key], after[key])


def check_learned(log):
    assert any(row["reward_std"] > 0 and row["grad_norm"] > 0.01 for row in log)


@pytest.mark.parametrize("family", shared_prefix.FAMILIES)
def test_every_covered_family_takes_the_steps_of_trl(family, models, toy_data, tmp_path):
    stock, ours = both(models[family], toy_data, tmp_path)
    check_equal(stock, ours)
    check_learned(ours)
    assert ours[-1]["kl"] > 0
    assert any(row["completions/min_length"] < row["completions/max_length"] for row in ours)


STEPS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"beta": 0.0, "loss_type": "dapo"},
        {"loss_type": "dapo"},
        {"loss_type": "grpo"},
        {"loss_type": "grpo", "num_iterations": 2},
        {"beta": 0.0, "num_iterations": 2},
        {"beta": 0.0, "num_iterations": 2, "importance_sampling_level": "sequence", "weight_decay": 0.1},
        {"loss_type": "grpo", "mask_truncated_completions": True},
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "freeze": False},
        {"freeze": False},
        {"freeze": False, "beta": 0.0, "num_iterations": 2},
        {"lora": LORA},
        {"lora": LORA, "activation_checkpointing": True, "num_iterations": 2},
        {"lora": {**LORA, "lora_target_modules": ["qkv", "q_proj"]}, "freeze": False},
        {"per_device_train_batch_size": 8, "num_generations": 4},
        {**STEPS, "steps_per_generation": 4, "loss_type": "bnpo"},  # two optimizer steps a rollout: TRL's shuffle
        {"beta": 0.0, "top_entropy_quantile": 0.5},
        {"beta": 0.0, "entropy_coef": 0.1},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},  # groups split over micro-batches
        {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
    ],
    ids=lambda options: (
        ",".join(f"{key}={value}" for key, value in options.items() if key != "lora") + "lora" * ("lora" in options)
    ),
)
def test_an_option_changes_nothing_between_trl_and_ours(options, models, toy_data, tmp_path):
    stock, ours = both(models["qwen2_5_vl"], toy_data, tmp_path, **options)
    check_equal(stock, ours)
    check_learned(ours)


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [[], ["configs/deepspeed/zero3_cpu.json"]], ids=["ddp", "zero3"])
def test_two_ranks_take_the_steps_of_trl_on_one(deepspeed, models, toy_data, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    checked([*command, "tests/two_ranks.py", models["qwen2_5_vl"], toy_data, tmp_path / "two", *deepspeed])
    monkeypatch.setattr(torch, "multinomial", torch.multinomial)  # the import changes it: put it back afterwards
    import second_choice  # noqa: F401

    for name in two_ranks.RUNS:
        alone = {"shared_prefix": False, "max_stream_tokens": None}
        stock = two_ranks.train(name, models["qwen2_5_vl"], toy_data, tmp_path / "one", **alone)
        check_learned(stock)
        check_equal(stock, read_log(tmp_path / "two" / name), leave_out=("num_tokens",))
