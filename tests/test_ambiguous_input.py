"""What can be read in two ways is an error with its file and line, wherever it is read: nothing wins in silence."""

import csv
import json
import re
import sys

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from helpers.data import PLAIN, row, run_import, source
from unifiedreward_think.data.formats.files import DataError, parse_yaml, read_values, read_yaml
from unifiedreward_think.data.formats.loading import load_records
from unifiedreward_think.data.importing import main as import_main
from unifiedreward_think.data.sources.columns import Finder
from unifiedreward_think.data.sources.declaration import read_source
from unifiedreward_think.data.sources.labels import label_rule
from unifiedreward_think.data.sources.mixture import read_entries, read_mixture
from unifiedreward_think.data.sources.readers import read_rows
from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.evaluation.sources import read_rows as benchmark_rows
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.strict_json import read_json_lines
from unifiedreward_think.training.arguments import DataArguments
from unifiedreward_think.training.parsing import parse

GOOD = '{"id": "kite-1", "task": "image_generation", "prompt": "a kite", "media": ["a.png", "b.png"], "preferred": 1}'
TWICE = GOOD.replace('"preferred": 1', '"preferred": 1, "preferred": 2')
NESTED = f'{{"completion": "", "record": {TWICE}}}'


def message_of(value):
    """Return what a reader says of a row that is an error, raised or given in place of the row."""
    return str(value) if isinstance(value, RecordError) else ""


JSONL = {
    "training rows": lambda path: [value for _, value in read_values(path)],
    "rows of a source": lambda path: [value for _, value in read_rows(path)],
    "records": lambda path: list(read_json_lines(path)),
    "judgments": load_judgments,
    "a benchmark": lambda path: list(benchmark_rows(str(path), split="", config=None)),
}


