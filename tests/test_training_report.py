# ruff: noqa: F811 - a fixture is imported
import json
import re
import sys
from pathlib import Path

import pytest

from helpers.reports import EVIL, elements, judged, records, run_of  # noqa: F401  # records is a fixture
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation import training_report
from unifiedreward_think.evaluation.training_log import TrainingRun, curve, ends, read_run, reward_names, windows
from unifiedreward_think.media import FrameSampling

BASE = Path(training_report.__file__).parents[1] / "toy" / "base"
ABOUT = {
    "stage": "grpo",
    "commit": "abc",
    "arguments": {"model_name_or_path": EVIL, "beta": 0.04, "reward_funcs": ["format_reward", "accuracy_reward"]},
    "versions": {"trl": "1.16.0"},
    "counts": {"pairs": 7},
}


def history_of(steps):
    """A log whose values are known: the accuracy reward climbs from 0 to 1."""
    return [
        {
            "step": step,
            "reward": 1 + step / steps,
            "rewards/format_reward/mean": 1.0,
            "rewards/accuracy_reward/mean": step / steps,
            "rewards/truncated/mean": 0.0,
            "parse_rate": 1.0,
            "kl": 0.01 * step,
            "completions/mean_length": 100 + step,
        }
        for step in range(1, steps + 1)
    ] + [{"train_loss": 0.5, "step": steps}]


def completion(step, task, pair, right):
    return {"step": step, "task": task, "id": pair, "accuracy_reward": right, "format_reward": 1.0}


def run_with(completions=(), steps=20, **about):
    return TrainingRun("grpo", {**ABOUT, **about}, history_of(steps), list(completions))


def page_of(tmp_path, run, judgments=None, known=None):
    path = tmp_path / "out" / "training.html"
    sampling = FrameSampling(frames=2, cache=tmp_path / "frames", decoder="pyav")
    training_report.write_html(path, run, judgments=judgments or {}, records=known or {}, sampling=sampling)
    return path.read_text(encoding="utf-8")


def test_the_accuracy_of_a_stretch_is_that_of_its_completions_by_task():
    rows = [
        completion(step, "image_generation", f"p{step}-{k}", float(step > 4)) for step in range(1, 9) for k in (0, 1)
    ]
    rows += [completion(1, "video_generation", "v", 1.0), completion(1, "video_generation", "w", None)]
    found = windows(rows, 2)
    assert [(w.first, w.last, w.completions) for w in found] == [(1, 4, 9), (5, 8, 8)]
    assert [w.accuracy["image_generation"].value for w in found] == [0.0, 1.0]
    assert found[0].accuracy["video_generation"].value == 1.0 and "video_generation" not in found[1].accuracy
    assert [(w.first, w.last) for w in windows(rows, 100)] == [(step, step) for step in range(1, 9)]
    assert windows([]) == [] and windows([{"step": 1, "accuracy_reward": 1.0}]) == []


