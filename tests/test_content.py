"""A judgment belongs to what it saw: a changed record is judged again, and labels are those of today's records."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from helpers.judging import LooksForRed, protocol
from test_rejection_sampling import SeesSomeRed, data, run
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.records import PreferenceRecord, Trace
from unifiedreward_think.strict_json import json_lines

assert data  # a fixture
ONCE = {"samples": 1, "sampling": Sampling()}


@pytest.fixture
def records(tmp_path):
    """Four pairs of pictures of their own."""
    rows = []
    for i in range(4):
        for name, colour in {"red": (200, 30, i), "blue": (30, 30, 200)}.items():
            Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}{i}.png")
        media = tuple((str(tmp_path / f"{name}{i}.png"),) for name in ("red", "blue"))
        rows.append(
            PreferenceRecord(id=f"r{i}", task="image_generation", prompt="red", media=media, preferred=1, group="g")
        )
    return rows


def judged_again(records, output, **changes):
    """Judge once more; return the judgments and the ids that the model was asked about."""
    backend = LooksForRed()
    rows = judge(records, backend, protocol(**{**ONCE, **changes}), output)
    return rows, sorted({name for batch in backend.batches for name in batch})


def swap(record):
    """Exchange the contents of the two files of a pair: the same paths show other pictures."""
    first, second = (Path(entry[0]) for entry in record.media)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    return record


CHANGED = {
    "another picture in the same file": swap,
    "the pictures exchanged": lambda record: replace(record, media=record.media[::-1]),
    "another caption": lambda record: replace(record, prompt="a red kite"),
    "an instruction": lambda record: replace(record, instruction="Which is red?"),
    "the instruction's places": lambda record: replace(record, instruction="Which is red?", places=(0, 5)),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_record_that_changed_under_its_id_is_judged_again_and_no_other(kind, records, tmp_path, capsys):
    output = tmp_path / "judgments.jsonl"
    before, _ = judged_again(records, output, orders="both")
    changed = [*records[:2], CHANGED[kind](records[2]), records[3]]
    after, asked = judged_again(changed, output, orders="both")
    assert asked == ["r2"]
    assert "2 judgments are of records that have changed since" in capsys.readouterr().err
    unchanged = [i for i, row in enumerate(before) if row.record_id != "r2"]
    assert [after[i].completion for i in unchanged] == [before[i].completion for i in unchanged]
    assert judged_again(changed, output, orders="both") == (after, [])
    assert list(load_judgments(output).values()) == after


def test_pictures_that_moved_and_labels_that_changed_are_no_other_content(records, tmp_path):
    output = tmp_path / "judgments.jsonl"
    judged_again(records, output)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for i in range(4):
        for name in ("red", "blue"):
            (tmp_path / f"{name}{i}.png").rename(moved / f"{name}{i}.png")
    media = [tuple((entry[0].replace(str(tmp_path), str(moved)),) for entry in record.media) for record in records]
    today = [
        replace(record, media=m, preferred=2, source="s", group="h", votes=3)
        for record, m in zip(records, media, strict=True)
    ]
    rows, asked = judged_again(today, output)
    assert asked == []
    assert {(row.preferred, row.source, row.group) for row in rows} == {(2, "s", "h")}


def test_results_follow_the_labels_of_today(records, tmp_path):
    output = tmp_path / "judgments.jsonl"
    rows, _ = judged_again(records, output)
    assert all(row.correct for row in rows)
    rows, asked = judged_again([replace(record, preferred=2) for record in records], output)
    assert asked == [] and not any(row.correct for row in rows)
    assert list(load_judgments(output).values()) == rows  # rescoring the file gives the same


def test_labels_of_records_that_are_not_asked_about_stay(records, tmp_path):
    output = tmp_path / "judgments.jsonl"
    judged_again(records, output)
    judged_again([replace(records[0], preferred=2)], output)
    assert [row.preferred for row in load_judgments(output).values()] == [2, 1, 1, 1]


def test_files_from_before_there_was_a_digest_are_gone_on_with(records, tmp_path):
    output = tmp_path / "judgments.jsonl"
    rows, _ = judged_again(records, output)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(len(line.pop("content")) == 16 and line.pop("sum") for line in lines)
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again, asked = judged_again(records, output)
    assert asked == [] and [replace(row, content="") for row in rows] == again
    assert output.read_text() == json_lines(again)


def test_a_finished_file_is_read_where_its_pictures_are_gone(records, tmp_path):
    output = tmp_path / "judgments.jsonl"
    rows, _ = judged_again(records, output)
    for picture in tmp_path.glob("*.png"):
        picture.unlink()
    assert judged_again(records, output) == (rows, [])


def test_frames_of_a_folder_are_its_content(records, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / name / f"{i}.png")
    media = ((str(tmp_path / "a"),), (str(tmp_path / "b"),))
    film = [PreferenceRecord(id="f", task="video_generation", prompt="red", media=media, preferred=1)]
    output = tmp_path / "judgments.jsonl"
    assert judged_again(film, output)[1] == ["f"]
    assert judged_again(film, output)[1] == []
    Image.new("RGB", (8, 8), (0, 0, 200)).save(tmp_path / "b" / "1.png")
    assert judged_again(film, output)[1] == ["f"]


def test_rejection_sampling_keeps_no_trace_that_contradicts_the_labels_of_today(data, tmp_path):
    folder = tmp_path / "out"
    run(data, folder, SeesSomeRed())
    file = tmp_path / "data" / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["preferred"] = {1: 2, 2: 1}.get(row["preferred"], row["preferred"])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(data, folder, SeesSomeRed(calls=0))  # nothing is sampled again
    kept = [Trace.from_json(json.loads(line)) for line in (folder / "kept.jsonl").read_text().splitlines()]
    assert kept
    for trace in kept:
        winner = 1 if "<answer>Image 1" in trace.completion else 2
        assert trace.record.shown(trace.order).preferred == winner
