"""LoRA by one flag: defaults that fit each family and stage, and adapter folders wherever a model is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from helpers.stages import TOY_PROMPTS, changed_keys, common, read_log, shapes, train_grpo, train_sft, weights
from unifiedreward_think.errors import InputError
from unifiedreward_think.models import adapters, tiny
from unifiedreward_think.models.loading import load_model, load_processor
from unifiedreward_think.training import grpo, sft

REPO = Path(__file__).parents[1]
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0}


@pytest.fixture
def command(models, toy_data, tmp_path, monkeypatch):
    """Run a stage as its command does, on a config without a word of LoRA; strings are flags."""

    def run(stage, family, *flags):
        split, own = "cold_start", {"max_length": None}
        if stage is grpo:
            split, own = "train", {"num_generations": 2, "beta": 0.04, "max_completion_length": 8}
            own["shared_prefix"] = family != "qwen3_5"
        config = {
            "model_name_or_path": str(models[family]),
            "output_dir": str(tmp_path / "run"),
            "train_files": [str(toy_data / f"{split}.jsonl")],
            "prompts": str(TOY_PROMPTS),
            "frame_cache": str(toy_data / "frames"),
            "limit": 4,
            "dtype": "float32",
            **common(),
            **own,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        monkeypatch.setattr(sys, "argv", ["stage", "--config", str(path), *flags])
        stage.main()
        return tmp_path / "run"

    return run


def language_weights(folder):
    """Keys of the linear layers of the language model, told from the file: matrices of its blocks but convolutions."""
    return {
        key
        for key, value in weights(folder).items()
        if ".layers." in key and value.dim() == 2 and "vis" not in key and key.endswith(".weight")
    }


@pytest.mark.parametrize("stage", [sft, grpo], ids=["sft", "grpo"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_one_flag_trains_the_linear_layers_of_the_language_model(stage, family, command, models):
    output = command(stage, family, "--use_peft", "true")
    assert shapes(output) == shapes(models[family])
    changed = changed_keys(models[family], output)
    assert changed <= language_weights(output)
    # The rewards of a random model are all 0 in GRPO, so its KL term alone moves the weights: not every one of them.
    assert changed == language_weights(output) if stage is sft else (output / "adapter").is_dir()
    settings = json.loads((output / "adapter" / adapters.CONFIG).read_text())
    assert settings["lora_dropout"] == 0 and settings["base_model_name_or_path"] == str(models[family])
    trained = {key.split(".lora_")[0] for key in load_file(output / "adapter" / "adapter_model.safetensors")}
    assert len(trained) == len(language_weights(output))


def test_a_dropout_that_was_asked_for_is_kept_or_refused_with_the_fix(command):
    flags = ("--use_peft", "true", "--lora_dropout", "0.05")
    output = command(sft, "qwen3_vl", *flags)
    assert json.loads((output / "adapter" / adapters.CONFIG).read_text())["lora_dropout"] == 0.05
    shutil.rmtree(output)
    with pytest.raises(InputError, match=r"set lora_dropout: 0\.0"):
        command(grpo, "qwen3_vl", *flags)


def test_one_layer_may_be_named_and_an_unknown_one_is(command, models):
    output = command(sft, "qwen3_vl", "--use_peft", "true", "--lora_target_modules", "q_proj")
    changed = changed_keys(models["qwen3_vl"], output)
    assert changed and all("q_proj" in key for key in changed)
    with pytest.raises(InputError, match=r"no layer qproj; leave the key out .*language_model.*q_proj"):
        command(sft, "qwen3_vl", "--resume", "never", "--overwrite", "true", "--use_peft", "true",
                "--lora_target_modules", "qproj", "v_proj")  # fmt: skip


def test_a_tower_that_no_adapter_would_reach_is_not_left_out_in_silence(command):
    with pytest.raises(SystemExit, match="freeze_vision: false with use_peft"):
        command(sft, "qwen3_vl", "--use_peft", "true", "--freeze_vision", "false")


def test_an_overlay_replaces_values_of_the_config_and_yields_to_the_command_line(command, tmp_path):
    overlay = tmp_path / "lora.yaml"
    overlay.write_text("use_peft: true\nlora_r: 4\nlearning_rate: 2.0e-3\n")
    output = command(sft, "qwen2_5_vl", "--overlay", str(overlay), "--lora_r", "2")
    arguments = json.loads((output / "run.json").read_text())["arguments"]
    assert (arguments["use_peft"], arguments["lora_r"], arguments["learning_rate"]) == (True, 2, 2e-3)
    overlay.write_text("lora_rank: 4\n")
    with pytest.raises(InputError, match=r"config\.yaml with .*lora\.yaml: Unknown arguments .*lora_rank"):
        command(sft, "qwen2_5_vl", "--overlay", str(overlay))


# Adapter folders as models


@pytest.fixture(scope="module")
def trained(models, toy_data, tmp_path_factory):
    """Family -> run of SFT with an adapter, which has the merged weights too."""
    root, runs = tmp_path_factory.mktemp("adapters"), {}

    def run(family):
        if family not in runs:
            runs[family] = root / family
            train_sft(models[family], toy_data, runs[family], lora=LORA, learning_rate=1e-2)
        return runs[family]

    return run


def equal(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_adapter_folder_is_a_model(family, trained, models):
    whole, adapter = trained(family), trained(family) / "adapter"
    network = load_model(adapter)
    assert equal(network.state_dict(), load_model(whole).state_dict())
    assert not equal(network.state_dict(), load_model(models[family]).state_dict())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert load_processor(adapter).chat_template == load_processor(whole).chat_template


def test_an_adapter_is_judged_with_as_its_merged_weights(trained, toy_data, tmp_path, monkeypatch):
    from unifiedreward_think.evaluation import __main__ as evaluation

    texts = {}
    for model in ("adapter", "."):
        arguments = ["--model", trained("qwen2_5_vl") / model, "--input", toy_data / "heldout.jsonl", "--frames", "4"]
        arguments += ["--output", tmp_path / model / "out", "--prompts", TOY_PROMPTS, "--max-new-tokens", "8"]
        arguments += ["--frame-cache", toy_data / "frames", "--dtype", "float32"]
        monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
        evaluation.main()
        lines = (tmp_path / model / "out" / "judgments.jsonl").read_text().splitlines()
        texts[model] = [json.loads(line)["completion"] for line in lines]
    assert texts["adapter"] == texts["."] and texts["."]


def test_an_adapter_without_a_processor_has_that_of_its_base(trained, tmp_path):
    bare = tmp_path / "adapter"
    bare.mkdir()
    for name in (adapters.CONFIG, "adapter_model.safetensors"):
        shutil.copy(trained("qwen2_5_vl") / "adapter" / name, bare)
    assert load_processor(bare).tokenizer.padding_side == "left"


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("train", [train_sft, train_grpo], ids=["sft", "grpo"])
def test_a_stage_starts_from_an_adapter(train, lora, trained, toy_data, tmp_path):
    before = trained("qwen2_5_vl")
    log = train(before / "adapter", toy_data, tmp_path / "next", lora=lora, shared_prefix=True)
    if train is train_grpo:  # the reference is the model that training starts from, not its base
        assert log[0]["kl"] == pytest.approx(0, abs=1e-6)
    changed = changed_keys(before, tmp_path / "next")
    assert changed and not [key for key in changed if "visual." in key]
    assert (tmp_path / "next" / "start").is_dir() == bool(lora)
    if lora:  # an adapter on an adapter
        whole = load_model(tmp_path / "next").state_dict()
        assert equal(load_model(tmp_path / "next" / "adapter").state_dict(), whole)


def test_a_run_from_an_adapter_that_was_stopped_goes_on(trained, toy_data, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lora": LORA}
    start = trained("qwen2_5_vl") / "adapter"
    train_sft(start, toy_data, tmp_path / "whole", **options)
    (tmp_path / "again" / "start.new").mkdir(parents=True)  # what a kill while merging leaves
    shutil.copytree(tmp_path / "whole/start", tmp_path / "again/start")
    (tmp_path / "again/start/tokenizer.json").unlink()  # what a scratch file system may do
    shutil.copytree(tmp_path / "whole/checkpoint-2", tmp_path / "again/checkpoint-2")
    train_sft(start, toy_data, tmp_path / "again", checkpoint=str(tmp_path / "again/checkpoint-2"), **options)
    assert not changed_keys(tmp_path / "whole", tmp_path / "again")
    assert not (tmp_path / "again" / "start.new").exists()


@pytest.fixture
def copied(trained, tmp_path):
    """Return a function: a copy of an adapter whose settings are changed."""

    def copy(family="qwen2_5_vl", *, told=False, **changes):
        folder = tmp_path / "adapter"
        shutil.copytree(trained(family) / "adapter", folder)
        settings = json.loads((folder / adapters.CONFIG).read_text())
        (folder / adapters.CONFIG).write_text(json.dumps({**settings, **changes}))
        if not told:
            (folder / adapters.BASE).unlink()
        return folder

    return copy


def drop(folder, wanted=lambda key: False):
    """Take weights out of an adapter's file."""
    path = folder / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if wanted(key)}, path)


