"""Cleaning lists every row it leaves out: broken media, duplicates, conflicts, rows of benchmarks, outliers."""

import json
import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from helpers import data_sources
from helpers.data import removed, row, run_import, source, tree
from unifiedreward_think.data.curation.check import clean, main
from unifiedreward_think.data.curation.cleaning import Limits, main_script, plain
from unifiedreward_think.data.curation.fingerprints import NearIndex, distance, perceptual_hash
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.shards import read_stored
from unifiedreward_think.media import FrameSampling, pixel_sha256

QUESTIONS = {
    "name": "questions",
    "task": "image_understanding",
    "fields": {"prompt": "prompt", "media": ["a"], "answers": ["x", "y"]},
}


def photo(seed):
    """A picture with detail, so that perceptual hashes of two seeds differ in about half of their bits."""
    rng = random.Random(seed)
    small = Image.new("RGB", (9, 9))
    small.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(81)])
    return small.resize((96, 96), Image.Resampling.BICUBIC)


def checked(tmp_path, rows, declared=None, **options):
    """Import rows, check them, and return the kept ids' last part and the reasons by line."""
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    for i in range(12):
        photo(i).save(folder / f"{i}.png")
    photo(0).save(folder / "0.bmp")
    photo(0).resize((192, 192)).save(folder / "0-large.jpg", quality=80)
    data_sources.save_pictures(folder, ["a.png", "b.png"])
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    run_import(file, tmp_path / "imported", declared)
    limits = Limits(**options.pop("limits", {}))
    sampling = FrameSampling(frames=4, cache=tmp_path / "frames", decoder="pyav")
    manifest = clean([tmp_path / "imported"], tmp_path / "clean", limits=limits, sampling=sampling, **options)
    kept = [int(stored.record.id.rsplit("-", 1)[1]) for _, _, stored in read_stored([tmp_path / "clean"])]
    reasons = {int(r["id"].rsplit("-", 1)[1]): r["reason"] for r in removed(tmp_path / "clean")}
    assert len(kept) + len(reasons) == manifest["counts"]["inputs"]
    return kept, reasons


def test_exact_and_near_duplicates_are_left_out_and_the_first_stays(tmp_path):
    rows = [
        row(0, a="0.png", b="1.png"),
        row(0, a="0.bmp", b="1.png"),  # the same pixels in another format
        row(0, a="1.png", b="0.png", votes_a=2, votes_b=5),  # the same pair, listed the other way round
        row(0, a="0-large.jpg", b="1.png"),  # scaled and compressed
        row(1, a="0.png", b="1.png"),  # another prompt
        row(0, a="0.png", b="2.png"),  # another candidate
    ]
    kept, reasons = checked(tmp_path, rows)
    assert kept == [1, 5, 6]
    assert reasons[2] == "an exact duplicate of 'plain-rows-1'"
    assert reasons[3] == "an exact duplicate of 'plain-rows-1'"
    assert reasons[4] == "a near duplicate of 'plain-rows-1'"


def test_without_near_duplicates_only_equal_pixels_count(tmp_path):
    rows = [row(0, a="0.png", b="1.png"), row(0, a="0-large.jpg", b="1.png"), row(0, a="0.bmp", b="1.png")]
    kept, reasons = checked(tmp_path, rows, limits={"near": -1})
    assert kept == [1, 2]
    assert list(reasons) == [3]


def test_records_of_one_pair_that_disagree_are_all_left_out(tmp_path):
    rows = [
        row(0, a="0.png", b="1.png"),
        row(0, a="0.png", b="1.png", votes_a=1, votes_b=5),
        row(0, a="1.png", b="0.bmp", votes_a=1, votes_b=5),
        row(1, a="0.png", b="1.png"),
    ]
    kept, reasons = checked(tmp_path, rows)
    assert kept == [4]
    assert set(reasons.values()) == {"records of the same pair disagree; the first is 'plain-rows-1'"}


def test_candidates_with_equal_pixels_are_left_out_but_near_ones_stay(tmp_path):
    rows = [row(0, a="0.png", b="0.bmp"), row(1, a="0.png", b="0-large.jpg")]
    kept, reasons = checked(tmp_path, rows)
    assert kept == [2]
    assert reasons == {1: "the two candidates have the same pixels"}


