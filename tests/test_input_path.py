"""Prompts are read ahead in a thread, once each; features from the disk are those of the tower, or none at all."""

import threading

import pytest
import torch
from stages import data_arguments, train_grpo, train_sft

from unifiedreward_think.data.rows import to_dataset
from unifiedreward_think.engine import streams as shared_prefix
from unifiedreward_think.engine.feature_cache import EmbeddingCache
from unifiedreward_think.errors import InputError
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
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        reader.take(row)


def test_training_reads_each_prompt_once_and_in_the_thread(models, toy_data, tmp_path, monkeypatch):
    names, read = [], prefetch.Reader.read

    def noted(self, row):
        names.append(threading.current_thread().name)
        return read(self, row)

    monkeypatch.setattr(prefetch.Reader, "read", noted)
    train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, num_iterations=2, max_steps=4)
    assert len(names) == 4 and all(name.startswith("prefetch") for name in names)


def encoded(cache, network, prompt):
    """Encode with a cache; return the features as a flat list, and how often the tower ran."""
    runs = []
    hook = network.model.get_submodule(TOWERS[network.config.model_type]).register_forward_hook(
        lambda *_: runs.append(1)
    )
    features = cache.encode_pictures(network, prompt).features
    hook.remove()
    return [*features.pooler_output, *(one for layer in features.deepstack_features for one in layer)], len(runs)


TOWERS = {"qwen2_5_vl": "visual", "qwen3_vl": "visual", "llava_onevision": "vision_tower"}


@pytest.mark.parametrize("family", TOWERS)
def test_stored_features_are_those_of_the_tower_and_of_no_other(family, models, rows, tmp_path):
    network = load_model(models[family], dtype="float32")
    fields = prefetch.Reader(load_processor(models[family])).read(to_dataset(rows[:1])[0]).fields
    prompt = shared_prefix.read_prompt(network, fields)
    fresh, runs = encoded(EmbeddingCache(tmp_path, network, "no"), network, prompt)
    stored, again = encoded(EmbeddingCache(tmp_path, network, "no"), network, prompt)
    assert (runs, again) == (1, 0)
    assert len(stored) == len(fresh) and all(a.equal(b) for a, b in zip(stored, fresh, strict=True))
    with torch.no_grad():
        shared_prefix.picture_parameters(network)[-1].add_(1e-3)
    other, runs = encoded(EmbeddingCache(tmp_path, network, "no"), network, prompt)
    assert runs == 1 and not all(a.equal(b) for a, b in zip(other, fresh, strict=True))
    cache = EmbeddingCache(tmp_path, network, "bf16")
    assert encoded(cache, network, prompt)[1] == 1  # another number type
    brighter = {**prompt.pixels, "pixel_values": prompt.pixels["pixel_values"] + 0.01}
    assert encoded(cache, network, shared_prefix.Prompt(prompt.ids, prompt.positions, brighter))[1] == 1
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 4


def test_a_damaged_file_is_named(models, rows, tmp_path):
    network = load_model(models["qwen2_5_vl"], dtype="float32")
    fields = prefetch.Reader(load_processor(models["qwen2_5_vl"])).read(to_dataset(rows[:1])[0]).fields
    cache, prompt = EmbeddingCache(tmp_path, network, "no"), shared_prefix.read_prompt(network, fields)
    cache.encode_pictures(network, prompt)
    (file,) = tmp_path.glob("*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=file.stem + ".* is damaged"):
        cache.encode_pictures(network, prompt)


def test_a_run_on_stored_features_takes_the_same_steps_without_the_tower(models, toy_data, tmp_path, monkeypatch):
    options = {"max_steps": 3, "max_completion_length": 16}  # two steps an epoch
    plain = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path / "plain", **options)
    cache = str(tmp_path / "cache")
    train_grpo(models["qwen2_5_vl"], toy_data, tmp_path / "first", embedding_cache=cache, **options)
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 4

    def unused(*_):
        raise AssertionError("the tower ran")

    monkeypatch.setattr(shared_prefix, "encode_pictures", unused)
    second = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path / "second", embedding_cache=cache, **options)
    assert second == plain


@pytest.mark.parametrize("options", [{"freeze": False}, {"shared_prefix": False}])
def test_a_cache_that_would_be_wrong_or_unused_is_refused(options, models, toy_data, tmp_path):
    with pytest.raises(InputError, match=r"embedding_cache: (needs freeze_vision: true,|has no effect)"):
        train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, embedding_cache=str(tmp_path / "cache"), **options)


@pytest.mark.parametrize("shared_prefix", [False, True], ids=["padded", "streams"])
def test_sft_reads_ahead_in_worker_processes_and_takes_the_same_steps(shared_prefix, models, toy_data, tmp_path):
    plain, ahead = (
        train_sft(
            models["qwen2_5_vl"], toy_data, tmp_path / str(workers), shared_prefix=shared_prefix,
            dataloader_num_workers=workers,
        )
        for workers in (0, 2)
    )  # fmt: skip
    assert plain == ahead
