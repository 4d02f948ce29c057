"""Rows with scores: imported from their sources, of one candidate or more, and known to every data command."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from helpers import data_sources
from helpers.data import imported
from unifiedreward_think.data.__main__ import main as data_command
from unifiedreward_think.data.curation.check import clean
from unifiedreward_think.data.curation.cleaning import Limits
from unifiedreward_think.data.curation.split import split
from unifiedreward_think.data.exporting import main as export
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.formats.loading import load_records
from unifiedreward_think.data.importing import Input
from unifiedreward_think.data.report import main as report
from unifiedreward_think.data.shards import read_stored
from unifiedreward_think.data.sources.columns import Finder
from unifiedreward_think.data.sources.declaration import read_source
from unifiedreward_think.data.sources.labels import label_rule
from unifiedreward_think.errors import RecordError
from unifiedreward_think.forms import POINTWISE
from unifiedreward_think.media import FrameSampling

TOY = Path(__file__).parents[1] / "src" / "unifiedreward_think" / "toy" / "base"


def records_of(name, tmp_path):
    manifest, rows = imported(name, tmp_path)
    return manifest, [row.record for row in rows]


def test_every_picture_of_evalmuse_has_the_mean_score_of_its_annotators(tmp_path):
    manifest, records = records_of("evalmuse_points", tmp_path)
    assert {(len(record.media), record.scale, record.preferred) for record in records} == {(1, (1, 5), None)}
    assert [round(record.scores[0], 3) for record in records[:6]] == [1, 2, 3, 1.333, 2.333, 3.333]
    assert manifest["counts"]["scored"] == {"evalmuse_points": 36}
    assert len({record.group for record in records}) == data_sources.PAIRS
    assert POINTWISE.gold(records[1], "a") == 0.25


def test_a_video_has_the_mean_of_its_five_scores(tmp_path):
    _, records = records_of("videofeedback_points", tmp_path)
    first = [1 + k % 4 for k in range(5)]
    assert records[0].scores == (sum(first) / 5,) and records[0].scale == (1, 4) and len(records[0].media[0]) == 4
    assert records[0].prompt == "a [red] surfer 0"


def test_the_one_answer_of_llava_critic_has_its_final_score_and_other_forms_are_left_out(tmp_path):
    manifest, records = records_of("llava_critic_points", tmp_path)
    assert [record.scores for record in records[:3]] == [(0,), (5.5,), (10,)] and records[0].scale == (0, 100)
    assert records[2].answers == ("A [red] cup 2.",) and records[2].prompt == "What is on table 2?"
    assert manifest["counts"]["left out"] == {"no score is stated": 2} and manifest["counts"]["broken"] == {}


def test_the_scores_of_both_answers_follow_them_when_their_order_is_drawn(tmp_path):
    _, records = records_of("sharegptvideo_points", tmp_path)
    assert {record.preferred for record in records} == {1, 2}
    for record in records:
        assert record.scores[record.preferred - 1] == 5 and sorted(record.scores) == [2, 5]
        assert record.answers[record.preferred - 1].startswith("A box") and record.scale == (1, 5)


def scored(**declared):
    return label_rule({"rule": "scores", "scale": [1, 5], **declared}, Finder("demo", ["a", "b", "flag"], {}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": 6}, "score 6 lies outside of the declared scale 1 to 5"),
        ({"a": [1, 0]}, "score 0.5 lies outside"),
        ({"a": []}, "a is an empty list"),
        ({"a": None}, "a is 'None' (NoneType)"),
        ({"a": "good"}, "a is 'good' (str)"),
        ({"a": float("nan")}, "a is nan; expected a finite number"),
        ({"a": [4, True]}, "a is 'True' (bool)"),
        ({"b": 4}, "no column 'a'"),
    ],
)
def test_a_score_that_cannot_be_one_is_an_error_of_its_row(row, message):
    with pytest.raises(RecordError, match=re.escape(message)):
        scored(columns=["a"])(row)


def test_rows_without_a_score_or_without_meaning_are_left_out_where_that_is_declared():
    rule = scored(columns=["a"], unscored="leave_out", meaningless="flag")
    assert rule({"a": "4.5", "flag": [0, 1]}).scores == (4.5,)
    for row, reason in (({"a": None, "flag": 0}, "no score is stated"), ({"a": 3, "flag": [1, 1, 0]}, "meaningless")):
        with pytest.raises(RecordError, match=reason):
            rule(row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": {"rule": "scores", "columns": ["s"]}}, "label: scale is None; write [lowest, highest]"),
        ({"label": {"rule": "scores", "columns": ["s"], "scale": [5, 1]}}, "label: scale is [5, 1]"),
        ({"label": {"rule": "scores", "columns": [], "scale": [1, 5]}}, "label: columns is []"),
        ({"label": {"rule": "scores", "columns": ["s", "t"], "scale": [1, 5]}}, "found 1 and 2"),
        ({"fields": {"prompt": "p", "media": ["a"], "answers": ["x"]}}, "scores need a prompt"),
        ({"fields": {"media": ["a"]}}, "scores need a prompt"),
    ],
)
def test_a_declaration_of_scores_that_cannot_be_meant_is_refused(change, message):
    good = {
        "name": "demo",
        "judged_by": "people",
        "facts": [],
        "unverified": [],
        "task": "image_generation",
        "fields": {"prompt": "p", "media": ["a"]},
        "label": {"rule": "scores", "columns": ["s"], "scale": [1, 5]},
    }
    assert read_source(json.dumps(good), "demo.yaml").label["rule"] == "scores"
    with pytest.raises(DataError, match=re.escape(message)):
        read_source(json.dumps({**good, **change}), "demo.yaml")


@pytest.fixture
def points(tmp_path):
    """A folder of scored pictures: two are the same with other scores, two the same with one score, one is broken."""
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    for i in range(6):
        picture = Image.effect_mandelbrot((64, 64), (-2 + i / 4, -1, 1, 1), 60 + i)
        (picture if i % 2 else picture.rotate(90)).convert("RGB").save(folder / "images" / f"{i}.png")
    (folder / "images" / "broken.png").write_bytes(b"nothing")
    files = ["0.png", "1.png", "2.png", "0.png", "1.png", "3.png", "broken.png"]
    scores = [[4, 5], 2, 3, 1, 2, 5, 3]
    rows = [
        {"prompt": "a fractal shore", "img_path": file, "total_score": score, "promt_meaningless": [0]}
        for file, score in zip(files, scores, strict=True)
    ]
    file = data_sources.save_json(folder / "train_list.json", rows)
    manifest, _ = imported("evalmuse_points", tmp_path, inputs=[Input(str(file), folder)])
    assert manifest["counts"]["kept"] == 7
    return tmp_path / "out"


def checked(points, tmp_path):
    sampling = FrameSampling(frames=2, cache=tmp_path / "frames", decoder="pyav")
    manifest = clean([points], tmp_path / "clean", limits=Limits(near=-1), sampling=sampling)
    return manifest, tmp_path / "clean"


def test_check_keeps_single_candidates_and_leaves_out_those_whose_scores_differ(points, tmp_path):
    manifest, folder = checked(points, tmp_path)
    kept = [(Path(row.record.media[0][0]).name, row.record.scores) for _, _, row in read_stored([folder])]
    assert kept == [("1.png", (2,)), ("2.png", (3,)), ("3.png", (5,))]
    assert sum(manifest["counts"]["left out"].values()) + sum(manifest["counts"]["broken"].values()) == 4
    assert manifest["counts"]["scored"] == {"evalmuse_points": 3}


def test_split_keeps_the_pictures_of_a_caption_together(points, tmp_path):
    counts = split([points], tmp_path / "split", parts=[0.4, 0.3, 0.3])
    assert sorted(part["kept"] for part in counts.values()) == [0, 0, 7]
    assert [part["scored"] for part in counts.values() if part["kept"]] == [{"evalmuse_points": 7}]


def test_a_report_counts_scores_and_shows_them_on_their_scale(points, tmp_path):
    _, folder = checked(points, tmp_path)
    page = tmp_path / "report.html"
    report(["--input", str(folder), "--output", str(page), "--processor", str(TOY)])
    text = page.read_text()
    assert "<td>3</td>" in text and "0.58 of the scale" in text  # (.25 + .5 + 1) / 3
    assert "score 5 of 1 to 5" in text and "score 2 of 1 to 5" in text
    assert re.search(r"Tokens with .*?3 rows, prompt", text, re.DOTALL)


def exported(folder, output, *options):
    export(["--input", str(folder), "--output", str(output), *options])
    return json.loads((output / "manifest.json").read_text())["counts"]


def test_scores_are_exported_as_records_and_as_rows_that_ask_for_a_score(points, tmp_path):
    _, folder = checked(points, tmp_path)
    assert exported(folder, tmp_path / "records", "--format", "records")["written"]["records.jsonl"] == 3
    loaded = load_records([str(tmp_path / "records" / "records.jsonl")], form=POINTWISE)
    assert [record.scores for record in loaded.rows] == [(2,), (3,), (5,)] and not loaded.bad
    counts = exported(folder, tmp_path / "trl", "--format", "trl", "--form", "pointwise")
    assert counts["written"]["train"] == 3 and counts["left out"] == {}
    from datasets import load_dataset

    rows = load_dataset(str(tmp_path / "trl" / "train"), split="train")
    assert [(row["form"], row["order"], row["solution"], len(row["images"])) for row in rows] == [
        ("pointwise", "a", "0.25", 1),
        ("pointwise", "a", "0.5", 1),
        ("pointwise", "a", "1", 1),
    ]


def test_what_is_no_pair_is_left_out_of_the_files_of_pairs_by_name(points, tmp_path, capsys):
    counts = exported(points, tmp_path / "easyr1", "--format", "easyr1")
    (reason,) = counts["left out"]
    assert counts["left out"][reason] == 7 and "candidates" in reason
    with pytest.raises(SystemExit):
        exported(points, tmp_path / "no", "--format", "easyr1", "--form", "pointwise")
    assert "--format easyr1 is of pairs" in capsys.readouterr().err


def test_both_scored_answers_make_a_row_each(tmp_path):
    imported("sharegptvideo_points", tmp_path)
    options = ("--format", "trl", "--form", "pointwise", "--frames", "2")
    counts = exported(tmp_path / "out", tmp_path / "trl", *options)
    assert counts["written"]["train"] == 2 * data_sources.PAIRS
    pairs = exported(tmp_path / "out", tmp_path / "pairs", "--format", "trl", "--frames", "2")
    assert pairs["written"]["train"] == data_sources.PAIRS  # the preference follows from the scores


def test_the_import_command_takes_a_source_of_scores(tmp_path):
    file, _ = data_sources.evalmuse(tmp_path)
    data_command(["import", "--source", "evalmuse_points", "--input", str(file), "--output", str(tmp_path / "points")])
    assert len(list(read_stored([tmp_path / "points"]))) == 3 * data_sources.PAIRS