def bomb(path):
    """A PNG of 100 megapixels, all one colour, in some hundred kilobytes."""
    Image.new("1", (10_000, 10_000)).save(path)


def test_broken_media_are_left_out_with_the_reason_and_never_end_the_run(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    bomb(folder / "huge.png")
    data = data_sources.png(1)
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * 2_000_000, zip=True)  # Pillow refuses to inflate it
    photo(3).save(folder / "chunk.png", pnginfo=info)
    names = ["huge.png", "cut.png", "empty.png", "text.png", "chunk.png", "1.png"]
    kept, reasons = checked(tmp_path, [row(i, a="0.png", b=name) for i, name in enumerate(names)])
    assert kept == [6]
    assert "10000x10000 pixels; the limit is" in reasons[1]
    assert all(reasons[line].startswith("media cannot be opened: ") for line in range(1, 6))


def test_text_outliers_are_left_out(tmp_path):
    texts = ["ok", "a kite " * 40, "\u043a\u0440\u0430\u0441\u043d\u044b\u0439 \u0437\u043c\u0435\u0439", "a red kite"]
    rows = [row(i, a=f"{2 * i}.png", b=f"{2 * i + 1}.png", prompt=text) for i, text in enumerate(texts)]
    kept, reasons = checked(tmp_path, rows, limits={"max_chars": 200, "script": "LATIN"})
    assert kept == [4]
    assert reasons[1] == "the prompt has 2 characters, allowed are 3 to 200"
    assert reasons[2].startswith("the prompt has 279 characters")
    assert reasons[3] == "the letters of the prompt are mostly CYRILLIC, wanted is LATIN"


def test_equal_answers_and_endless_answers_are_left_out(tmp_path):
    rows = [
        row(0, a="0.png", x="A cat.", y="a  CAT"),
        row(1, a="1.png", x="A cat.", y="A dog. " * 100),
        row(2, a="2.png", x="A cat.", y="A dog."),
        row(2, a="2.png", x="A dog.", y="A cat.", votes_a=2, votes_b=5),
        row(2, a="3.png", x="A dog.", y="A cat."),
    ]
    kept, reasons = checked(tmp_path, rows, source(**QUESTIONS), limits={"max_answer_chars": 100})
    assert kept == [3, 5]
    assert reasons[1] == "the two answers are the same"
    assert reasons[2].startswith("an answer has 700 characters")
    assert reasons[4] == "an exact duplicate of 'questions-rows-3'"


def test_rows_of_a_benchmark_are_left_out_by_picture_and_by_prompt(tmp_path):
    pictures = tmp_path / "genai"
    pictures.mkdir()
    photo(0).resize((64, 64)).save(pictures / "x.jpg")
    (tmp_path / "bench.json").write_text(json.dumps([{"id": 0, "prompt": " A Red kite!"}, {"query": "What?"}]))
    rows = [
        row(0, a="0.png", b="1.png"),
        row(0, a="2.png", b="3.png", prompt="a red kite"),
        row(2, a="4.png", b="5.png"),
        row(3, a="6.png", b="7.png", prompt="What?"),
    ]
    kept, reasons = checked(tmp_path, rows, against=[pictures, tmp_path / "bench.json"])
    assert kept == [3]
    assert reasons[1] == "a picture is nearly in the benchmark 'genai'"
    assert reasons[2] == "the prompt is in the benchmark 'bench'"
    assert reasons[4] == "the prompt is in the benchmark 'bench'"


def test_a_common_question_alone_does_not_make_a_benchmark_row(tmp_path):
    long = "What is the largest number that is written on the wall?"
    (tmp_path / "bench.json").write_text(json.dumps([{"query": "What is this?"}, {"query": long}]))
    rows = [
        row(0, a="0.png", x="A cat.", y="A dog.", prompt="What is this?"),
        row(1, a="1.png", x="7", y="8", prompt=long),
    ]
    kept, reasons = checked(tmp_path, rows, source(**QUESTIONS), against=[tmp_path / "bench.json"])
    assert kept == [1]
    assert list(reasons) == [2]


