"""The transformers backend with tiny models: where it stops, native video, kills, and what it tells `generate`."""

import importlib
import io
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.judging import inputs_of, protocol, told
from unifiedreward_think.blocks import STOP_STRING
from unifiedreward_think.data.formats.loading import load_records
from unifiedreward_think.data.rows import shown_orders
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.prepare import open_items
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.models import tiny
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.toy import dataset

REPO = Path(__file__).parents[1]
TOY_PROMPTS = REPO / "configs" / "toy" / "prompts"
PIECES = ["</answer>", "</answer", ">", "<answer>", "</", "answer", " > ", "\n", "Image 1 is better", "</think>", "é"]


def asked(tmp_path, **changes):
    chosen = {
        "prompts": load_prompts("cot", path=TOY_PROMPTS),
        "sampling": Sampling(max_new_tokens=8),
        "frames": FrameSampling(frames=4, cache=tmp_path / "frames"),
        "samples": 1,
    }
    return protocol(**{**chosen, **changes})


@pytest.fixture(scope="module")
def backends(models):
    from unifiedreward_think.backends.transformers import TransformersBackend

    return cache(lambda family: TransformersBackend(str(models[family]), dtype="float32", device="cpu", batch_size=2))


@pytest.fixture
def records(toy_data):
    return load_records([str(toy_data / "heldout.jsonl")]).rows


@settings(deadline=None)  # the first example loads a model
@given(st.lists(st.sampled_from(PIECES), max_size=8), st.lists(st.sampled_from(PIECES), min_size=1, max_size=8))
def test_a_row_ends_with_the_token_that_completes_the_tag_wherever_tokens_are_cut(backends, said, says):
    backend = backends("qwen2_5_vl")
    tokenizer = backend._processor.tokenizer
    answer = tokenizer.encode("".join([*said, *says]))
    for count in range(1, len(answer) + 1):
        done = STOP_STRING in tokenizer.decode(answer[:count])
        assert backend._is_finished(answer[:count], Sampling(max_new_tokens=1000)) == done
        if done:
            break


def test_a_greedy_batch_ends_each_row_at_its_own_tag_and_says_stop(backends, records, tmp_path):
    """The model is made to say text of its own for each row; the rest of `generate` is real."""
    import torch

    backend = backends("qwen2_5_vl")
    tokenizer, network = backend._processor.tokenizer, backend._network
    texts = ["<answer>Image 1 is better</answer>", "<think>long</think><answer>Image 2 is better</answer>"]
    scripts = [tokenizer.encode(f"{text} and more and more") for text in texts]
    lengths = [len(tokenizer.encode(text)) for text in texts]
    step, rows_in_step = [0], []

    def forced(module, inputs, output):
        wanted = [script[step[0]] for script, length in zip(scripts, lengths, strict=True) if step[0] < length]
        output.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(wanted), output.logits.shape[-1]) * 100.0
        step[0] += 1
        rows_in_step.append(len(output.logits))
        return output

    hook = network.register_forward_hook(forced)
    rows = [row for row in records if row.task == "image_generation"][:1]
    rows = judge(rows, backend, asked(tmp_path, orders="both", sampling=Sampling(max_new_tokens=400)), tmp_path / "j")
    hook.remove()
    assert [(row.completion, row.finish_reason) for row in rows] == [(text, "stop") for text in texts]
    assert rows_in_step == [2] * lengths[0] + [1] * (lengths[1] - lengths[0])  # each left with its tag


@given(st.integers(1, 40), st.integers(0, 200))
@settings(deadline=None)
def test_a_cache_with_room_holds_what_that_of_transformers_holds(width, written):
    import torch
    from transformers.cache_utils import DynamicLayer

    from unifiedreward_think.engine.prefix_cache import DecodeLayout, SharedPrefixLayer

    draws = torch.Generator().manual_seed(0)
    prompt = torch.rand(2, 1, 1, width, 3, generator=draws)
    plain, shared = DynamicLayer(), SharedPrefixLayer(*prompt, 2, DecodeLayout())
    plain.update(*prompt.expand(-1, 2, -1, -1, -1))
    for _ in range(written):
        new = torch.rand(2, 2, 1, 1, 3, generator=draws)
        plain.update(*new)
        assert shared.update(*new) == (shared, shared)
    assert shared.prefix[0].equal(prompt[0])
    assert shared.keys.equal(plain.keys[:, :, width:]) and shared.values.equal(plain.values[:, :, width:])
    assert shared.get_seq_length() == plain.get_seq_length() == width + written


