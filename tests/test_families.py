"""Every family passes SFT, generation and GRPO on a tiny random model; others are refused by name."""

import json

import pytest
from PIL import Image

from helpers.stages import changed_keys, data_arguments, train_grpo, train_sft, weights
from unifiedreward_think.media import open_image
from unifiedreward_think.models import tiny
from unifiedreward_think.models.families import FAMILIES as TABLE
from unifiedreward_think.models.loading import (
    UnsupportedModelError,
    freeze_vision,
    load_model,
    load_processor,
    vision_tower,
)

FAMILIES = pytest.mark.parametrize("family", tiny.FAMILIES)
VISION_KEYS = {"llava_onevision": "vision_tower."}  # in the files; "visual." in all others


def in_vision(key, family):
    return VISION_KEYS.get(family, "visual.") in key


def test_every_supported_family_has_a_tiny_model():
    assert set(tiny.FAMILIES) == set(TABLE)


@FAMILIES
def test_a_family_passes_sft_and_only_the_vision_tower_stays_as_it_was(family, models, toy_data, tmp_path):
    log = train_sft(models[family], toy_data, tmp_path)
    assert log[1]["loss"] < log[0]["loss"]
    changed = changed_keys(models[family], tmp_path)
    assert not {key for key in changed if in_vision(key, family)}
    assert changed == {key for key in weights(tmp_path) if not in_vision(key, family)}


@FAMILIES
def test_a_family_passes_grpo_on_frames_and_only_the_vision_tower_stays_as_it_was(family, models, toy_data, tmp_path):
    log = train_grpo(models[family], toy_data, tmp_path)
    assert all(row["reward_std"] > 0 and row["grad_norm"] > 0 for row in log)
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6) and log[1]["kl"] > 0
    changed = changed_keys(models[family], tmp_path)
    assert not {key for key in changed if in_vision(key, family)}
    assert changed == {key for key in weights(tmp_path) if not in_vision(key, family)}


def test_a_vision_tower_that_is_not_frozen_is_trained(models, toy_data, tmp_path):
    train_sft(models["qwen2_5_vl"], toy_data, tmp_path, freeze=False)
    assert any("visual." in key for key in changed_keys(models["qwen2_5_vl"], tmp_path))


@FAMILIES
def test_a_batch_gives_the_completions_of_its_rows_alone(family, models, toy_data):
    from unifiedreward_think.backends.transformers import TransformersBackend
    from unifiedreward_think.engine.sampling import Sampling
    from unifiedreward_think.training import grpo

    backend = TransformersBackend(str(models[family]), dtype="float32", device="cpu")
    rows, _ = grpo.load_rows(data_arguments(toy_data, "train"))
    prompts = [{**row, "images": [open_image(file) for file in row["images"]]} for row in rows]
    seeds = [[1, 2], [3, 4], [1, 2], [7, 8]]
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature, top_p=0.95, max_new_tokens=12)
        batch = backend.complete(prompts, sampling=sampling, seeds=seeds)
        alone = [backend.complete([p], sampling=sampling, seeds=[s])[0] for p, s in zip(prompts, seeds, strict=True)]
        assert batch == alone
        assert batch == backend.complete(prompts[::-1], sampling=sampling, seeds=seeds[::-1])[::-1]
        assert all((row[0] == row[1]) == (temperature == 0) for row in batch)


@FAMILIES
def test_freezing_by_the_prefix_visual_would_have_frozen_nothing(family, models):
    model = load_model(models[family])
    assert not [name for name, _ in model.named_parameters() if name.startswith("visual.")]
    assert freeze_vision(model) == sum(p.numel() for p in vision_tower(model).parameters()) > 10_000
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("llava_qwen", "LLaVA-NeXT layout"), ("qwen2", "supported: qwen2_vl"), ("no_such_type", "supported: qwen2_vl")],
)
def test_another_model_type_is_refused_by_name(model_type, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnsupportedModelError, match=f"'{model_type}' is not supported.*{reason}"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["does/not/exist", "outputs/gone"])
def test_a_model_that_is_not_there_is_named(name):
    with pytest.raises(UnsupportedModelError, match=f"^{name}: no folder of a model here, and not .*check the path"):
        load_model(name)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"a folder without config\.json; name one that holds a model"):
        load_model(tmp_path)


def test_pixel_limits_are_set_and_impossible_ones_refused(models):
    picture = Image.new("RGB", (64, 64))
    patches = []
    for limits in ({}, {"max_pixels": 256}, {"min_pixels": 4096, "max_pixels": 4096}):
        processor = load_processor(models["qwen2_5_vl"], **limits)
        patches.append(len(processor.image_processor([picture], return_tensors="pt")["pixel_values"]))
    assert patches == [16, 4, 64]
    with pytest.raises(UnsupportedModelError, match="min_pixels 2048 is above max_pixels 1024"):
        load_processor(models["qwen2_5_vl"], min_pixels=2048)
    with pytest.raises(UnsupportedModelError, match="fixed tile size"):
        load_processor(models["llava_onevision"], max_pixels=1024)
