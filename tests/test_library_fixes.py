"""The silent failures of the pinned libraries: each test shows the stock behaviour and that ours differs."""

import json
import shutil
import sys

import pytest
import torch

from helpers.judging import inputs_of
from helpers.stages import (
    changed_keys,
    check_output,
    common,
    data_arguments,
    mean_token,
    train_grpo,
    train_sft,
    weights,
)
from unifiedreward_think.models import loading, tiny
from unifiedreward_think.training.trainers import resume as resuming

MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
LEGACY_NAMES = ("qwen2_vl", "qwen2_5_vl", "llava_onevision")  # families whose stock resume restores almost nothing
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "up_proj", "down_proj"]}


@pytest.fixture
def forward_inputs(monkeypatch):
    """The keyword arguments of every forward over whole prompts, of every model from load_model."""
    seen = []
    load = loading.load_model

    def keep(_, positional, keyword):
        if keyword["input_ids"].shape[1] > 1:
            seen.append(keyword)

    def load_watched(*args, **kwargs):
        model = load(*args, **kwargs)
        model.register_forward_pre_hook(keep, with_kwargs=True)
        return model

    monkeypatch.setattr(loading, "load_model", load_watched)
    monkeypatch.setattr("unifiedreward_think.backends.transformers.load_model", load_watched)
    return seen


def aligned(inputs, image_token):
    """Whether the token types mark exactly the picture tokens."""
    return inputs["mm_token_type_ids"].ne(0).equal(inputs["input_ids"].eq(image_token))


def image_token(folder):
    return json.loads((folder / "config.json").read_text())["image_token_id"]


def complete(folder, toy_data):
    from unifiedreward_think.backends.transformers import TransformersBackend
    from unifiedreward_think.engine.sampling import Sampling
    from unifiedreward_think.media import open_image
    from unifiedreward_think.training import grpo

    backend = TransformersBackend(str(folder), dtype="float32", device="cpu", cache_mib=0)
    rows, _ = grpo.load_rows(data_arguments(toy_data, "train"))
    rows = [{**row, "images": [open_image(path) for path in row["images"]]} for row in rows]
    backend.complete(rows, sampling=Sampling(max_new_tokens=2), seeds=[[0]] * len(rows))
    return inputs_of(backend, rows)


@pytest.mark.parametrize("family", MROPE)
def test_token_types_reach_every_forward_and_matter(family, models, toy_data, tmp_path, forward_inputs):
    inputs = complete(models[family], toy_data)
    assert len(forward_inputs) == 1
    train_sft(models[family], toy_data, tmp_path / "sft")
    train_grpo(models[family], toy_data, tmp_path / "grpo", shared_prefix=False)
    assert len(forward_inputs) >= 1 + 2 + 2 * 2
    assert all(aligned(inputs, image_token(models[family])) for inputs in forward_inputs)

    model = loading.load_model(models[family], dtype="float32").eval()
    stock = {key: value for key, value in inputs.items() if key != "mm_token_type_ids"}
    with torch.inference_mode():
        logits = model(**inputs).logits
        try:  # Qwen2.5-VL falls back to text positions without a word; the others have come to refuse
            assert not torch.allclose(logits, model(**stock).logits, atol=1e-3)
        except ValueError as error:
            assert family != "qwen2_5_vl" and "`mm_token_type_ids` is missing" in str(error)


def test_a_processor_that_pads_right_would_misalign_grpo_rows(models, toy_data, tmp_path, forward_inputs, monkeypatch):
    folder = models["qwen2_5_vl"]
    assert loading.load_processor(folder).tokenizer.padding_side == "left"
    load = loading.load_processor

    def load_padding_right(*args, **kwargs):
        processor = load(*args, **kwargs)
        processor.tokenizer.padding_side = "right"
        return processor

    monkeypatch.setattr(loading, "load_processor", load_padding_right)
    train_grpo(folder, toy_data, tmp_path, shared_prefix=False)
    assert not all(aligned(inputs, image_token(folder)) for inputs in forward_inputs)


def test_a_processor_saved_with_right_padding_is_loaded_with_left(models, tmp_path):
    from transformers import AutoProcessor

    stock = AutoProcessor.from_pretrained(models["qwen2_5_vl"], padding_side="right")
    stock.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.padding_side == "right"
    assert loading.load_processor(tmp_path).tokenizer.padding_side == "left"