def test_layers_that_attend_to_a_window_are_refused(models, tmp_path):
    from unifiedreward_think.backends.transformers import TransformersBackend

    shutil.copytree(models["qwen2_5_vl"], tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    config["text_config"].pop("layer_types")
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layers of the type sliding_attention: .* use_sliding_window: false"):
        TransformersBackend(str(tmp_path / "model"), dtype="float32", device="cpu")


def varied(backend, monkeypatch):
    """Let every eighth token end a row: a random model would write to the limit, and nothing would ever be refilled."""
    ends = list(range(0, backend._network.config.get_text_config().vocab_size, 8))
    monkeypatch.setattr(backend, "_ends", set(ends))
    return ends


def alone(backend, records, asked, ends):
    """Greedy tokens of transformers itself, one prompt at a time."""
    import torch

    found = []
    for record in records:
        ((_, prompt),) = open_items([(record, shown_orders(record, "one", 0)[0])], asked, {})
        inputs = inputs_of(backend, [prompt])
        with torch.inference_mode():
            ids = backend._network.generate(
                **inputs, do_sample=False, max_new_tokens=asked.sampling.max_new_tokens, eos_token_id=ends
            )
        new = ids[0, inputs["input_ids"].shape[1] :]
        found.append((len(new), backend._processor.tokenizer.decode(new, skip_special_tokens=True)))
    return found


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Two pairs of each task: prompts of many lengths."""
    root = tmp_path_factory.mktemp("eight")
    dataset.write(root, cold_start=4, train=4, heldout=8)
    return load_records([str(root / "heldout.jsonl")]).rows


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_that_leave_and_join_write_what_they_would_write_alone(family, backends, eight, tmp_path, monkeypatch):
    backend = backends(family)
    ends = varied(backend, monkeypatch)
    greedy = asked(tmp_path, sampling=Sampling(max_new_tokens=16))
    wanted = alone(backend, eight, greedy, ends)
    assert len({length for length, _ in wanted}) > 2
    drawn = asked(tmp_path, sampling=Sampling(max_new_tokens=16, temperature=1.0, top_p=0.9), samples=2)
    samples = []
    for size in (1, 3, 8):
        monkeypatch.setattr(backend, "batch_size", size)
        rows = judge(eight, backend, greedy, tmp_path / f"greedy{size}")
        assert [row.completion for row in rows] == [text for _, text in wanted]
        assert {row.finish_reason for row in rows} <= {"stop", "length"}
        samples.append(told(judge(eight, backend, drawn, tmp_path / f"drawn{size}")))
    assert samples[0] == samples[1] == samples[2] and len({row.completion for row in samples[0]}) > 8


def test_a_prompt_is_read_once_for_all_its_samples_and_free_rows_are_refilled(backends, eight, tmp_path, monkeypatch):
    backend = backends("qwen2_5_vl")
    varied(backend, monkeypatch)
    monkeypatch.setattr(backend, "batch_size", 4)
    reads, steps, kept = [], [], []
    batch = importlib.import_module("unifiedreward_think.engine.decoding").DecodeBatch
    insert, decode_step = batch.insert, batch.decode_step

    def noting_insert(self, prefill, sequences):
        before = len(self.sequences)
        insert(self, prefill, sequences)
        reads.append((len(prefill.lengths), before, len(self.sequences)))

    def noting_step(self):
        decode_step(self)
        steps.append(len(self.sequences))
        layout, layer = self._cache.layout, self._cache.layers[0]
        kept.append(0 in layout.missed and set(layout.owners) == set(range(len(layout.lengths))))
        assert layer.prefix[0].shape[::2] == (len(layout.lengths), max(layout.lengths))

    monkeypatch.setattr(batch, "insert", noting_insert)
    monkeypatch.setattr(batch, "decode_step", noting_step)
    sampling = Sampling(max_new_tokens=16, temperature=1.0)
    rows = judge(eight, backend, asked(tmp_path, samples=3, sampling=sampling), tmp_path / "j")
    assert sum(prompts for prompts, _, _ in reads) == 8 and len(rows) == 24
    assert any(before for _, before, _ in reads)  # some joined rows that were writing
    assert max(after for _, _, after in reads) <= 12 and all(steps) and all(kept)
    count = len(reads)
    ((_, prompt),) = open_items([(eight[0], "ab")], asked(tmp_path), {})
    (two,) = backend.complete([prompt], sampling=Sampling(max_new_tokens=4), seeds=[[1, 2]])
    assert two[0] == two[1] and reads[count:] == [(1, 0, 1)]  # a greedy completion is written once


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generate_has_nothing_to_warn_of_whether_greedy_or_sampled(temperature, backends, records, tmp_path):
    from transformers.utils import logging as said

    said.warning_once.cache_clear()
    heard = logging.StreamHandler(io.StringIO())
    logging.getLogger("transformers").addHandler(heard)
    try:
        sampling = Sampling(max_new_tokens=2, temperature=temperature)
        judge(records[:1], backends("qwen2_5_vl"), asked(tmp_path, sampling=sampling), tmp_path / "j")
    finally:
        logging.getLogger("transformers").removeHandler(heard)
    assert heard.stream.getvalue() == ""


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_native_video_reaches_a_qwen_model_with_its_timing(family, backends, records, tmp_path, monkeypatch):
    backend, seen = backends(family), []
    read = backend._reader.read

    def noting(prompts, new_tokens):
        reading = read(prompts, new_tokens)
        seen.append(reading.inputs(range(len(prompts)))[0])
        return reading

    monkeypatch.setattr(backend._reader, "read", noting)
    films = [record for record in records if record.task.startswith("video")]
    rows = judge(films, backend, asked(tmp_path, native_video=True), tmp_path / "native")
    pictures = judge(films, backend, asked(tmp_path), tmp_path / "pictures")
    assert not any(row.error for row in rows) and {row.decoder for row in rows} == {"decord"}
    assert [row.completion for row in rows] != [row.completion for row in pictures]
    native, plain = seen
    assert "pixel_values_videos" in native and "pixel_values" not in native and "pixel_values_videos" not in plain
    assert len(native["video_grid_thw"]) == 3 and native["video_grid_thw"][:, 0].tolist() == [2, 2, 2]
    if family == "qwen2_5_vl":  # 2 of the 4 sampled frames in a grid step
        from unifiedreward_think.toy.world import CLIP_FRAMES, CLIP_RATE

        assert native["second_per_grid_ts"].tolist() == [2 / (4 * CLIP_RATE / CLIP_FRAMES)] * 3
    alone = [judge([film], backend, asked(tmp_path, native_video=True), tmp_path / film.id)[0] for film in films]
    assert told(alone) == told(rows)


def test_native_video_is_refused_for_a_family_that_was_not_trained_on_it(backends, records, tmp_path):
    with pytest.raises(ValueError, match="llava_onevision takes no native video; leave --native-video out"):
        judge(records, backends("llava_onevision"), asked(tmp_path, native_video=True), tmp_path / "j")


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_and_doubles_nothing(models, toy_data, tmp_path):
    """The evaluation command itself, killed while it loads, judges and ends; the last run finishes."""
    rows = [replace(row, id=f"{row.id}-{k}") for k in range(5) for row in records_of(toy_data)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    command = [sys.executable, "-m", "unifiedreward_think.evaluation", "--model", models["qwen2_5_vl"], "--input", data]
    command += ["--frame-cache", tmp_path / "frames", "--prompts", TOY_PROMPTS, "--frames", 4, "--dtype", "float32"]
    command += ["--max-new-tokens", 24, "--batch-size", 1]
    command = list(map(str, command))
    chance, output = random.Random(3), tmp_path / "killed" / "judgments.jsonl"
    before, quiet = {}, subprocess.DEVNULL
    for _ in range(3):
        child = subprocess.Popen(
            [*command, "--output", str(output.parent)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while child.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") <= len(before)):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.3)
        child.kill()
        assert child.wait() in (0, -signal.SIGKILL)
        after = load_judgments(output)
        assert yaml.safe_load(output.with_name("config.yaml").read_text())["arguments"]["batch_size"] == 1
        assert len(after) > len(before) and all(after[key] == row for key, row in before.items())
        before = after
    assert len(before) < 40
    subprocess.run([*command, "--output", str(output.parent)], check=True, stdout=quiet)
    subprocess.run([*command, "--output", str(tmp_path / "whole")], check=True, stdout=quiet)
    lines = output.read_bytes().count(b"\n")
    found, whole = load_judgments(output), load_judgments(tmp_path / "whole" / "judgments.jsonl")
    assert lines == len(found) == 40 and list(found) == list(whole)
    assert told(found.values()) == told(whole.values())
    assert all(found[key] == row for key, row in before.items())  # judged once: seconds included
    results = [(folder / "results.json").read_bytes() for folder in (output.parent, tmp_path / "whole")]
    assert results[0] == results[1]


def records_of(toy_data):
    return load_records([str(toy_data / "heldout.jsonl")]).rows


def test_the_tokens_of_a_prompt_count_its_pictures_and_no_padding(backends, records, tmp_path):
    backend, config = backends("qwen2_5_vl"), asked(tmp_path, sampling=Sampling(max_new_tokens=3, temperature=1.0))
    prompts = [prompt for _, prompt in open_items([(record, "ab") for record in records[:3]], config, {})]
    answers = backend.complete(prompts, sampling=config.sampling, seeds=[[1, 2]] * 3)
    lengths = [inputs_of(backend, [prompt])["input_ids"].shape[1] for prompt in prompts]
    assert [[one.tokens.prompt for one in row] for row in answers] == [[length] * 2 for length in lengths]
    assert len(set(lengths)) > 1 and all(1 <= one.tokens.completion <= 3 for row in answers for one in row)
