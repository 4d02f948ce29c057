"""Real, human-labelled pairs (NLVR, MathVision) through every step of judging, with a tiny random model."""

import json
from itertools import islice
from pathlib import Path

import pytest

from unifiedreward_think.evaluation import __main__ as evaluation
from unifiedreward_think.evaluation import report, rescore
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.records import PreferenceRecord, digest
from unifiedreward_think.strict_json import read_json_lines

REPO = Path(__file__).parents[1]


def nlvr(folder, row):
    preferred = 1 + digest("nlvr", row["id"]) % 2
    media = tuple((str(folder / row[side]),) for side in ("chosen", "rejected")[:: 1 if preferred == 1 else -1])
    return PreferenceRecord(
        id=row["id"], task=row["task"], prompt=row["prompt"], media=media, preferred=preferred, group=row["prompt"]
    )


def mathvision(folder, row):
    preferred = 1 + digest("mathvision", row["id"]) % 2
    answers = tuple(row[side] for side in ("chosen", "rejected")[:: 1 if preferred == 1 else -1])
    return PreferenceRecord(
        id=row["id"],
        task=row["task"],
        prompt=row["question"],
        media=((str(folder / row["image"]),),),
        answers=answers,
        preferred=preferred,
        group=row["id"],
    )


SOURCES = {"nlvr": ("nlvr", nlvr), "mathvision": ("mathvision_pairs", mathvision)}


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_real_pairs_are_judged_reported_scored_again_and_compared(
    source, models, test_data, tmp_path, monkeypatch, capsys
):
    folder, to_record = SOURCES[source]
    rows = [to_record(test_data / folder, row) for _, row in read_json_lines(test_data / folder / "pairs.jsonl")]
    assert len({row.id for row in rows}) == len(rows) == {"nlvr": 834, "mathvision": 200}[source]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row.to_json()) + "\n" for row in islice(rows, 5)))

    def call(module, *words):
        monkeypatch.setattr("sys.argv", [module.__name__, *map(str, words)])
        module.main()
        return capsys.readouterr().out

    runs = {}
    for name, tokens in (("short", 4), ("long", 8)):
        runs[name] = tmp_path / name
        words = ["--model", models["qwen2_5_vl"], "--input", data, "--output", runs[name], "--max-new-tokens", tokens]
        words += ["--max-pixels", 16384, "--dtype", "float32", "--frame-cache", tmp_path / "frames", "--batch-size", 4]
        words += ["--prompts", REPO / "configs/toy/prompts", "--limit", 4]
        assert "8 judgments of 4 pairs" in call(evaluation, *words)
        judged = load_judgments(runs[name] / "judgments.jsonl")
        assert [key[:2] for key in judged] == [(row.id, order) for row in rows[:4] for order in ("ab", "ba")]
        assert not any(row.error for row in judged.values()) and {row.task for row in judged.values()} == {rows[0].task}
        results = json.loads((runs[name] / "results.json").read_text())
        assert (
            results["judgments"] == 8 and results["overall"]["accuracy"]["value"] == 0.0
        )  # a random model says nothing
        assert results["overall"]["truncation_rate"]["value"] == 1.0
    stored = (runs["short"] / "results.json").read_bytes()
    assert "0 of 8 verdicts differ" in call(rescore, runs["short"], "--write")
    assert (runs["short"] / "results.json").read_bytes() == stored
    assert "8 labelled judgments in common" in call(rescore, "--compare", runs["short"], runs["long"])
    call(report, "--run", f"a={runs['short']}", "--run", f"b={runs['long']}", "--output", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert all(row.id in page for row in rows[:4]) and rows[4].id not in page and page.count("data:image/") >= 4
