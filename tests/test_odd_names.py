"""Any name is the name of a file, and hidden files are no data, on every way by which media and rows come in."""

import base64
import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from helpers.bench import need, script
from helpers.data import removed, row, run_import
from helpers.judging import LooksForRed, protocol
from helpers.reward_server import run
from unifiedreward_think.backends import Video
from unifiedreward_think.backends.parts import video_part
from unifiedreward_think.data.curation.check import clean
from unifiedreward_think.data.curation.cleaning import Limits
from unifiedreward_think.data.exporting import main as export_main
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.formats.loading import load_checked_records
from unifiedreward_think.data.rows import to_dataset
from unifiedreward_think.data.shards import read_stored
from unifiedreward_think.data.sources.readers import visible_files
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.evaluation.sources import media_file, read_rows
from unifiedreward_think.judging.content import content_of
from unifiedreward_think.judging.judge import judge_item
from unifiedreward_think.media import FrameSampling, native_clip, open_image, pixel_sha256
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.serving.client import request_body
from unifiedreward_think.training.survival import checkpoints

cases = script("media_cases")
STEMS = ["take:1", "data:1", "file:a", "http:a", "50%d", "a b#c?d=e", "[x]", "-i", "\u00e9\u4e2d", "it's", ".hidden"]
stems = pytest.mark.parametrize("stem", STEMS)
APPLE = b"\0\5\26\7what macOS keeps of a file on other disks"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder: relative paths are those that could be taken for something else."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def draw(folder, stem, suffix=".png"):
    """Write a red and a blue picture whose names begin with `stem`; return the names."""
    names = [f"{stem}{side}{suffix}" for side in "ab"]
    for name, colour in zip(names, ("red", "blue"), strict=True):
        Image.new("RGB", (16, 16), colour).save(folder / name)
    return names


def sampling(folder):
    return FrameSampling(frames=3, cache=folder / "cache", decoder="pyav")


def read_back(folder):
    """The media of the only record of a folder, as pixels."""
    ((_, _, stored),) = read_stored([folder])
    return [pixel_sha256(open_image(path)) for (path,) in stored.record.media]


@stems
def test_an_import_a_check_and_exports_take_it(stem, folder, capsys):
    from datasets import load_dataset

    a, b = draw(folder, stem)
    shown = [pixel_sha256(open_image(folder / name)) for name in (a, b)]
    Path("rows.jsonl").write_text(json.dumps(row(a=a, b=b)))
    run_import(Path("rows.jsonl"), Path("imported"))
    assert removed(Path("imported")) == [] and sorted(read_back(Path("imported"))) == sorted(shown)
    clean([Path("imported")], Path("clean"), limits=Limits(), sampling=sampling(folder))
    assert removed(Path("clean")) == []
    words = ["--input", "clean", "--media-root", ".", "--frames", "3", "--style", "direct"]
    export_main([*words, "--format", "trl", "--output", "trl"])
    export_main([*words, "--format", "released-grpo", "--output", "grpo"])
    stock = load_dataset("parquet", data_files="trl/train/*.parquet", split="train", cache_dir="stock")
    assert sorted(pixel_sha256(image.convert("RGB")) for image in stock[0]["images"]) == sorted(shown)
    (released,) = json.loads(Path("grpo/train_data.json").read_text())
    assert sorted(released["images"]) == sorted((a, b))
    (back,) = load_checked_records(["grpo/train_data.json"], sampling=sampling(folder), media_root=str(folder)).rows
    assert sorted(entry[0] for entry in back.media) == sorted(str(folder / name) for name in (a, b))


@stems
def test_a_member_of_an_archive_may_have_it(stem, folder):
    a, b = draw(folder, stem)
    with zipfile.ZipFile("media.zip", "w") as archive:
        for name in (a, b):
            archive.write(name)
            archive.writestr(f"__MACOSX/._{name}", APPLE)
            Path(name).unlink()
    Path("rows.jsonl").write_text(json.dumps(row(a=a, b=b)))
    run_import(Path("rows.jsonl"), Path("imported"), archives=(Path("media.zip"),))
    assert removed(Path("imported")) == [] and len(set(read_back(Path("imported")))) == 2


@stems
def test_training_judging_the_demo_and_benchmarks_take_it(stem, folder):
    from unifiedreward_think.demo.asking import make_record

    a, b = draw(folder, stem)
    opened = to_dataset([{"id": "x", "images": [a, b]}])[0]["images"]
    assert [image.getpixel((0, 0)) for image in opened] == [(255, 0, 0), (0, 0, 255)]
    record = make_record("image_generation", "red", [a, b])
    (first, *_) = judge_item(record, "ab", LooksForRed(), protocol(samples=1, sampling=Sampling()))
    assert first.error == "" and first.choice == 1
    assert media_file(a, root=folder, cache=folder) == str(folder / a)


