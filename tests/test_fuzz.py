"""A short run of scripts/bench/fuzz.py: broken input ends in the documented errors, and its own checks can fail."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from unifiedreward_think.data.formats.files import DataError, parse_yaml
from unifiedreward_think.errors import RecordError
from unifiedreward_think.records import read_json_lines

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("target", "count"), [("verdict", 3000), ("records", 3000), ("config", 60)])
def test_broken_input_is_read_or_refused_and_nothing_else(target, count, fuzz, tmp_path):
    outcomes, crashes = fuzz.fuzz(target, count, 1, tmp_path)
    assert crashes == []
    assert sum(outcomes.values()) == count and len(outcomes) > 1  # some of each kind: the inputs are not all alike


def test_a_crash_is_counted_and_kept_with_its_input(fuzz, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "parse", lambda text, *_, **__: 1 / 0)
    outcomes, crashes = fuzz.fuzz("verdict", 30, 0, tmp_path)
    assert outcomes == {"crash": 30} and len(crashes) == fuzz.KEPT
    assert "ZeroDivisionError" in crashes[0]["error"] and len(crashes[0]["input"]) == 1


def test_the_same_seed_makes_the_same_inputs(fuzz, tmp_path):
    assert fuzz.fuzz("records", 500, 5, tmp_path)[0] == fuzz.fuzz("records", 500, 5, tmp_path)[0]
    assert fuzz.fuzz("records", 500, 5, tmp_path)[0] != fuzz.fuzz("records", 500, 6, tmp_path)[0]


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"])
def test_json_that_python_cannot_hold_is_refused_by_its_line(line, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n" + line + b"\n")
    with pytest.raises(RecordError, match=r"rows\.jsonl:2: not valid JSON"):
        list(read_json_lines(tmp_path / "rows.jsonl"))


DEEP = "a: " + "[" * 2000


@pytest.mark.parametrize("text", ["a: 2001-99-99", "a: !!int x", "a: !!bool x", DEEP, "? [1]\n: 2", "a: *b"])
def test_yaml_that_makes_the_library_stumble_is_refused_by_its_name(text):
    with pytest.raises((yaml.YAMLError, ValueError, LookupError, RecursionError)):
        yaml.safe_load(text)
    with pytest.raises(DataError, match=r"mine\.yaml: not valid YAML"):
        parse_yaml(text, "mine.yaml")


def test_a_yaml_key_that_is_no_text_is_named():
    with pytest.raises(DataError, match=r"mine\.yaml: the key 2024 is no text; put it in quotes"):
        parse_yaml("2024: 1", "mine.yaml")
