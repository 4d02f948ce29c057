"""Runs against a real vLLM: streams, votes, prompts that do not fit, a kill, the reward server in front."""

import json
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.judging import told
from helpers.processes import checked, started
from helpers.reward_server import LiveServer
from helpers.vllm_cpu import NAME, NEW_TOKENS, asked, held_out, misfits, prompt_rows
from unifiedreward_think.backends import BackendError, Completion
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.command import main
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.serving.client import RewardClient
from unifiedreward_think.serving.questions import Settings
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.tasks import TASKS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
DRAWS = Sampling(temperature=1.0, max_new_tokens=NEW_TOKENS)


def backend(server, **changes):
    return ServerBackend(NAME, server=server.url, **{"max_retries": 0, "stop": True, **changes})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_streamed_answer_is_that_of_a_request_at_once(temperature, vllm_judge, toy_world):
    sampling = replace(DRAWS, temperature=temperature)
    for (record, _), row in prompt_rows(held_out(toy_world, 1), asked("one_line", toy_world)):
        pieces = []
        streamed = backend(vllm_judge).stream(row, sampling=sampling, seed=3, on_text=pieces.append)
        [[at_once]] = backend(vllm_judge).complete([row], sampling=sampling, seeds=[[3]])
        assert streamed == at_once._replace(tokens=None), record.id  # a stream is left at the tag, before its usage
        assert "".join(pieces) == streamed.text and len(pieces) > 3


def test_samples_have_seeds_of_their_own_and_a_second_run_draws_them_again(vllm_judge, toy_world, tmp_path):
    protocol = asked("one_line", toy_world, sampling=DRAWS, samples=3)
    pairs = held_out(toy_world, 2)
    first, second = (judge(pairs, backend(vllm_judge), protocol, tmp_path / f"{name}.jsonl") for name in "ab")
    assert told(first) == told(second) and len(first) == len(pairs) * 2 * 3
    by_item = {(row.record_id, row.order): set() for row in first}
    for row in first:
        by_item[row.record_id, row.order].add(row.completion)
    assert sum(len(texts) > 1 for texts in by_item.values()) > len(by_item) / 2


def test_votes_of_the_script_are_counted_over_samples_and_orders(vllm_judge, toy_world, tmp_path):
    pairs = [record for record in held_out(toy_world, 2) if record.task == "image_understanding"]
    (tmp_path / "pairs.jsonl").write_text(json_lines(pairs))
    words = ["--backend", "server", "--server", vllm_judge.url, "--model", NAME, "--orders", "both", "--samples", 3]
    words += ["--temperature", 1, "--max-new-tokens", NEW_TOKENS, "--input", tmp_path / "pairs.jsonl"]
    assert (
        main("image_understanding", about="", arguments=[*map(str, words), "--output", str(tmp_path / "j.jsonl")]) == 0
    )
    results = [json.loads(line) for line in (tmp_path / "j.results.jsonl").read_text().splitlines()]
    assert [sum(row["votes"].values()) for row in results] == [6, 6] and not any(row["error"] for row in results)


def test_prompts_that_do_not_fit_fail_alone_with_vllms_reason(vllm_judge, toy_world, tmp_path):
    pairs, protocol = misfits(toy_world)
    rows = judge(pairs, backend(vllm_judge), protocol, tmp_path / "judgments.jsonl")
    errors = {row.record_id: row.error for row in rows if row.error}
    assert sorted(errors) == ["too long", "too many pictures"] and len(rows) == 2 * len(pairs)
    assert "the server answered 400" in errors["too long"] and "maximum context length" in errors["too long"]
    assert "At most 16 image" in errors["too many pictures"]


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_server_killed_in_the_middle_and_started_again_loses_no_judgment(vllm_judge, toy_world, tmp_path):
    """One run waits for the server to come back; one ends, and the same command goes on; neither differs in the end."""
    pairs, protocol = held_out(toy_world, 10), asked("one_line", toy_world)
    waits, ends = tmp_path / "waits.jsonl", tmp_path / "ends.jsonl"
    small = {"batch_size": 8, "concurrency": 8}
    with ThreadPoolExecutor(2) as threads:
        going_on = threads.submit(judge, pairs, backend(vllm_judge, max_retries=1000, **small), protocol, waits)
        ending = threads.submit(judge, pairs, backend(vllm_judge, **small), protocol, ends)
        while not (lines(waits) and lines(ends)):
            time.sleep(0.01)
        vllm_judge.end(signal.SIGKILL)
        with pytest.raises(BackendError, match="no server answers"):
            ending.result()
        vllm_judge.start()
        waited = going_on.result()
    before = [row for row in load_judgments(ends).values() if not row.error]
    assert 0 < len(before) < 2 * len(pairs) and not any(row.error for row in waited)
    resumed = judge(pairs, backend(vllm_judge, **small), protocol, ends)
    whole = judge(pairs, backend(vllm_judge), protocol, tmp_path / "whole.jsonl")
    assert told(resumed) == told(waited) == told(whole)
    assert all(row in resumed for row in before)  # not judged again: even the seconds are the same


