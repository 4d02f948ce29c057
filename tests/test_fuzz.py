"""A short run of scripts/bench/fuzz.py: broken input ends in the documented errors, and its own checks can fail."""

import functools

import pytest
import yaml

from helpers.bench import need, script
from unifiedreward_think.data.formats.files import DataError, parse_yaml
from unifiedreward_think.errors import RecordError
from unifiedreward_think.strict_json import read_json_lines


@pytest.fixture(scope="module")
def fuzz():
    return script("fuzz")


@pytest.mark.parametrize(
    ("target", "count"),
    [("verdict", 3000), ("records", 3000), ("config", 60), ("pictures", 600), ("clips", 15), ("checkpoints", 12)],
)
def test_broken_input_is_read_or_refused_and_nothing_else(target, count, fuzz, tmp_path):
    for program in {"pictures": [fuzz.fuzz_media.CONVERT], "clips": ["ffmpeg"]}.get(target, []):
        need(program)
    outcomes, crashes = fuzz.fuzz(target, count, 1, tmp_path)
    assert crashes == []
    assert sum(outcomes.values()) == count and len(outcomes) > 1  # some of each kind: the inputs are not all alike


def test_a_crash_is_counted_and_kept_with_its_input(fuzz, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "parse", lambda text, *_, **__: 1 / 0)
    outcomes, crashes = fuzz.fuzz("verdict", 30, 0, tmp_path)
    assert outcomes == {"crash": 30} and len(crashes) == fuzz.KEPT
    assert "ZeroDivisionError" in crashes[0]["error"] and len(crashes[0]["input"]) == 1


def test_a_picture_or_a_clip_that_is_shown_wrongly_is_a_crash(fuzz, tmp_path, monkeypatch):
    from PIL import Image

    need(fuzz.fuzz_media.CONVERT)
    need("ffmpeg")
    monkeypatch.setattr(fuzz.fuzz_media, "open_image", lambda file: Image.open(file).convert("RGB"))  # as it once was
    outcomes, crashes = fuzz.fuzz("pictures", 80, 0, tmp_path)
    assert outcomes["crash"] > 5 and outcomes["equal"] > 5 and " by 2" in str(crashes)
    real = fuzz.fuzz_media.decode
    monkeypatch.setattr(fuzz.fuzz_media, "decode", lambda *args: real(*args)._replace(total=3))
    outcomes, crashes = fuzz.fuzz("clips", 5, 0, tmp_path)
    assert outcomes["crash"] > 1 and "3 frames for" in crashes[0]["error"]


def test_a_folder_that_is_loaded_though_unsound_or_refused_though_sound_is_a_crash(fuzz, tmp_path, monkeypatch):
    from transformers import AutoModelForImageTextToText

    from unifiedreward_think.errors import InputError

    def refuse(folder):
        raise InputError(f"{folder}: no")

    make = fuzz.fuzz_checkpoints.Whole
    whole = functools.cache(lambda family, tied: make(family, tmp_path / f"{family}-{tied}", tied=tied))
    monkeypatch.setattr(fuzz.fuzz_checkpoints, "Whole", lambda family, folder, *, tied: whole(family, tied))
    monkeypatch.setattr(fuzz.fuzz_checkpoints, "load_processor", lambda folder: None)
    monkeypatch.setattr(
        fuzz.fuzz_checkpoints, "load_model", AutoModelForImageTextToText.from_pretrained
    )  # as it once was
    outcomes, crashes = fuzz.fuzz("checkpoints", 12, 0, tmp_path / "stock")
    assert outcomes["crash"] > 3 and "loaded, but" in str(crashes) and outcomes["loaded"] > 1
    monkeypatch.setattr(fuzz.fuzz_checkpoints, "load_model", refuse)
    outcomes, crashes = fuzz.fuzz("checkpoints", 12, 0, tmp_path / "refused")
    assert outcomes["refused"] > 1 and outcomes["crash"] > 1 and "it is sound" in str(crashes)


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
