"""Prompts are read ahead in a thread, once each; features from the disk are those of the tower, or none at all."""

import copy
import threading

import pytest
import torch
from PIL import Image

from helpers.stages import data_arguments, train_grpo, train_sft
from unifiedreward_think.data.rows import to_dataset
from unifiedreward_think.engine import feature_cache, packing
from unifiedreward_think.engine.feature_cache import FeatureFolder
from unifiedreward_think.engine.features import image_keys
from unifiedreward_think.errors import InputError, MediaError
from unifiedreward_think.media import pixel_sha256
from unifiedreward_think.models.families import FAMILIES
from unifiedreward_think.models.loading import load_model, load_processor
from unifiedreward_think.training import grpo
from unifiedreward_think.training.trainers import prefetch


@pytest.fixture(scope="module")
def rows(toy_data):
    return grpo.load_rows(data_arguments(toy_data, "train"))[0]


@pytest.fixture(scope="module")
def reader(models):
    return prefetch.Reader(load_processor(models["qwen2_5_vl"]))


def test_neighbours_share_a_reading_and_a_batch_shown_again_is_not_read_again(reader, rows):
    first = reader([rows[0], rows[0], rows[1], rows[1]])
    readings = [row[prefetch.READING] for row in first]
    assert readings[0] is readings[1] is not readings[2] is readings[3]
    assert reader([rows[0], rows[0], rows[1], rows[1]]) is first
    assert reader([rows[1], rows[1]])[0][prefetch.READING] is not readings[2]


def test_a_reading_is_what_the_processor_makes_of_the_row(reader, models, rows):
    (row,) = to_dataset(rows[:1])
    ahead = reader.take(
        reader([rows[0] | {"images": [{"path": path, "bytes": None} for path in rows[0]["images"]]}])[0]
    )
    now = reader.take(row)
    assert ahead.images == row["images"] == now.images
    assert all(ahead.fields[key].equal(now.fields[key]) for key in now.fields) and "pixel_values" in now.fields


def test_an_error_of_the_thread_stops_the_run_with_the_name_of_the_file(reader, rows):
    (row,) = reader([{**rows[0], "images": [{"path": "/nowhere/gone.png", "bytes": None}]}])
    with pytest.raises(MediaError, match=r"gone\.png: no such file"):
        reader.take(row)


def test_training_reads_each_prompt_once_and_in_the_thread(models, toy_data, tmp_path, monkeypatch):
    names, read = [], prefetch.Reader.read

    def noted(self, row):
        names.append(threading.current_thread().name)
        return read(self, row)

    monkeypatch.setattr(prefetch.Reader, "read", noted)
    train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, num_iterations=2, max_steps=4)
    assert len(names) == 4 and all(name.startswith("prefetch") for name in names)


def encoded(folder, network, prompt, images):
    """Encode with a cache; return the features as a flat list, and how often the tower ran."""
    runs = []
    tower = network.get_submodule(FAMILIES[network.config.model_type].vision_tower)
    hook = tower.register_forward_hook(lambda *_: runs.append(1))
    features = folder.encode(network, prompt, images).features
    hook.remove()
    return [one for image in features for one in (*image.layers, image.grid) if one is not None], len(runs)