def test_a_benchmark_without_prompts_or_pictures_is_an_error(tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps([{"caption": "a"}]))
    with pytest.raises(DataError, match=r"bench\.json: row 1: no prompt; expected one of the columns prompt, query"):
        checked(tmp_path, [row(0, a="0.png", b="1.png")], against=[tmp_path / "bench.json"])
    shutil.rmtree(tmp_path / "clean")
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "._a.png").write_bytes(b"what macOS leaves beside files on other disks")
    with pytest.raises(DataError, match="no picture in this folder"):
        checked(tmp_path, [row(0, a="0.png", b="1.png")], against=[tmp_path / "void"])


def test_the_real_benchmark_files_are_read(test_data, tmp_path):
    folder = test_data / "benchmarks"
    files = [folder / "vl_rewardbench_annotations.json", folder / "genai_bench_video_annotations.json"]
    known = json.loads(files[1].read_text())[0]["prompt"]
    rows = [row(0, a="0.png", b="1.png", prompt=known.upper()), row(1, a="2.png", b="3.png")]
    kept, reasons = checked(tmp_path, rows, against=files)
    assert kept == [2]
    assert reasons[1] == "the prompt is in the benchmark 'genai_bench_video_annotations'"


def test_a_check_that_was_stopped_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    from unifiedreward_think.data.curation import check

    rows = [row(i, a=f"{i % 12}.png", b=f"{(i + 1) % 12}.png") for i in range(30)]
    monkeypatch.setattr(check, "BATCH", 7)
    checked(tmp_path, rows)
    whole = tree(tmp_path / "clean")
    shutil.rmtree(tmp_path / "clean")
    real, calls = check.fingerprint, []

    def fingerprint(*args):
        calls.append(args)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(check, "fingerprint", fingerprint)
    with pytest.raises(KeyboardInterrupt):
        checked_again(tmp_path)
    first = len(calls)
    checked_again(tmp_path)
    assert tree(tmp_path / "clean") == whole
    assert len(calls) < first + 12  # what the first run had finished was not opened again


def checked_again(tmp_path):
    sampling = FrameSampling(frames=4, cache=tmp_path / "frames", decoder="pyav")
    clean([tmp_path / "imported"], tmp_path / "clean", limits=Limits(), sampling=sampling, workers=1)


def test_an_import_that_is_not_finished_is_refused(tmp_path):
    checked(tmp_path, [row(0, a="0.png", b="1.png")])
    (tmp_path / "imported" / "manifest.json").unlink()
    with pytest.raises(DataError, match="run its command again until it is finished"):
        main(["--input", str(tmp_path / "imported"), "--output", str(tmp_path / "again")])


def test_the_same_import_given_twice_is_refused(tmp_path):
    checked(tmp_path, [row(0, a="0.png", b="1.png")])
    with pytest.raises(DataError, match=r"part-00000\.parquet: row 1: record 'plain-rows-1' occurs twice"):
        main(["--input", *[str(tmp_path / "imported")] * 2, "--output", str(tmp_path / "again")])


hashes = st.integers(0, 2**64 - 1).map(lambda value: f"{value:016x}")


@given(hashes, st.sets(st.integers(0, 63), max_size=6), st.integers(0, 5))
@settings(deadline=None)
def test_the_index_finds_a_hash_exactly_when_it_is_near(value, flips, reach):
    other = f"{int(value, 16) ^ sum(1 << bit for bit in flips):016x}"
    index = NearIndex(reach)
    index.add(value)
    assert distance(value, other) == len(flips)
    assert index.find(other) == (0 if len(flips) <= reach else None)


def test_perceptual_hashes_of_different_pictures_are_far_apart_and_of_copies_near():
    found = [perceptual_hash(photo(i)) for i in range(8)]
    assert min(distance(a, b) for i, a in enumerate(found) for b in found[:i]) > 12
    assert distance(found[0], perceptual_hash(photo(0).resize((60, 60)))) <= 3
    assert pixel_sha256(photo(0)) != pixel_sha256(photo(0).resize((60, 60)))


@given(st.text())
@settings(deadline=None)
def test_comparing_texts_never_fails_and_ignores_space_around_them(text):
    main_script(text)
    assert plain(f"  {text}\n") == plain(text)