def test_rejection_sampling_through_the_server_that_is_killed_writes_what_one_does_that_is_not(
    vllm_judge, toy_world, tmp_path
):
    config = {
        "model_name_or_path": NAME,
        "train_files": [str(toy_world / "train.jsonl")],
        "prompts": "configs/toy/prompts",
        "frames": 4,
        "decoder": "pyav",
        "frame_cache": str(toy_world / "frames"),
        "backend": "server",
        "server": vllm_judge.url,
        "stop": True,
        "batch_size": 4,
        "samples": 4,
        "temperature": 1.0,
        "max_new_tokens": NEW_TOKENS,
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-m", "unifiedreward_think.training.rejection_sampling"]
    command += ["--config", tmp_path / "config.yaml", "--output_dir"]
    checked([*command, tmp_path / "whole"])
    killed = tmp_path / "killed"
    with started([*command, killed]) as launch:
        while not lines(killed / "judgments.jsonl"):
            assert launch.poll() is None
            time.sleep(0.01)
        launch.kill()
    done = lines(killed / "judgments.jsonl")
    assert 0 < done < 160 and not (killed / "kept.jsonl").exists()
    checked([*command, killed])
    for name in ("kept.jsonl", "hard.jsonl"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() != b""
    counts = [json.loads((folder / "manifest.json").read_text())["counts"] for folder in (killed, tmp_path / "whole")]
    assert counts[0] == counts[1] and counts[0]["samples"] == 160


def test_the_reward_server_in_front_says_what_the_judge_says(vllm_judge, toy_world, tmp_path):
    protocol = asked("one_line", toy_world)
    settings = Settings(protocol)
    pairs = [record for record in held_out(toy_world, 4) if TASKS[record.task].media_kind != "video"]
    rows = {
        (row.record_id, row.order): row for row in judge(pairs, backend(vllm_judge), protocol, tmp_path / "j.jsonl")
    }
    with LiveServer(backend(vllm_judge), settings, parallel=2) as address:
        client = RewardClient(address)
        assert client.health()["status"] in ("ok", "degraded")
        for record in pairs:
            pictures = [Path(entry[0]) for entry in record.media]
            compares = TASKS[record.task].compares_media
            reply = client.compare(
                record.task,
                record.prompt,
                pictures if compares else list(record.answers),
                media=[] if compares else pictures,
                orders="both",
                reasoning=True,
            )
            found = {"ba" if row["shown_first"] else "ab": row["reasoning"] for row in reply["judgments"]}
            assert found == {order: rows[record.id, order].completion for order in ("ab", "ba")}, record.id


def test_a_completion_of_the_server_ends_at_the_tag_with_and_without_stop(vllm_judge, toy_world):
    (_, row) = prompt_rows(held_out(toy_world, 1), asked("one_line", toy_world))[0]
    sampling = Sampling(max_new_tokens=NEW_TOKENS)
    ((stopped,),) = backend(vllm_judge).complete([row], sampling=sampling, seeds=[[0]])
    ((cut,),) = backend(vllm_judge, stop=False).complete([row], sampling=sampling, seeds=[[0]])
    assert isinstance(stopped, Completion) and stopped._replace(tokens=None) == cut._replace(tokens=None)
    assert stopped.tokens.prompt == cut.tokens.prompt and stopped.tokens.completion < cut.tokens.completion