def test_videos_are_frames_in_every_row(toy_data):
    from unifiedreward_think.training import grpo, sft

    rows = [
        row
        for stage, split in ((sft, "cold_start"), (grpo, "train"))
        for row in stage.load_rows(data_arguments(toy_data, split))[0]
    ]
    for row in rows:
        kinds = [part["type"] for turn in row["prompt"] for part in turn["content"]]
        assert set(kinds) == {"image", "text"} and kinds.count("image") == len(row["images"])
        assert not any("video" in part for turn in row["prompt"] for part in turn["content"])
    assert sorted(len(row["images"]) for row in rows) == [1, 1, 2, 2, 8, 8, 16, 16]


def test_native_video_would_be_missing_from_the_training_forward(models, toy_data, tmp_path, monkeypatch):
    """Stock TRL: generation sees the video, the forward that is trained does not."""
    # torchcodec reads no PNG in a process in which another library has loaded its own zlib before.
    monkeypatch.setattr("transformers.image_utils.is_torchcodec_usable", lambda **_: False)
    import trl
    from datasets import Dataset
    from PIL import Image

    frames = [str(file) for file in sorted((toy_data / "media").glob("*.png"))[:4]]
    for file in frames:
        assert Image.open(file).size == (32, 32)
    content = [{"type": "video", "video": frames}, {"type": "text", "text": "Describe."}]
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": content}]}] * 4)
    model = loading.load_model(models["qwen2_5_vl"], dtype="float32")
    seen = {True: [], False: []}
    model.register_forward_pre_hook(
        lambda _, args, given: seen[torch.is_grad_enabled()].append("pixel_values_videos" in given), with_kwargs=True
    )
    generate = model.generate

    def watched(**given):
        seen[False].append("pixel_values_videos" in given)
        return generate(**given)

    model.generate = watched
    options = {"num_generations": 2, "max_completion_length": 4, "beta": 0.0, **common(max_steps=1)}
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=mean_token,
        args=trl.GRPOConfig(output_dir=str(tmp_path), **options),
        train_dataset=rows,
        processing_class=loading.load_processor(models["qwen2_5_vl"]),
    )
    trainer.train()
    assert any(seen[False]) and not any(seen[True])


def resume(train, model, toy_data, whole, again):
    """Go on from the middle of the run in `whole`; return the tensors that end up different, and the log."""
    again.mkdir()
    shutil.copytree(whole / "checkpoint-2", again / "checkpoint-2")
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    log = train(model, toy_data, again, checkpoint=str(again / "checkpoint-2"), **options)
    return changed_keys(whole, again), log


