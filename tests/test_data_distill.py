"""Distillation keeps chains of thought that agree with the label, within budget and rate, however often it stops."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import data_sources
from helpers.data import save, scripted, usage
from helpers.servers import reply, serving, transformers_serve
from unifiedreward_think.backends import BackendError
from unifiedreward_think.backends.teacher import Prices, Teacher, read_ledger
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.formats.loading import load_traces
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.records import Judgment, PreferenceRecord, Trace
from unifiedreward_think.trace_rules import rejections
from unifiedreward_think.traces import distillation
from unifiedreward_think.traces.distillation import main
from unifiedreward_think.verdict import parse, render

COUNT = 12


@pytest.fixture
def pairs(tmp_path):
    """Twelve pairs of two sources; the caption says which place should win and how the teacher answers."""
    data_sources.save_pictures(tmp_path, ["a.png", "b.png"])
    media = ((str(tmp_path / "a.png"),), (str(tmp_path / "b.png"),))
    rows = [
        Trace(
            record=PreferenceRecord(
                id=f"r{i:02d}",
                task="image_generation",
                prompt=f"picture {i}",
                media=media,
                preferred="tie" if i == 11 else 1,
                source="hpd" if i < 6 else "oip",
            )
        )
        for i in range(COUNT)
    ]
    return save(tmp_path / "records", rows)


def run(pairs, output, server, *options):
    main(["--input", str(pairs), "--output", str(output), "--model", "teacher", "--server", server.url, *options])
    return json.loads((output / "manifest.json").read_text())["counts"]


def test_only_traces_that_agree_with_the_label_and_add_up_are_kept(pairs, tmp_path, capsys):
    with serving(scripted) as server:
        counts = run(pairs, tmp_path / "out", server)
    traces = load_traces([str(tmp_path / "out" / "traces.jsonl")]).rows
    assert [trace.record.id for trace in traces] == [f"r{i:02d}" for i in (0, 5, 6, 7, 8, 9, 10)]
    assert {trace.order for trace in traces} == {"ab", "ba"}
    for trace in traces:
        verdict = parse(trace.completion, "Image")
        assert verdict.strict
        assert verdict.arithmetic_ok
        assert verdict.winner == (1 if trace.order == "ab" else 2)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reasons"] for row in rejected} == {
        "r01": ["wrong winner"],
        "r02": ["not strictly formed"],
        "r03": ["sums do not add up"],
        "r04": ["cut at the token limit"],
    }
    assert counts["pairs"] == 11  # the tie is not asked about
    assert {name: (found["kept"], found["of"]) for name, found in counts["kept by source"].items()} == {
        "hpd": (2, 6),
        "oip": (5, 5),
    }
    assert counts["kept by source"]["hpd"]["rate"].startswith("33.3% [")


def test_pairs_are_asked_about_in_parts_that_memory_can_hold_and_a_rerun_asks_nothing(
    pairs, tmp_path, capsys, monkeypatch
):
    with serving(scripted) as server:
        run(pairs, tmp_path / "whole", server)
        monkeypatch.setattr(distillation, "PAIRS", 4)
        run(pairs, tmp_path / "parts", server, "--limit", "6")
        run(pairs, tmp_path / "parts", server)
        assert len(server.bodies) == 2 * 11  # a longer limit asks about the others only
        assert len(list((tmp_path / "parts" / "judgments").iterdir())) == 3
        run(pairs, tmp_path / "parts", server)
        assert len(server.bodies) == 2 * 11
    for name in ("traces.jsonl", "rejected.jsonl", "manifest.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_budget_that_is_spent_in_one_part_leaves_the_answers_of_the_others_in_use(
    pairs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(distillation, "PAIRS", 4)
    prices = ["--usd-per-million", "10", "100", "--max-new-tokens", "1000", "--concurrency", "1"]
    with serving(scripted) as server:
        counts = run(pairs, tmp_path / "out", server, *prices, "--max-usd", "0.3")
    assert 4 < len(server.bodies) < 11
    assert counts["not asked"] == 11 - len(server.bodies)
    assert counts["pairs"] == 11
    assert "raise --max-usd and run again" in counts["stopped"]


def test_answers_about_other_pairs_are_not_mixed_in(pairs, tmp_path, capsys):
    with serving(scripted) as server:
        run(pairs, tmp_path / "out", server, "--limit", "1")
        with pytest.raises(DataError, match="holds the output of other settings or inputs"):
            run(save(tmp_path / "others", []), tmp_path / "out", server)


def test_the_budget_is_never_exceeded_and_a_higher_one_goes_on(pairs, tmp_path, capsys):
    prices = ["--usd-per-million", "10", "100", "--max-new-tokens", "1000", "--concurrency", "2"]
    actual = Prices(10, 100).usd(1000, 200)  # of one answer
    with serving(scripted) as server:
        counts = run(pairs, tmp_path / "out", server, *prices, "--max-usd", "0.4")
        sent = len(server.bodies)
        assert 0 < sent < 11
        assert counts["usd"] == pytest.approx(sent * actual)
        assert counts["usd"] <= 0.4
        assert counts["not asked"] == 11 - sent
        again = run(pairs, tmp_path / "out", server, *prices, "--max-usd", "0.4")
        assert len(server.bodies) - sent <= 1  # what is left of the budget may still pay for one
        more = run(pairs, tmp_path / "out", server, *prices, "--max-usd", "5")
    assert again["usd"] <= 0.4
    assert len(server.bodies) == 11
    assert more["usd"] == pytest.approx(11 * actual)
    assert more["not asked"] == 0
    assert more["kept"] == 7


def test_a_budget_that_is_spent_stops_before_the_next_batch(pairs, tmp_path, capsys):
    with serving(scripted) as server:
        options = ["--usd-per-million", "1", "1", "--max-usd", "0.000001"]
        counts = run(pairs, tmp_path / "out", server, *options)
    assert not server.bodies
    assert "raise --max-usd and run again" in counts["stopped"]
    assert counts["not asked"] == 11
    assert (tmp_path / "out" / "traces.jsonl").read_text() == ""


def test_a_reply_without_a_count_of_tokens_costs_the_most_it_can(pairs, tmp_path, capsys):
    def silent(body, nth):
        return 200, {}, reply("I cannot say.")

    with serving(silent) as server:
        options = ["--usd-per-million", "0", "10", "--max-new-tokens", "1000", "--limit", "3", "--max-usd", "1"]
        counts = run(pairs, tmp_path / "out", server, *options)
    assert counts["usd"] == pytest.approx(3 * 0.01)


def test_requests_keep_to_the_rate(pairs, tmp_path, capsys):
    times = []

    def noted(body, nth):
        times.append(time.monotonic())
        return scripted(body, nth)

    with serving(noted) as server:
        started = time.monotonic()  # not the first arrival: that may be late on a busy machine
        run(pairs, tmp_path / "out", server, "--rpm", "1200", "--limit", "6", "--concurrency", "6")
    assert times[-1] - started >= 5 * 0.05


def test_a_limit_without_prices_is_refused(pairs, tmp_path):
    with serving() as server, pytest.raises(BackendError, match="--max-usd needs --usd-per-million"):
        run(pairs, tmp_path / "out", server, "--max-usd", "3")


def test_a_prompt_that_is_missing_shows_before_a_teacher_is_looked_for(pairs, tmp_path):
    nobody = SimpleNamespace(url="http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="gone: no such file or folder; name a prompt template"):
        run(pairs, tmp_path / "out", nobody, "--prompts", str(tmp_path / "gone"))


def test_a_killed_run_goes_on_and_ends_with_the_same_traces(pairs, tmp_path, capsys):
    with serving(scripted) as server:
        run(pairs, tmp_path / "whole", server)

    def slow(body, nth):
        time.sleep(0.1)
        return scripted(body, nth)

    with serving(slow) as server:
        command = [sys.executable, "-m", "unifiedreward_think.data", "distill", "--input", pairs, "--model", "teacher"]
        command += ["--output", tmp_path / "killed", "--server", server.url, "--concurrency", "1"]
        command += ["--usd-per-million", "1", "1"]
        child = subprocess.Popen(list(map(str, command)), env=os.environ, stdout=subprocess.DEVNULL)
        while len(server.bodies) < 6 and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        before = len(server.bodies)
        counts = run(pairs, tmp_path / "killed", server, "--concurrency", "1", "--usd-per-million", "1", "1")
        asked_twice = len(server.bodies) - 11
    whole, killed = ((tmp_path / name / "traces.jsonl").read_text() for name in ("whole", "killed"))
    assert killed == whole
    assert asked_twice < before
    answered = 11 * Prices(1, 1).usd(1000, 200)
    assert counts["usd"] >= answered + asked_twice * Prices(1, 1).usd(1000, 200) * 0.999


def test_a_cut_ledger_is_read_up_to_its_last_whole_line(tmp_path):
    file = tmp_path / "ledger.jsonl"
    file.write_text(
        '{"request": 1, "at_most_usd": 0.5}\n{"request": 1, "usd": 0.1}\n{"request": 2, "at_most_usd": 0.5}\n{"req'
    )
    assert read_ledger(file) == (2, 0.6)
    assert file.read_text().endswith("0.5}\n")
    file.write_text('{"cost": 1}\n')
    with pytest.raises(RecordError, match=r"ledger\.jsonl:1: no entry of a ledger"):
        read_ledger(file)


def test_why_an_answer_is_rejected_is_said_in_full():
    said = render(1, [("Aesthetics", 9, 4)], noun="Image").replace("9=9", "9=8")
    verdict = parse("Well. " + said, "Image")
    row = Judgment(record_id="a", order="ab", completion=said, verdict=verdict, preferred=2, task="image_generation")
    assert rejections(row) == ["wrong winner", "not strictly formed", "sums do not add up"]


@pytest.mark.slow
def test_a_real_server_is_asked_and_a_model_that_knows_no_form_gives_no_trace(models, toy_data, tmp_path, capsys):
    from unifiedreward_think.data.importing import Input, Settings, import_source
    from unifiedreward_think.data.sources.declaration import load_source

    entry = Input(str(toy_data / "heldout.jsonl"), toy_data)
    import_source(load_source("released"), [entry], tmp_path / "records", Settings(renamed={}))
    model = str(models["qwen2_5_vl"])
    (tmp_path / "serve").mkdir()
    with transformers_serve(model, tmp_path / "serve") as url:
        options = ["--input", tmp_path / "records", "--output", tmp_path / "out", "--model", model, "--server", url]
        options += ["--max-new-tokens", "4", "--prompts", Path(__file__).parents[1] / "configs/toy/prompts"]
        main([*map(str, options), "--usd-per-million", "1", "1", "--max-usd", "1", "--limit", "2"])
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert counts["not asked"] == 0
    assert counts["kept"] == 0
    assert 0 < counts["usd"] < Prices(1, 1).usd(2 * 10_000, 2 * 4)
    assert sum(counts["answers rejected because"].values()) >= 2


def test_the_teacher_counts_what_it_spends_across_runs(tmp_path):
    with serving(lambda body, nth: (200, {}, usage(reply()))) as server:
        options = {"prices": Prices(1, 1), "ledger": tmp_path / "ledger.jsonl", "server": server.url}
        from helpers.servers import prompt

        for _ in range(2):
            teacher = Teacher("teacher", **options)
            teacher.complete([prompt()], sampling=Sampling(), seeds=[[1]])
    assert read_ledger(tmp_path / "ledger.jsonl") == (2, pytest.approx(2 * Prices(1, 1).usd(1000, 200)))