@pytest.fixture(scope="module")
def opened(models, rows):
    """A model of a family, its processor, and a prompt of two images with those."""

    def made(family):
        network, processor = load_model(models[family], dtype="float32"), load_processor(models[family])
        reading = prefetch.Reader(processor).read(to_dataset(rows[:1])[0])
        return network, processor.image_processor, packing.make_prompt(network, reading.fields), reading.images

    return made


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_stored_features_are_those_of_the_tower_and_of_no_other(family, opened, tmp_path):
    network, processor, prompt, images = opened(family)

    def folder(processor=processor, dtype="no"):
        return FeatureFolder(tmp_path, network, processor, dtype)

    fresh, runs = encoded(folder(), network, prompt, images)
    stored, again = encoded(folder(), network, prompt, images)
    assert (runs, again) == (1, 0)
    assert len(stored) == len(fresh) and all(a.equal(b) for a, b in zip(stored, fresh, strict=True))
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2
    assert encoded(folder(dtype="bf16"), network, prompt, images)[1] == 1
    brighter = copy.deepcopy(processor)
    brighter.image_mean = [0.4, 0.4, 0.4]
    assert encoded(folder(processor=brighter), network, prompt, images)[1] == 1
    other = [images[0], Image.new("RGB", images[1].size, "teal")]
    assert encoded(folder(), network, prompt, other)[1] == 1
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2 + 2 + 2 + 1  # an image that is known keeps its file
    with torch.no_grad():
        packing.vision_parameters(network)[-1].add_(1e-3)
    other, runs = encoded(folder(), network, prompt, images)
    assert runs == 1 and not all(a.equal(b) for a, b in zip(other, fresh, strict=True))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_lone_image_of_a_family_that_tiles_it_has_features_of_its_own(family, opened):
    network, _, _, images = opened(family)
    alone, together = (image_keys(network, [shown])[0][0] for shown in (images[:1], images))
    assert alone.pixels == together.pixels and (alone != together) == (family == "llava_onevision")


def _cut(data):
    return data[:-9]


def _flipped(data):
    return data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]


@pytest.mark.parametrize("damage", [_cut, _flipped, lambda data: b"", lambda data: b"\0" * len(data)])
def test_what_a_disk_has_damaged_is_encoded_again(damage, opened, tmp_path):
    network, processor, prompt, images = opened("qwen2_5_vl")
    folder = FeatureFolder(tmp_path, network, processor, "no")
    fresh, _ = encoded(folder, network, prompt, images)
    first, *_ = files = sorted(tmp_path.glob("*/*.safetensors"))
    before = [file.read_bytes() for file in files]
    first.write_bytes(damage(before[0]))
    again, runs = encoded(folder, network, prompt, images)
    assert runs == 1 and all(a.equal(b) for a, b in zip(again, fresh, strict=True))
    assert [file.read_bytes() for file in files] == before and encoded(folder, network, prompt, images)[1] == 0


def test_a_run_on_stored_features_takes_the_same_steps_without_the_tower(models, toy_data, tmp_path, monkeypatch):
    options = {"max_steps": 3, "max_completion_length": 16}  # two steps an epoch
    plain = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path / "plain", **options)
    cache = str(tmp_path / "cache")
    train_grpo(models["qwen2_5_vl"], toy_data, tmp_path / "first", embedding_cache=cache, **options)
    rows = grpo.load_rows(data_arguments(toy_data, "train"))[0]
    shown = {pixel_sha256(image) for row in to_dataset(rows) for image in row["images"]}
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == len(shown) > 4

    def unused(*_):
        raise AssertionError("the tower ran")

    monkeypatch.setattr(feature_cache, "encode_prompt", unused)
    second = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path / "second", embedding_cache=cache, **options)
    assert second == plain


@pytest.mark.parametrize("options", [{"freeze": False}, {"shared_prefix": False}])
def test_a_cache_that_would_be_wrong_or_unused_is_refused(options, models, toy_data, tmp_path):
    with pytest.raises(InputError, match=r"embedding_cache: (needs freeze_vision: true,|has no effect)"):
        train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, embedding_cache=str(tmp_path / "cache"), **options)


@pytest.mark.parametrize("shared_prefix", [False, True], ids=["padded", "packed"])
def test_sft_reads_ahead_in_worker_processes_and_takes_the_same_steps(shared_prefix, models, toy_data, tmp_path):
    plain, ahead = (
        train_sft(
            models["qwen2_5_vl"], toy_data, tmp_path / str(workers), shared_prefix=shared_prefix,
            dataloader_num_workers=workers,
        )
        for workers in (0, 2)
    )  # fmt: skip
    assert plain == ahead