def test_an_adapter_of_another_size_or_family_names_both_and_the_fix(copied, models, tmp_path):
    small = tmp_path / "small"
    tiny.build("qwen2_5_vl", small, corpus=["a"], size=tiny.Size(hidden=32))
    adapter = copied(base_model_name_or_path=str(small))
    fix = rf"correct base_model_name_or_path in {adapter}"
    with pytest.raises(adapters.AdapterError, match=rf"{adapter} was not trained on {small}: .*has the shape .*{fix}"):
        load_model(adapter)
    other = models["llava_onevision"]
    shutil.rmtree(adapter)
    copied("qwen3_vl", told=True, base_model_name_or_path=str(other))
    with pytest.raises(adapters.AdapterError, match=rf"{adapter} was not trained on {other}: .*for qwen3_vl; {fix}"):
        load_model(adapter)


def test_an_adapter_that_lacks_weights_or_has_too_many_is_refused(copied):
    adapter = copied()
    drop(adapter, lambda key: "layers.0." not in key)
    with pytest.raises(adapters.AdapterError, match=r"it lacks \d+ weights for that base, .*layers\.0\."):
        load_model(adapter)
    shutil.rmtree(adapter)
    copied(target_modules=["q_proj"])
    with pytest.raises(adapters.AdapterError, match="of its weights have no layer there"):
        load_model(adapter)