def test_the_completions_of_a_pair_are_no_independent_trials():
    one_pair_each = [completion(1, "image_generation", str(i), float(i % 2)) for i in range(40)]
    groups_of_eight = [completion(1, "image_generation", str(i // 8), float(i // 8 % 2)) for i in range(40)]
    narrow, wide = (windows(rows)[0].accuracy["image_generation"] for rows in (one_pair_each, groups_of_eight))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_curves_are_read_by_name_and_the_marker_of_old_logs_is_no_reward():
    history = history_of(10)
    assert reward_names(history) == ["format_reward", "accuracy_reward"]
    assert curve(history, "kl")[-1] == (10, 0.1) and len(curve(history, "kl")) == 10
    assert ends(curve(history, "rewards/accuracy_reward/mean")) == (0.1, 1.0) and ends([]) is None


def test_the_page_shows_every_part_of_the_run_and_loads_nothing(tmp_path, records):
    tasks = [record.task for record in records.values()]
    rows = [completion(step, task, f"{task}{step}", 1.0) for step in range(1, 21) for task in tasks]
    before, after = run_of(records, right=False), run_of(records)
    page = page_of(tmp_path, run_with(rows), {"before": before, "after": after}, records)
    seen = elements(page)
    for name, attributes in seen:
        assert name not in {"link", "iframe", "object", "base"}
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "#").startswith("#")
    for part in ("Reward parts", "Accuracy by task", "Form", "Length", "KL"):
        assert f"<h3>{part}</h3>" in page
    assert sum(tag == "svg" for tag, _ in seen) == 5
    assert "Wrong before, right after: 8." in page and "Right both times: 0." in page
    assert page.count("<article") == 8 and page.count(">Before<") == 8 and page.count(">After<") == 8
    assert sum(tag == "img" for tag, _ in seen) > 8
    assert "<b>0.195</b><small>from 0.015</small>" in page
    assert EVIL not in page


def test_what_a_run_lacks_is_left_out_and_said(tmp_path):
    page = page_of(tmp_path, run_with([{"step": 1, "accuracy_reward": 1.0}]))
    assert "do not name their task" in page and "--before and --after" in page and "Accuracy by task<" not in page
    supervised = [{"step": step, "loss": 1 / step, "mean_token_accuracy": 0.9} for step in (1, 2, 3)]
    page = page_of(tmp_path, TrainingRun("cold", {**ABOUT, "stage": "sft"}, supervised, []))
    assert "<h3>Loss</h3>" in page and "<h3>Token accuracy</h3>" in page and "Reward parts" not in page
    elements(page)


def test_arguments_that_differ_from_their_default_come_first_and_all_are_folded(tmp_path):
    changed = {"beta": 0.0, "reward_funcs": ["format_reward"]}
    page = page_of(tmp_path, run_with(defaults=changed, started="2026-11-30 09:16 UTC"))
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    first, rest = text.index("2 of 3 arguments differ from their defaults"), text.index("The other arguments")
    assert text.index("beta 0.04 0.0 reward_funcs format_reward, accuracy_reward format_reward") > first
    assert text.index("Argument Value model_name_or_path") > rest > first
    assert page.count("<details") == 3 and "open" not in {
        name for tag, a in elements(page) if tag == "details" for name in a
    }
    assert (
        "Started 2026-11-30 09:16 UTC Ended not recorded" in text and "Counts pairs 7" in text and "Commit abc" in text
    )
    assert "their defaults are not recorded" in page_of(tmp_path, run_with())  # as of 0.1


def test_stretches_outside_a_band_are_shown_with_cause_and_mend(tmp_path):
    row = {"metric": "kl", "first": 12, "until": None, "value": None, "limit": 0.5, "band": "<= 0.5"}
    rows = [
        {**row, "cause": EVIL, "fix": "raise beta"},
        {**row, "value": 0.613, "until": 30, "cause": "c", "fix": "m"},
    ]
    page = page_of(tmp_path, run_with()._replace(health=rows))
    elements(page)
    assert "12 to the end" in page and "no number" in page and "raise beta" in page and EVIL not in page
    assert "12 to 30" in page and "0.613" in page and "&lt;= 0.5" in page
    assert "No metric left its band" in page_of(tmp_path, run_with()._replace(health=[]))
    assert "<h2>Health</h2>" not in page_of(tmp_path, run_with())


def test_what_was_watched_is_drawn_for_every_stage(tmp_path):
    row = {"eval_accuracy": 0.8, "eval_accuracy_low": 0.7, "eval_accuracy_high": 0.9, "reward/image_generation": 1.0}
    costs = {"grad_norm": 0.5, "tokens_per_second": 900.0, "memory_gib": 1.5}
    run = run_with()
    watched = [{**step, **costs} for step in run.history[:-1]] + [{"step": step, **row} for step in (10, 20)]
    page = page_of(tmp_path, run._replace(history=watched))
    for part in ("Held-out pairs", "Reward by task", "Gradient", "Speed", "Memory"):
        assert f"<h3>{part}</h3>" in page
    supervised = [{"step": step, "loss": 1 / step, **costs} for step in (1, 2, 3)] + [{"step": 3, **row}]
    page = page_of(tmp_path, TrainingRun("cold", {**ABOUT, "stage": "sft"}, supervised, []))
    assert "<h3>Held-out pairs</h3>" in page and "<h3>Speed</h3>" in page and "Reward by task" not in page


def test_changes_are_matched_pair_by_pair_and_order_by_order(records):
    rows = list(records.values())
    before = [judged(rows[0], "ab"), judged(rows[0], "ba", right=False), judged(rows[1]), judged(rows[2], right=False)]
    after = [judged(rows[0], "ab", right=False), judged(rows[0], "ba"), judged(rows[1]), judged(rows[3])]
    found = training_report.compare(before, after)
    named = {change: [(was.record_id, was.order) for was, _ in pairs] for change, pairs in found.items()}
    first, second = rows[0].id, rows[1].id
    assert named == {"fixed": [(first, "ba")], "broken": [(first, "ab")], "right": [(second, "ab")], "wrong": []}


def test_shown_pairs_take_turns_among_tasks_and_changes(tmp_path, records):
    changes = training_report.compare(run_of(records, right=False), run_of(records))
    sampling = FrameSampling(frames=2, cache=tmp_path / "frames", decoder="pyav")
    shown = training_report.cards(changes, records, sampling, 4)
    assert sorted(card["task"] for card in shown) == sorted(record.task for record in records.values())
    with pytest.raises(RecordError, match="not among the records"):
        training_report.cards(changes, {}, sampling, 4)


def test_a_folder_that_is_no_finished_run_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"run\.json: no such file; name the output_dir"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RecordError, match="log_history"):
        read_run(tmp_path)


@pytest.mark.slow
def test_a_grpo_run_is_reported_by_the_command(toy_data, tmp_path, monkeypatch, capsys):
    from helpers.stages import train_grpo

    output = tmp_path / "grpo"
    train_grpo(BASE, toy_data, output, max_steps=2)
    run = read_run(output)
    assert {row["task"] for row in run.completions} <= set(training_report.TASK_NAMES)
    assert {row["id"] for row in run.completions} <= {f"toy-train-{i:05d}" for i in range(8)}
    assert sum(window.completions for window in windows(run.completions)) == len(run.completions) == 8
    target = tmp_path / "training.html"
    monkeypatch.setattr(sys, "argv", ["report", "--run", str(output), "--output", str(target)])
    training_report.main()
    assert capsys.readouterr().out.endswith(f"training report: {target}\n")
    page = target.read_text()
    elements(page)
    assert "Accuracy by task" in page and "<h3>KL</h3>" in page and "Mean token" in page


def test_before_and_after_go_together(tmp_path, monkeypatch, capsys):
    arguments = ["report", "--run", "x", "--before", "y", "--output", "z"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        training_report.main()
    assert "--before and --after go together" in capsys.readouterr().err


def test_a_run_folder_is_read_as_it_was_written(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "completions").mkdir()
    for step in (1, 2):
        rows = [{**completion(step, "image_generation", "p", 1.0), "prompt": "long", "completion": "text"}]
        parquet.write_table(
            pyarrow.Table.from_pylist(rows), tmp_path / "completions" / f"completions_{step:05d}.parquet"
        )
    (tmp_path / "run.json").write_text(json.dumps(ABOUT))
    (tmp_path / "log_history.json").write_text(json.dumps(history_of(3)))
    run = read_run(tmp_path)
    assert run.name == tmp_path.name and run.history == history_of(3) and run.about == ABOUT and run.health is None
    (tmp_path / "health.jsonl").write_text('{"metric": "kl", "first": 2}\n')
    assert read_run(tmp_path).health == [{"metric": "kl", "first": 2}]
    assert run.completions == [completion(step, "image_generation", "p", 1.0) for step in (1, 2)]