@pytest.mark.parametrize("line", [TWICE, NESTED], ids=["key", "nested key"])
@pytest.mark.parametrize("reader", JSONL)
def test_a_key_written_twice_is_an_error_of_its_line(reader, line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n")
    try:
        message = message_of(JSONL[reader](path)[0])  # these give it in place of the row: those after it can be read
    except RecordError as error:
        message = str(error)
        assert f"{path}:1: " in message
    assert "'preferred' is written twice" in message
    assert "kite-1" in message


@pytest.mark.parametrize("reader", ["training rows", "rows of a source", "a benchmark"])
def test_a_key_written_twice_in_a_json_list_is_an_error_that_names_the_row(reader, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(f"[{GOOD},\n{TWICE.replace('kite-1', 'kite-2')}]")
    with pytest.raises(InputError, match=rf"{path}.*'preferred' is written twice in .*kite-2"):
        JSONL[reader](path)


def test_rows_beside_one_with_a_key_written_twice_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{TWICE}\n{GOOD}\n")
    loaded = load_records([str(path)], skip_bad=True)
    assert [record.id for record in loaded.rows] == ["kite-1"]
    assert f"{path}:1" in str(loaded.bad[0])


YAMLS = {
    "config": ("frames: 8\nframes: 4\n", read_yaml),
    "nested": ("a: {b: 1, b: 2}\n", read_yaml),
    "declaration": (
        yaml.safe_dump(PLAIN) + "label: {rule: first}\n",
        lambda path: read_source(path.read_text(), str(path)),
    ),
    "mixture": ("hpd: 2\nhpd: 3\n", read_mixture),
    "released YAML": ("datasets:\n- json_path: a.json\n  json_path: b.json\n", read_entries),
}


@pytest.mark.parametrize("kind", YAMLS)
def test_a_key_written_twice_in_yaml_is_an_error_with_its_line(kind, tmp_path):
    text, read = YAMLS[kind]
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"settings\.yaml.*is written twice") as error:
        read(path)
    assert re.search(r"line \d+", str(error.value))


def test_a_config_of_a_stage_is_read_the_same(tmp_path, monkeypatch):
    path = tmp_path / "sft.yaml"
    path.write_text("frames: 8\nframes: 4\n")
    monkeypatch.setattr(sys, "argv", ["sft", "--config", str(path)])
    with pytest.raises(DataError, match=r"sft\.yaml.*'frames' is written twice"):
        parse(DataArguments)


def test_a_key_that_a_merge_brings_may_be_written_again():
    """`<<` is how YAML says that what is written beside it wins."""
    text = "a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}\n"
    assert parse_yaml(text, "a.yaml")["b"] == {"x": 2, "y": 1}


@pytest.mark.parametrize("reader", [read_rows, lambda path: benchmark_rows(str(path), split="", config=None)])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_that_a_table_holds_twice_is_an_error(kind, reader, tmp_path):
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        path.write_text("id,score,score\nkite-1,1,2\n")
    else:
        parquet.write_table(pa.table([["kite-1"], [1], [2]], names=["id", "score", "score"]), path)
    with pytest.raises(InputError, match=rf"{path}.*column 'score' twice"):
        list(reader(path))


def test_a_csv_row_of_another_length_than_the_header_is_refused_in_a_benchmark_too(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,score\nkite-1,1,2\n")
    with pytest.raises(RecordError, match=r"rows\.csv.*row 1.*more or fewer cells"):
        list(benchmark_rows(str(path), split="", config=None))


@pytest.mark.parametrize(
    ("first", "second", "tie"), [(["a"], ["b", "A "], []), (["a"], ["b"], ["b"]), (["true"], [True], [])]
)
def test_a_word_that_stands_for_two_labels_is_refused(first, second, tie):
    label = {"rule": "words", "column": "winner", "first": first, "second": second, "tie": tie}
    with pytest.raises(DataError, match="stands for two"):
        label_rule(label, Finder("demo", ["winner"], {}))


@pytest.mark.parametrize("cell", [None, float("nan")])
def test_an_empty_cell_is_no_word(cell):
    """Not even where the word is 'none' or 'nan'."""
    label = {"rule": "words", "column": "winner", "first": ["a"], "second": ["b"], "tie": ["none", "nan"]}
    rule = label_rule(label, Finder("demo", ["winner"], {}))
    assert rule({"winner": "None"}).preferred == "tie"
    with pytest.raises(RecordError, match="winner is empty"):
        rule({"winner": cell})


@pytest.mark.parametrize(
    "changes",
    [
        {"label": {"rule": "larger", "first": "votes_a", "second": "votes_a"}},
        {"fields": {"prompt": "prompt", "media": ["a", "a"]}},
        {
            "task": "image_understanding",
            "fields": {"prompt": "prompt", "media": ["a"], "answers": ["b", "b"]},
        },
    ],
    ids=["label", "media", "answers"],
)
def test_one_column_for_both_candidates_is_refused(changes):
    with pytest.raises(DataError, match="the same column for both candidates"):
        source(**changes)


def test_one_column_may_hold_both_candidates_under_two_patterns():
    specs = [{"column": "text", "pattern": f"{side}: (.*)"} for side in "AB"]
    declared = source(fields={"prompt": "prompt", "media": specs})
    assert declared.fields["media"] == specs


def test_a_column_renamed_twice_on_the_command_line_is_refused(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row()) + "\n")
    arguments = ["--source", "own_data", "--input", str(file), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        import_main([*arguments, "--map", "prompt=a", "prompt=b"])
    assert "once for each EXPECTED" in capsys.readouterr().err


WORDS = """{{name: mine, judged_by: people, facts: [made up], unverified: [], task: image_generation,
  fields: {{prompt: prompt, media: [a, b]}},
  label: {{rule: words, column: winner, first: {first}, second: {second}, tie: {tie}}}}}"""


@pytest.mark.parametrize(
    ("first", "second", "tie"),
    [
        ("yes", "no", "maybe"),
        ("on", "off", "y"),
        ("Yes", "NO", "n"),
        ("true", "false", "null"),
        ("01", "02", "1"),
        ("1:30", "2:30", "0x1F"),
        ("2020-01-01", "2020-01-02", "~"),
        ("1.0", "2.0", "1_0"),
        ('"yes"', '"no"', '"null"'),
    ],
)
def test_the_words_of_a_declaration_are_those_that_are_written(first, second, tie, tmp_path):
    """YAML 1.1 would read most of these as truth values, numbers, dates and nulls."""
    text = WORDS.format(
        **{side: f"[{word}]" for side, word in zip(("first", "second", "tie"), (first, second, tie), strict=True)}
    )
    file = tmp_path / "rows.csv"
    words = [word.strip('"') for word in (first, second, tie)]
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([["prompt", "a", "b", "winner"], *[["kite", "a.png", "b.png", w] for w in words]])
    rule = read_source(text, "mine.yaml").mapping(["prompt", "a", "b", "winner"]).label
    assert [rule(values).preferred for _, values in read_rows(file)] == [1, 2, "tie"]


def test_columns_named_yes_and_no_are_found(tmp_path):
    text = WORDS.format(first="[a]", second="[b]", tie="[]").replace("[a, b]},", "[yes, no]},")
    mapping = read_source(text, "mine.yaml").mapping(["prompt", "yes", "no", "winner"])
    assert [column.get({"yes": 1, "no": 2}) for column in mapping.media] == [1, 2]


@pytest.mark.parametrize("key", ["votes", "smaller_wins"])
def test_a_switch_of_a_declaration_is_true_or_false(key):
    """As a text, 'no' would count as true."""
    with pytest.raises(DataError, match=f"{key} is 'no'; write true or false"):
        text = json.dumps({**PLAIN, "label": {**PLAIN["label"], key: "SWITCH"}}).replace('"SWITCH"', "no")
        read_source(text, "mine.yaml").mapping(list(row()))


def test_a_row_whose_label_is_empty_is_broken_and_named(tmp_path):
    declared = source(label={"rule": "words", "column": "winner", "first": ["a"], "second": ["b"], "tie": ["none"]})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row(i, winner=w)) + "\n" for i, w in enumerate(["a", None])))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    manifest = run_import(file, tmp_path / "out", declared)
    assert sum(manifest["counts"]["broken"].values()) == 1
