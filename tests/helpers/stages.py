"""Run the training stages in this process, as small as they go. Not a test file; imports TRL only when called."""

import json
import math
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from unifiedreward_think.training import grpo, sft

TOY_PROMPTS = Path(__file__).parents[2] / "configs" / "toy" / "prompts"


def common(**options):
    """Trainer options of a run on the CPU; `options` win."""
    chosen = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "activation_checkpointing": False,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return {**chosen, **options}


def data_arguments(toy_data, split, *, limit=4):
    """The first rows of a toy file: one of each task, with 2 images, 16 frames, 1 image and 8 frames."""
    from unifiedreward_think.training.arguments import DataArguments

    return DataArguments(
        train_files=[str(toy_data / f"{split}.jsonl")],
        prompts=str(TOY_PROMPTS),
        frames=8,
        frame_cache=str(toy_data / "frames"),
        limit=limit,
    )


def train_sft(
    model, toy_data, output, *, checkpoint=None, freeze=True, lora=None, rows=None, shared_prefix=False, **options
):
    """Train as `training.sft` does and return the log."""
    from trl import ModelConfig, SFTConfig

    from unifiedreward_think.training import sft
    from unifiedreward_think.training.arguments import StreamArguments, TrainingExtras

    data = data_arguments(toy_data, "cold_start")
    loaded, counts = sft.load_rows(data)
    args = SFTConfig(output_dir=str(output), max_length=None, **common(**options))
    model_args = ModelConfig(**{"model_name_or_path": str(model), "dtype": "float32", **(lora or {})})
    stream = StreamArguments(shared_prefix=shared_prefix)
    extras = TrainingExtras(freeze_vision=freeze)
    sft.train(rows or loaded, counts, data, extras, args, model_args, checkpoint, stream)
    return read_log(output)


def train_grpo(
    model,
    toy_data,
    output,
    *,
    checkpoint=None,
    rewards=None,
    rows=None,
    freeze=True,
    lora=None,
    shared_prefix=None,
    max_stream_tokens=None,
    dynamic_sampling=0,
    embedding_cache=None,
    **options,
):
    """Train as `training.grpo` does and return the log; the reward of a random model is not zero here.

    The shared prefix is on where it covers the family.
    """
    from trl import GRPOConfig, ModelConfig

    from unifiedreward_think.training import grpo
    from unifiedreward_think.training.arguments import SharedPrefixArguments, TrainingExtras

    data = data_arguments(toy_data, "train")
    loaded, counts = grpo.load_rows(data)
    chosen = {"beta": 0.04, "num_generations": 2, "max_completion_length": 8, "log_completions": True}
    chosen |= {"num_completions_to_print": 0, **common(**options)}
    args = GRPOConfig(output_dir=str(output), **chosen)
    model_args = ModelConfig(**{"model_name_or_path": str(model), "dtype": "float32", **(lora or {})})
    own = grpo.RewardArguments()
    rewards = rewards or [*(grpo.load_reward(name) for name in own.reward_funcs), mean_token]
    arguments = (model_args, data, TrainingExtras(freeze_vision=freeze), own)
    if shared_prefix is None:
        shared_prefix = json.loads((Path(model) / "config.json").read_text())["model_type"] != "qwen3_5"
    arguments += (SharedPrefixArguments(shared_prefix, max_stream_tokens, embedding_cache, dynamic_sampling),)
    grpo.train(rows or loaded, counts, rewards, arguments, args, checkpoint)
    return read_log(output)


def mean_token(completion_ids, **_):
    """Reward the mean token number, so that completions of a random model differ in reward."""
    return [sum(ids) / len(ids) / 1000 for ids in completion_ids]


def read_log(output):
    """The logged steps, checked to be finite, without what depends on the machine."""
    rows = json.loads((Path(output) / "log_history.json").read_text())
    clock = ("time", "per_second", "memory")
    steps = [{k: v for k, v in row.items() if not any(word in k for word in clock)} for row in rows if "loss" in row]
    assert steps and all(math.isfinite(row["loss"]) for row in steps)
    return steps


def weights(folder):
    """The saved tensors by key name."""
    return load_file(Path(folder) / "model.safetensors")


def shapes(folder):
    """The shape of each saved tensor by key name."""
    return {name: tuple(tensor.shape) for name, tensor in weights(folder).items()}


def changed_keys(before, after):
    """Names of the tensors that differ; the names themselves must be the same."""
    old, new = weights(before), weights(after)
    assert set(old) == set(new)
    return {key for key in old if not old[key].equal(new[key])}


def check_output(folder, source):
    """What every trainer-made folder must hold to load anywhere."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    names = {file.name for file in folder.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
        "run.json",
    } <= names
    assert not [name for name in names if name.startswith(("adapter_", "run.json."))]
    assert shapes(folder) == shapes(source)  # merged from LoRA, or gathered from ZeRO-3, too
    model, problems = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(problems[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before = json.loads((source / "generation_config.json").read_text())
    assert model.generation_config.eos_token_id == before["eos_token_id"]
    assert AutoProcessor.from_pretrained(folder).chat_template
    run = json.loads((folder / "run.json").read_text())
    assert run["finished"] and run["versions"]["trl"] and run["counts"]["vision parameters frozen"] > 10_000
    assert run["arguments"]["model_name_or_path"] == str(source) and run["arguments"]["push_to_hub"] is False
    card = (folder / "README.md").read_text()
    assert f"stage *{run['stage']}*" in card and str(source) in card and "| loss |" in card


LENGTH = {sft: {"max_length": None}, grpo: {"num_generations": 2, "beta": 0.04, "max_completion_length": 8}}


SPLIT = {sft: "cold_start.jsonl", grpo: "train.jsonl"}


STAGES = pytest.mark.parametrize("stage", [sft, grpo], ids=["sft", "grpo"])


@pytest.fixture
def call(models, toy_data, tmp_path, monkeypatch):
    """Run a stage's command with a config of its own; keyword arguments change the config, strings are flags."""

    def run(stage, *flags, **changes):
        config = {
            "model_name_or_path": str(models["qwen2_5_vl"]),
            "output_dir": str(tmp_path / "run"),
            "train_files": [str(toy_data / SPLIT.get(stage, "train.jsonl"))],
            "prompts": str(TOY_PROMPTS),
            "frames": 8,
            "frame_cache": str(toy_data / "frames"),
            "limit": 4,
            "dtype": "float32",
            **(common() if stage in LENGTH else {}),
            **LENGTH.get(stage, {}),
            **changes,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        monkeypatch.setattr(sys, "argv", ["stage", "--config", str(tmp_path / "config.yaml"), *flags])
        stage.main()
        return tmp_path / "run"

    return run


def interrupt(trainer, after, monkeypatch):
    """Kill runs of this trainer class in the training step that follows `after` others."""
    step = trainer.training_step
    calls = []

    def training_step(self, *args, **kwargs):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", training_step)