@stems
def test_the_client_of_the_reward_server_sends_it_as_a_file(stem, folder):
    a, b = draw(folder, stem)
    files = [Path(name) for name in (a, b)]  # as a text, what begins with data: or https:// is a URL
    body = request_body("image_generation", "red", files, reasoning=True)
    sent = [base64.b64decode(candidate["image"].partition(",")[2]) for candidate in body["candidates"]]
    assert sent == [file.read_bytes() for file in files]
    reply = run(lambda http: http.post("/v1/compare", json=body))
    (judgment,) = reply.json()["judgments"]
    shown = ("ff0000", "0000ff")[:: 1 if judgment["shown_first"] == 0 else -1]
    assert "saw {} and {}".format(*shown) in judgment["reasoning"]


@stems
def test_a_clip_may_have_it_also_where_the_model_reads_clips(stem, folder):
    need("ffmpeg")
    cases.make_clip(cases.Clip("libx264", ".mp4", "yuv420p", width=66), folder).rename(folder / f"{stem}.mp4")
    clip = native_clip([f"{stem}.mp4"], sampling(folder))
    assert (clip.total, len(clip.frames)) == (8, 3)
    part = video_part(Video(clip, [open_image(frame) for frame in clip.frames]))
    assert part["video_url"]["url"].startswith("data:video/mp4;base64,")


@pytest.mark.parametrize("value", ["https://example.org/a.png", "data:image/png;base64,iVBORw0KGgo=", "s3://x/a.png"])
def test_a_url_is_still_told_from_a_file(value, folder):
    Path("rows.jsonl").write_text(json.dumps(row(a=value, b=value)))
    run_import(Path("rows.jsonl"), Path("imported"))
    assert "media is a URL" in removed(Path("imported"))[0]["reason"]
    Path("rows.jsonl").write_text(
        json.dumps({"id": "x", "task": "image_generation", "prompt": "p", "media": [value] * 2, "preferred": 1})
    )
    with pytest.raises(DataError, match="is no path; save it as a file"):
        load_checked_records(["rows.jsonl"], sampling=sampling(folder))


# Hidden files


def test_hidden_files_in_folders_of_frames_are_no_frames_and_no_content(folder):
    for side, colour in zip("ab", ("red", "blue"), strict=True):
        (folder / side).mkdir()
        for number in range(4):
            Image.new("RGB", (16, 16), colour).save(folder / side / f"{number}.png")
    media = ((str(folder / "a"),), (str(folder / "b"),))
    record = PreferenceRecord(id="x", task="video_generation", prompt="red", media=media, preferred=1)
    before = content_of(record)
    for name in ("._0.png", ".DS_Store", "Thumbs.db"):
        (folder / "a" / name).write_bytes(APPLE)
    assert content_of(record) == before  # else a judgment would be made again because a folder was looked at
    (first, *_) = judge_item(record, "ab", LooksForRed(), protocol(samples=1, sampling=Sampling()))
    assert first.error == ""


def test_hidden_files_and_folders_are_no_rows_and_no_pictures_of_a_benchmark(folder):
    Path("bench/more").mkdir(parents=True)
    Path("bench/more/rows.jsonl").write_text('{"id": 1}\n')
    draw(folder / "bench" / "more", "x")
    for name in ("bench/._rows.jsonl", "bench/.ipynb_checkpoints/rows-checkpoint.jsonl", "bench/more/.cache/hub/a.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b'{"id": 1}\n')
    assert [row.number for row in read_rows("bench", split="test", config=None)] == [1]
    assert [file.name for file in visible_files(folder, {".png"})] == ["xa.png", "xb.png"]
    a, b = draw(folder, "y")
    Path("rows.jsonl").write_text(json.dumps(row(a=a, b=b)))
    run_import(Path("rows.jsonl"), Path("imported"))
    options = {"limits": Limits(near=-1), "sampling": sampling(folder), "against": [Path("bench")]}
    assert clean([Path("imported")], Path("clean"), **options)["counts"]["kept"] == 0  # the same pixels
    Path("bench/.DS_Store").write_bytes(APPLE)
    assert clean([Path("imported")], Path("clean"), **options)["counts"]["kept"] == 0  # and no other benchmark


def test_a_checkpoint_is_whole_without_the_hidden_files_of_a_file_system(tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / ".nfs000000000000001200000001").write_bytes(b"removed, and still open somewhere")
    checkpoints.seal(checkpoint, {})
    (checkpoint / ".nfs000000000000001200000001").unlink()
    assert checkpoints.newest(tmp_path) == (checkpoint, [])


def test_bytes_are_no_path_whatever_they_are_called(folder):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    stored = media_file({"bytes": buffer.getvalue(), "path": "take:1.png"}, root=None, cache=folder / "cache")
    assert open_image(stored).getpixel((0, 0)) == (255, 0, 0)