@pytest.mark.parametrize(
    ("train", "family"),
    [*((train_sft, family) for family in tiny.FAMILIES), *((train_grpo, family) for family in tiny.FAMILIES)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(train, family, models, toy_data, tmp_path, monkeypatch):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    log = train(models[family], toy_data, tmp_path / "whole", **options)
    different, resumed = resume(train, models[family], toy_data, tmp_path / "whole", tmp_path / "ours")
    assert not different
    assert [(row["loss"], row["grad_norm"]) for row in resumed] == [(row["loss"], row["grad_norm"]) for row in log]
    if family in LEGACY_NAMES:
        monkeypatch.setattr(resuming.ReloadOnResume, "_stock_resume_works", lambda self: True)
        different, _ = resume(train, models[family], toy_data, tmp_path / "whole", tmp_path / "stock")
        assert different


def test_a_grpo_run_resumed_with_the_stock_sampler_would_see_other_rows(models, toy_data, tmp_path, monkeypatch):
    import trl

    from unifiedreward_think.training.trainers.grpo import GRPOTrainer

    monkeypatch.setattr(GRPOTrainer, "get_train_dataloader", trl.GRPOTrainer.get_train_dataloader)
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    train_grpo(models["qwen3_vl"], toy_data, tmp_path / "whole", **options)
    different, _ = resume(train_grpo, models["qwen3_vl"], toy_data, tmp_path / "whole", tmp_path / "again")
    assert different


def test_a_resumed_lora_run_equals_an_uninterrupted_one(models, toy_data, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lora": LORA}
    train_sft(models["qwen2_5_vl"], toy_data, tmp_path / "whole", **options)
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "whole/checkpoint-2", tmp_path / "again/checkpoint-2")
    checkpoint = str(tmp_path / "again/checkpoint-2")
    train_sft(models["qwen2_5_vl"], toy_data, tmp_path / "again", checkpoint=checkpoint, **options)
    assert not changed_keys(tmp_path / "whole", tmp_path / "again")


@pytest.mark.parametrize("train", [train_sft, train_grpo])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_an_output_folder_loads_anywhere(train, family, lora, models, toy_data, tmp_path):
    train(models[family], toy_data, tmp_path, lora=lora)
    check_output(tmp_path, models[family])
    changed = changed_keys(models[family], tmp_path)
    if lora:
        adapted = tuple(f"{name}.weight" for name in LORA["lora_target_modules"])
        assert changed == {key for key in weights(tmp_path) if key.endswith(adapted) and "vis" not in key}
        assert (tmp_path / "adapter" / "adapter_config.json").exists()


def test_lora_would_change_a_frozen_vision_tower_of_the_same_layer_names(models, toy_data, tmp_path, monkeypatch):
    source = models["qwen2_5_vl"]
    train_sft(source, toy_data, tmp_path / "ours", lora=LORA)
    assert not [key for key in changed_keys(source, tmp_path / "ours") if "visual." in key]
    from peft import LoraConfig

    monkeypatch.setattr(LoraConfig, "exclude_modules", property(lambda self: None, lambda self, _: None), raising=False)
    train_sft(source, toy_data, tmp_path / "stock", lora=LORA)
    assert [key for key in changed_keys(source, tmp_path / "stock") if "visual." in key]


def test_a_run_is_pushed_once_and_whole_when_asked(models, toy_data, tmp_path, monkeypatch):
    import huggingface_hub
    from transformers import Trainer

    pushed = []
    monkeypatch.setattr(huggingface_hub, "upload_folder", lambda **options: pushed.append(options))
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, token=None: setattr(self, "hub_model_id", "me/judge"))
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, **_: pytest.fail("TRL pushed a folder of its own"))
    push = {"push_to_hub": True, "hub_strategy": "end"}
    train_sft(models["qwen2_5_vl"], toy_data, tmp_path, save_strategy="steps", save_steps=1, **push)
    assert [(row["repo_id"], row["folder_path"]) for row in pushed] == [("me/judge", tmp_path)]
    assert "unifiedreward-think" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_split(family, models, toy_data, tmp_path):
    whole = train_sft(models[family], toy_data, tmp_path / "whole")
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    split = train_sft(models[family], toy_data, tmp_path / "split", **parts)
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in split] == pytest.approx([row[key] for row in whole], rel=1e-3), key


@pytest.mark.parametrize(
    ("kind", "options", "model_options", "reason"),
    [
        ("SFTConfig", {"fsdp": "full_shard"}, {}, "fsdp with use_cpu"),
        ("GRPOConfig", {"fsdp": "full_shard"}, {}, "fsdp with use_cpu"),
        ("SFTConfig", {"max_length": 512}, {}, "max_length: would cut"),
        ("SFTConfig", {"model_init_kwargs": {"dtype": "float16"}}, {}, "model_init_kwargs: would be ignored"),
        ("GRPOConfig", {}, {"load_in_4bit": True}, "load_in_4bit"),
        ("GRPOConfig", {"num_iterations": 2, "save_strategy": "steps", "save_steps": 3}, {}, "inside a rollout"),
        ("SFTConfig", {"push_to_hub": True}, {}, "set hub_strategy to end"),
    ],
)
def test_an_option_that_would_silently_do_something_else_is_refused(kind, options, model_options, reason, tmp_path):
    import trl

    from unifiedreward_think.training import run
    from unifiedreward_think.training.arguments import TrainingExtras

    config = getattr(trl, kind)
    base = {"max_length": None} if kind == "SFTConfig" else {"num_generations": 2}
    run.refuse(config(output_dir=str(tmp_path), **{**base, **common()}), trl.ModelConfig(), TrainingExtras())
    args = config(output_dir=str(tmp_path), **{**base, **common(**options)})
    with pytest.raises(SystemExit, match=reason):
        run.refuse(args, trl.ModelConfig(**model_options), TrainingExtras())


def test_fsdp_on_the_cpu_would_be_plain_data_parallelism(tmp_path):
    import trl
    from accelerate import Accelerator

    args = trl.SFTConfig(output_dir=str(tmp_path), max_length=None, **common(fsdp="full_shard"))
    assert args.fsdp and "FSDP" not in str(Accelerator(cpu=True).distributed_type)


@pytest.mark.parametrize("module", ["sft", "grpo"])
def test_deepspeed_without_a_launcher_is_refused(module, monkeypatch):
    from importlib import import_module

    stage = import_module(f"unifiedreward_think.training.{module}")
    monkeypatch.setattr(sys, "argv", [module, "--deepspeed", "configs/deepspeed/zero3_cpu.json"])
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit, match="deepspeed needs a launcher"):
        stage.main()