@pytest.mark.parametrize(("base", "reason"), [("outputs/gone", "base of .* cannot be loaded"), (None, "names no base")])
def test_an_adapter_without_its_base_is_told(base, reason, copied):
    with pytest.raises(adapters.AdapterError, match=rf"{reason}.*base_model_name_or_path"):
        load_model(copied(base_model_name_or_path=base))


def test_a_base_that_was_trained_again_is_noticed(trained, tmp_path, models):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(models["qwen2_5_vl"], base)
    shutil.copytree(trained("qwen2_5_vl") / "adapter", adapter)
    settings = json.loads((adapter / adapters.CONFIG).read_text())
    (adapter / adapters.CONFIG).write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
    load_model(adapter)
    save_file({key: value + 1 for key, value in weights(base).items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(adapters.AdapterError, match=rf"not trained on {base}: its weights have changed"):
        load_model(adapter)


def test_an_adapter_is_taken_from_the_hub_by_its_name(trained, tmp_path, monkeypatch):
    """From a cache of the Hub that holds one repository."""
    from huggingface_hub import constants

    repository = tmp_path / "models--me--judge"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(trained("qwen2_5_vl") / "adapter", repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert equal(load_model("me/judge").state_dict(), load_model(trained("qwen2_5_vl")).state_dict())
    assert load_processor("me/judge").tokenizer.padding_side == "left"


def test_the_plan_of_a_stage_that_starts_from_an_adapter_reads_its_base(trained, models):
    from unifiedreward_think.training.memory.architecture import load_architecture

    assert load_architecture(str(trained("qwen3_vl") / "adapter")) == load_architecture(str(models["qwen3_vl"]))


def test_vllm_refuses_an_adapter_and_the_named_command_merges_it(trained, tmp_path, monkeypatch, capsys):
    from unifiedreward_think.backends.vllm import VllmBackend

    adapter = str(trained("llava_onevision") / "adapter")
    with pytest.raises(InputError, match=rf"merge it first with python -m (\S+) {adapter} --output") as caught:
        VllmBackend(adapter)
    assert adapters.__name__ in str(caught.value)
    script = ["bash", str(REPO / "scripts" / "serve.sh"), "vllm", adapter]
    refused = subprocess.run(script, capture_output=True, text=True)
    assert refused.returncode == 2 and "merge it first" in refused.stderr
    monkeypatch.setattr(sys, "argv", ["adapters", adapter, "--output", str(tmp_path / "merged")])
    adapters.main()
    assert not changed_keys(trained("llava_onevision"), tmp_path / "merged")
    assert load_processor(tmp_path / "merged").chat_template
    with pytest.raises(adapters.AdapterError, match="is not empty"):
        adapters.main()
    monkeypatch.setattr(sys, "argv", ["adapters", str(tmp_path / "merged"), "--output", str(tmp_path / "again")])
    with pytest.raises(adapters.AdapterError, match="nothing to merge"):
        adapters.main()


@pytest.mark.parametrize("family", [name for name in tiny.FAMILIES if name != "qwen3_5"])
def test_a_log_of_grpo_with_one_flag_is_that_of_the_layers_named_by_hand(family, models, toy_data, tmp_path):
    """The default is a choice of layers and nothing else."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    train_grpo(models[family], toy_data, tmp_path / "named", lora={**LORA, "lora_target_modules": names})
    train_grpo(models[family], toy_data, tmp_path / "flag", lora=LORA)
    assert read_log(tmp_path / "named") == read_log(tmp_path / "flag")
