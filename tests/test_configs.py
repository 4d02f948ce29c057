"""Every config is parsed by its stage's own parser, writes every knob out, and keeps the paper's values."""

import json
import shutil
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import yaml

from unifiedreward_think.backends.choose import BACKENDS
from unifiedreward_think.training import parsing, rejection_sampling
from unifiedreward_think.training.arguments import DataArguments, SharedPrefixArguments, StreamArguments, TrainingExtras
from unifiedreward_think.training.grpo import RewardArguments, load_reward

ROOT = Path(__file__).parents[1]
# configs/data holds declarations of sources, which tests/test_data_sources.py reads.
YAMLS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "data")
OVERLAYS = [path for path in YAMLS if path.stem == "lora"]  # lie over configs
CONFIGS = [path for path in YAMLS if path not in OVERLAYS]
PAPER = [path for path in CONFIGS if path.parent.name != "toy"]

# What decides the result, whatever today's defaults of the libraries are.
DATA = {"form", "layout", "style", "frames", "decoder", "order_seed"}
WEIGHTS = {"freeze_vision", "dtype", "bf16", "per_device_train_batch_size", "gradient_accumulation_steps", "seed"}
WEIGHTS |= {"learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm"}
WEIGHTS |= {"optim", "adam_beta1", "adam_beta2", "adam_epsilon"}
SFT = {"point_share", "num_train_epochs", "max_length", "completion_only_loss", "packing", "shared_prefix", "loss_type"}
GRPO = {"orders", "reward_funcs", "reward_weights", "beta", "use_bias_correction_kl", "loss_type", "scale_rewards"}
GRPO |= {"num_generations", "num_iterations", "epsilon", "importance_sampling_level", "temperature", "top_p", "top_k"}
GRPO |= {"repetition_penalty", "max_completion_length", "mask_truncated_completions", "use_vllm", "log_completions"}
GRPO |= {"point_share", "shared_prefix", "max_stream_tokens", "embedding_cache", "dynamic_sampling"}
SAMPLING = {"orders", "samples", "temperature", "top_p", "max_new_tokens", "seed", "dtype", "require_correct"}
SAMPLING |= {"require_strict", "require_arithmetic", "keep", "hard_below"}
LORA = {"use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "learning_rate"}


def stage(path):
    """Stage of a config, told by its name: "sft", "grpo" or "sampling"."""
    stages = {"cold_start": "sft", "rejection_sft": "sft", "rejection_sampling": "sampling", "grpo": "grpo"}
    stages["mine"] = "sampling"
    return next(stages[prefix] for prefix in stages if path.stem.startswith(prefix))


def parse(path, monkeypatch, *arguments):
    """Parse a config as its stage does.

    A machine without a GPU refuses bf16 unless told to train on the CPU, so this says so on the command line, as a user
    there would; the file itself stays as it is.
    """
    types, options = rejection_sampling.ARGUMENTS, {"without": rejection_sampling.NO_ARGUMENTS}
    if stage(path) != "sampling":
        types, options = [DataArguments, TrainingExtras, StreamArguments], {"trl": ["SFTConfig", "ModelConfig"]}
        if stage(path) == "grpo":
            types[2:], options["trl"][0] = [RewardArguments, SharedPrefixArguments], "GRPOConfig"
        arguments = ("--use_cpu", "true", *arguments)
    monkeypatch.setattr("sys.argv", ["stage", "--config", str(path), *arguments])
    return parsing.parse(*types, **options)


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
        assert stems >= {"cold_start", "rejection_sampling", "rejection_sft", "grpo", "grpo_direct", "lora"}, folder


@every_config
def test_a_config_is_parsed_by_the_parser_of_its_stage(path, monkeypatch, without_deepspeed):
    parsed = parse(without_deepspeed(path), monkeypatch)
    values = {key: value for part in parsed for key, value in vars(part).items()}
    written = yaml.safe_load(path.read_text())
    changed = {"use_cpu", "deepspeed"}
    # Everything written arrives, with the type it should have: a number in quotes or 1e-6 without a point would not.
    wrong = {k: (v, values[k]) for k, v in written.items() if k not in changed and not same(values[k], v)}
    assert not wrong
    assert next(part for part in parsed if hasattr(part, "templates")).templates()  # the prompt folder exists


def same(parsed, written):
    """Whether a value arrived; the trainers turn some names into enums, and `none` into no tracker at all."""
    if isinstance(written, str):
        return str(getattr(parsed, "value", parsed)) == written or parsed == ([] if written == "none" else [written])
    return parsed == written and type(parsed) is type(written)


@pytest.mark.parametrize("name", ["cold_start", "rejection_sft", "rejection_sampling", "grpo"])
def test_an_unknown_key_fails_in_the_file_and_on_the_command_line(name, monkeypatch, capsys, without_deepspeed):
    path = without_deepspeed(ROOT / "configs" / "qwen2_5_vl_7b" / f"{name}.yaml")
    with pytest.raises((ValueError, SystemExit)) as stopped:
        parse(path, monkeypatch, "--answers", "8")
    assert "--answers" in f"{stopped.value}{capsys.readouterr().err}"
    path.write_text(path.read_text() + "\nlearning_rat: 1.0e-6\n")
    with pytest.raises(ValueError, match="learning_rat"):
        parse(path, monkeypatch)


@pytest.mark.parametrize("name", ["cold_start", "rejection_sampling", "grpo"])
def test_keys_of_the_version_before_are_taken_with_a_note(name, monkeypatch, tmp_path, capsys):
    path, text = tmp_path / f"{name}.yaml", (ROOT / "configs" / "toy" / f"{name}.yaml").read_text()
    path.write_text(text)
    today = list(map(vars, parse(path, monkeypatch)[:2]))
    assert not capsys.readouterr().err
    path.write_text(text.replace("prompts: ", "prompt_dir: ").replace("orders: one", "orders: random"))
    assert list(map(vars, parse(path, monkeypatch)[:2])) == today
    notes = capsys.readouterr().err.splitlines()
    assert notes[0].startswith("note: `prompt_dir` is now `prompts`; the old name goes with version")
    assert notes[1:] == [notes[0].replace("prompt_dir", "orders: random").replace("prompts", "orders: one")] * (
        "orders" in text
    )
    path.write_text(text + "prompt_dir: configs/toy/prompts\n")
    with pytest.raises(ValueError, match="prompt_dir is now prompts; leave one of them out"):
        parse(path, monkeypatch)


@pytest.mark.parametrize("name", ["cold_start", "rejection_sampling", "grpo"])
def test_flags_are_taken_with_both_signs_and_under_their_old_names(name, monkeypatch, capsys):
    path = ROOT / "configs" / "toy" / f"{name}.yaml"
    shown = []
    for words in (("--prompts", "configs", "--frame-cache", "a_b"), ("--prompt_dir=configs", "--frame_cache", "a_b")):
        shown.append(next(part for part in parse(path, monkeypatch, *words) if hasattr(part, "templates")))
    assert shown[0] == shown[1] and (shown[0].prompts, shown[0].frame_cache) == ("configs", "a_b")
    assert capsys.readouterr().err.count("note: ") == 1


@every_config
def test_every_algorithmic_knob_is_written_out(path):
    needed = DATA | {"sft": WEIGHTS | SFT, "grpo": WEIGHTS | GRPO, "sampling": SAMPLING}[stage(path)]
    written = yaml.safe_load(path.read_text())
    if "llava" not in str(path):  # cuts a picture into tiles of a fixed size
        needed |= {"max_pixels"} if path in PAPER else set()
    assert needed <= written.keys(), f"write out {sorted(needed - written.keys())}"
    if stage(path) == "grpo":
        assert {"num_train_epochs", "max_steps"} & written.keys()


@pytest.mark.parametrize("path", OVERLAYS, ids=names(OVERLAYS))
def test_the_lora_overlay_fits_every_training_stage_beside_it(path, monkeypatch):
    written = yaml.safe_load(path.read_text())
    assert LORA <= written.keys() <= LORA | {"deepspeed"}
    configs = [config for config in CONFIGS if config.parent == path.parent and stage(config) != "sampling"]
    assert len(configs) >= 4
    for config in configs:
        assert yaml.safe_load(config.read_text()).get("deepspeed") is None or written["deepspeed"] is None
        parsed = parse(config, monkeypatch, "--overlay", str(path))
        values = {key: value for part in parsed for key, value in vars(part).items()}
        assert not {key: values[key] for key, value in written.items() if not same(values[key], value)}
        assert values["output_dir"] == yaml.safe_load(config.read_text())["output_dir"]


@pytest.mark.parametrize("path", YAMLS, ids=names(YAMLS))
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


@pytest.mark.parametrize("path", [path for path in CONFIGS if stage(path) == "sampling"], ids=str)
def test_every_key_of_a_sampling_config_means_something_to_its_backend(path, monkeypatch):
    chosen = parse(path, monkeypatch)[2]
    backend = getattr(import_module(f"unifiedreward_think.backends.{chosen.backend}"), BACKENDS[chosen.backend])
    assert chosen.given().keys() <= signature(backend).parameters.keys()


@every_paper_config
def test_sampling_on_gpus_is_by_vllm_where_it_takes_the_family(path, monkeypatch):
    if stage(path) == "sampling":
        written = yaml.safe_load(path.read_text())
        takes = "llava" not in str(path)  # tests/test_vllm_families.py fails when vLLM loads it
        assert written["backend"] == ("vllm" if takes else "transformers")
        assert takes == ({"tensor_parallel_size", "max_model_len"} <= written.keys())
        assert takes or "vLLM 0.30 does not load this family" in path.read_text()


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
    _, args, _ = parse(path, monkeypatch, "--samples", "7")
    assert args.samples == 7 and args.keep == "first"
