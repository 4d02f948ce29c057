"""Every config is parsed by its stage's own parser, writes every knob out, and keeps the paper's values."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from unifiedreward_think.training import run
from unifiedreward_think.training.arguments import DataArguments, SharedPrefixArguments, StreamArguments, TrainingExtras
from unifiedreward_think.training.grpo import RewardArguments, load_reward
from unifiedreward_think.training.rejection_sampling import SamplingArguments

ROOT = Path(__file__).parents[1]
# configs/data holds declarations of sources, which tests/test_data_sources.py reads.
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "data")
PAPER = [path for path in CONFIGS if path.parent.name != "toy"]

# What decides the result, whatever today's defaults of the libraries are.
DATA = {"layout", "style", "frames", "decoder", "order_seed"}
WEIGHTS = {"freeze_vision", "dtype", "bf16", "per_device_train_batch_size", "gradient_accumulation_steps", "seed"}
WEIGHTS |= {"learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm"}
WEIGHTS |= {"optim", "adam_beta1", "adam_beta2", "adam_epsilon"}
SFT = {"num_train_epochs", "max_length", "completion_only_loss", "packing", "shared_prefix", "loss_type"}
GRPO = {"orders", "reward_funcs", "reward_weights", "beta", "use_bias_correction_kl", "loss_type", "scale_rewards"}
GRPO |= {"num_generations", "num_iterations", "epsilon", "importance_sampling_level", "temperature", "top_p", "top_k"}
GRPO |= {"repetition_penalty", "max_completion_length", "mask_truncated_completions", "use_vllm", "log_completions"}
GRPO |= {"shared_prefix", "max_stream_tokens", "embedding_cache", "dynamic_sampling"}
SAMPLING = {"orders", "samples", "temperature", "top_p", "max_new_tokens", "seed", "dtype", "require_correct"}
SAMPLING |= {"require_strict", "require_arithmetic", "keep", "hard_below"}
LORA = {"lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"}


def stage(path):
    """Stage of a config, told by its name: "sft", "grpo" or "sampling"."""
    stages = {"cold_start": "sft", "rejection_sft": "sft", "rejection_sampling": "sampling", "grpo": "grpo"}
    return next(stages[prefix] for prefix in stages if path.stem.startswith(prefix))


def parse(path, monkeypatch, *arguments):
    """Parse a config as its stage does.

    A machine without a GPU refuses bf16 unless told to train on the CPU, so this says so on the command line, as a user
    there would; the file itself stays as it is.
    """
    types = [DataArguments, SamplingArguments]
    if stage(path) != "sampling":
        from trl import GRPOConfig, ModelConfig, SFTConfig

        types = [DataArguments, TrainingExtras, StreamArguments, SFTConfig, ModelConfig]
        if stage(path) == "grpo":
            types[2:] = [RewardArguments, SharedPrefixArguments, GRPOConfig, ModelConfig]
        arguments = ("--use_cpu", "true", *arguments)
    monkeypatch.setattr("sys.argv", ["stage", "--config", str(path), *arguments])
    return run.parse(*types)


@pytest.fixture
def without_deepspeed(tmp_path):
    """Copy of a config without its `deepspeed` line, which would start a process group; the file it names is tested
    below."""

    def copy(path):
        lines = path.read_text().splitlines(keepends=True)
        target = tmp_path / path.name
        target.write_text("".join(line for line in lines if not line.startswith("deepspeed:")))
        return target

    return copy


def names(paths):
    return [str(path.relative_to(ROOT / "configs")) for path in paths]


every_config = pytest.mark.parametrize("path", CONFIGS, ids=names(CONFIGS))
every_paper_config = pytest.mark.parametrize("path", PAPER, ids=names(PAPER))


def test_each_family_and_the_toy_world_have_a_config_of_every_stage():
    for folder in {path.parent for path in CONFIGS}:
        stems = {path.stem for path in folder.glob("*.yaml")}
        assert stems >= {"cold_start", "rejection_sampling", "rejection_sft", "grpo", "grpo_direct"}, folder


@every_config
def test_a_config_is_parsed_by_the_parser_of_its_stage(path, monkeypatch, without_deepspeed):
    parsed = parse(without_deepspeed(path), monkeypatch)
    values = {key: value for part in parsed for key, value in vars(part).items()}
    written = yaml.safe_load(path.read_text())
    changed = {"use_cpu", "deepspeed"}
    # Everything written arrives, with the type it should have: a number in quotes or 1e-6 without a point would not.
    wrong = {k: (v, values[k]) for k, v in written.items() if k not in changed and not same(values[k], v)}
    assert not wrong
    parsed[0].prompts  # noqa: B018 - the prompt folder and layout exist


def same(parsed, written):
    """Whether a value arrived; the trainers turn some names into enums, and `none` into no tracker at all."""
    if isinstance(written, str):
        return str(getattr(parsed, "value", parsed)) == written or parsed == ([] if written == "none" else [written])
    return parsed == written and type(parsed) is type(written)


@pytest.mark.parametrize("name", ["cold_start", "rejection_sft", "rejection_sampling", "grpo"])
def test_an_unknown_key_fails_in_the_file_and_on_the_command_line(name, monkeypatch, tmp_path, without_deepspeed):
    path = without_deepspeed(ROOT / "configs" / "qwen2_5_vl_7b" / f"{name}.yaml")
    with pytest.raises(ValueError, match="--answers"):
        parse(path, monkeypatch, "--answers", "8")
    path.write_text(path.read_text() + "\nlearning_rat: 1.0e-6\n")
    with pytest.raises(ValueError, match="learning_rat"):
        parse(path, monkeypatch)


@every_config
def test_every_algorithmic_knob_is_written_out(path):
    needed = DATA | {"sft": WEIGHTS | SFT, "grpo": WEIGHTS | GRPO, "sampling": SAMPLING}[stage(path)]
    written = yaml.safe_load(path.read_text())
    needed |= LORA if written.get("use_peft") else set()
    if "llava" not in str(path):  # cuts a picture into tiles of a fixed size
        needed |= {"max_pixels"} if path in PAPER else set()
    assert needed <= written.keys(), f"write out {sorted(needed - written.keys())}"
    if stage(path) == "grpo":
        assert {"num_train_epochs", "max_steps"} & written.keys()


@every_config
def test_a_config_starts_with_what_it_is_what_it_needs_and_where_its_values_come_from(path):
    head = path.read_text().splitlines()[:3]
    assert all(line.startswith("# ") for line in head)
    assert any(word in head[0] for word in ("Stage", "stage", "ablation"))
    assert any(word in head[1] for word in ("GPU", "H100", "H20", "CPU"))
    assert head[2].startswith(("# Sources: ", "# Values: "))


@every_config
def test_the_rewards_of_a_config_exist(path):
    for name in yaml.safe_load(path.read_text()).get("reward_funcs", []):
        assert callable(load_reward(name))


@every_paper_config
def test_the_values_of_the_paper_hold(path):
    config = yaml.safe_load(path.read_text())
    if stage(path) == "sft":
        assert (config["per_device_train_batch_size"], config["gradient_accumulation_steps"]) == (1, 16)  # on 8 GPUs
        assert (config["num_train_epochs"], config["learning_rate"]) == (3, 2.5e-6)
        assert config["lr_scheduler_type"] == "cosine" and "# 8 x H100" in path.read_text()
    if stage(path) == "grpo":
        gpus = 8 if "# 8 x H100" in path.read_text() else 64
        assert f"# {gpus} x H" in path.read_text()
        completions = gpus * config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
        assert completions == 64 * 8 and config["num_generations"] == 8
        assert config["beta"] == 0.04
        assert config["reward_funcs"] == ["format_reward", "accuracy_reward"] and config["reward_weights"] == [1.0, 1.0]
        if not config.get("use_peft"):
            assert config["learning_rate"] == 1e-6


@every_config
def test_the_direct_ablation_differs_from_grpo_in_what_it_is_about_alone(path):
    if path.stem != "grpo_direct":
        assert yaml.safe_load(path.read_text())["style"] == "cot"
        return
    direct, cot = (yaml.safe_load(file.read_text()) for file in (path, path.with_name("grpo.yaml")))
    differing = {key for key in direct.keys() | cot.keys() if direct.get(key) != cot.get(key)}
    assert (
        {"style"}
        <= differing
        <= {
            "style",
            "model_name_or_path",
            "output_dir",
            "train_files",
            "max_completion_length",
            "max_steps",
            "num_train_epochs",
        }
    )


def test_the_stages_of_a_family_hand_over_to_each_other():
    for folder in {path.parent for path in CONFIGS}:
        cold, sampling, sft, grpo = (
            yaml.safe_load((folder / f"{name}.yaml").read_text())
            for name in ("cold_start", "rejection_sampling", "rejection_sft", "grpo")
        )
        assert sampling["model_name_or_path"] == sft["model_name_or_path"] == cold["output_dir"]
        assert sft["train_files"] == [f"{sampling['output_dir']}/kept.jsonl"]
        assert grpo["train_files"] == [f"{sampling['output_dir']}/hard.jsonl"]
        assert grpo["model_name_or_path"] == sft["output_dir"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "deepspeed").glob("*.json")), ids=lambda path: path.stem)
def test_a_deepspeed_file_is_zero_3_and_takes_its_batch_sizes_from_the_trainer(path):
    settings = json.loads(path.read_text())
    assert settings["zero_optimization"]["stage"] == 3
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert all(settings[key] == "auto" for key in sizes if key in settings)


@every_config
def test_the_deepspeed_file_of_a_config_exists(path):
    named = yaml.safe_load(path.read_text()).get("deepspeed")
    assert named is None or (ROOT / named).is_file()


def test_a_copy_of_a_config_is_a_config(tmp_path, monkeypatch):
    """A user's first step: copy a file and change a value on the command line, which wins over the file."""
    path = tmp_path / "mine.yaml"
    shutil.copy(ROOT / "configs" / "toy" / "rejection_sampling.yaml", path)
    monkeypatch.setattr("sys.argv", ["stage", "--config", str(path), "--samples", "7"])
    _, args = run.parse(DataArguments, SamplingArguments)
    assert args.samples == 7 and args.keep == "first"
