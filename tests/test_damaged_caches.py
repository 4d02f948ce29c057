"""What a disk has purged, cut or spoilt is made again, or refused by name: real files of every cache are damaged."""

import functools
import http.server
import json
import random
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from helpers import data_sources
from helpers.data import NO_MAP, imported, tree
from helpers.judging import LooksForRed, make_records, protocol
from unifiedreward_think.data import export_files
from unifiedreward_think.data.curation.check import clean
from unifiedreward_think.data.curation.cleaning import Limits
from unifiedreward_think.data.curation.split import PARTS, split
from unifiedreward_think.data.exporting import main as export_main
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.shards import read_stored
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.sources import media_file
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.toy.dataset import write
from unifiedreward_think.toy.world import random_scene, write_scene


def purged(file):
    file.unlink()


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def one_bit(file, place=0.6):
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 4
    file.write_bytes(data)


def zeros(file):
    """As after a power failure: the length is on the disk, the content is not."""
    file.write_bytes(bytes(file.stat().st_size))


FAULTS = [purged, cut, one_bit, zeros]
each_fault = pytest.mark.parametrize("fault", FAULTS)


@pytest.fixture
def pictures(tmp_path):
    """The folder of an import that stores pictures."""
    imported("hpd", tmp_path / "import")
    return tmp_path / "import"


def contents(folder):
    """The bytes of all files; of manifests, all but the commit and the sum that it goes into."""
    found = tree(folder)
    for name in [name for name in found if Path(name).name == "manifest.json"]:
        found[name] = {**json.loads(found[name]), "commit": None, "sum": None}
    return found


def damaged_and_made_again(folder, fault, patterns, again):
    """Damage one file of each pattern in turn; `again` must restore it."""
    before = contents(folder)
    for pattern in patterns:
        file = sorted(folder.glob(pattern))[-1]
        fault(file)
        again()
        assert contents(folder) == before, file


@each_fault
def test_an_import_makes_parts_and_stored_pictures_again(fault, pictures, capsys):
    patterns = ("media/*/*", "part-*.parquet", "part-*.json", "manifest.json")
    again = functools.partial(imported, "hpd", pictures, NO_MAP)
    damaged_and_made_again(pictures / "out", fault, patterns, again)
    assert capsys.readouterr().err.count("is not there, or not what was written; it is made again") == 2


def test_an_import_that_is_whole_is_not_made_again(pictures, capsys):
    files = {file: file.stat().st_mtime_ns for file in (pictures / "out").glob("[mp]*/**/*.[jp]*") if file.is_file()}
    imported("hpd", pictures)
    assert files and {file: file.stat().st_mtime_ns for file in files} == files
    assert "made again" not in capsys.readouterr().err


@each_fault
def test_a_part_that_is_not_what_was_written_is_read_by_no_command(fault, pictures):
    part = pictures / "out" / "part-00000.parquet"
    fault(part)
    with pytest.raises(DataError, match=f"{part}: not there, or not what was written; run the command that made"):
        list(read_stored([pictures / "out"]))


def test_a_manifest_that_is_not_what_was_written_is_refused(pictures):
    one_bit(pictures / "out" / "manifest.json")
    with pytest.raises(DataError, match=r"manifest\.json: not what was written; run the command that made"):
        list(read_stored([pictures / "out"]))


def checked(folder):
    sampling = FrameSampling(frames=2, cache=folder / "frames", decoder="pyav")
    return clean([folder / "out"], folder / "clean", limits=Limits(near=-1), sampling=sampling)["counts"]


@each_fault
def test_a_check_leaves_a_picture_out_that_is_not_what_was_imported(fault, pictures):
    lost = sorted((pictures / "out" / "media").glob("*/*"))[-1]
    fault(lost)
    assert sum(checked(pictures)["left out"].values()) == 1
    (reason,) = [json.loads(line)["reason"] for line in (pictures / "clean/left_out/00000.jsonl").open()]
    assert f"{lost}: not there, or not what was imported; run the import again" in reason
    imported("hpd", pictures)
    shutil.rmtree(pictures / "clean")
    assert checked(pictures)["left out"] == {}


@each_fault
def test_a_check_makes_parts_and_fingerprints_again(fault, pictures):
    checked(pictures)

    def again():
        (pictures / "clean" / "manifest.json").unlink()  # as if it had been killed
        checked(pictures)

    damaged_and_made_again(pictures / "clean", fault, ("fingerprints/*", "part-*.parquet", "part-*.json"), again)


@each_fault
def test_a_split_makes_its_parts_again(fault, pictures):
    again = functools.partial(split, [pictures / "out"], pictures / "split", parts=[0.5, 0.3, 0.2])
    again()
    damaged_and_made_again(
        pictures / "split", fault, [f"{PARTS[0]}/part-*.parquet", f"{PARTS[1]}/manifest.json"], again
    )


def exported(folder, form, output):
    words = ["--input", str(folder / "out"), "--format", form, "--output", str(output), "--decoder", "pyav"]
    export_main([*words, "--frames", "3", "--style", "direct"])


@each_fault
@pytest.mark.parametrize(
    ("source", "form", "patterns"),
    [
        ("hpd", "trl", ("train/*.parquet", "manifest.json")),
        (
            "videodpo",
            "llamafactory",
            ("train_data.json", "dataset_info.json", "frames/*/frames.json", "frames/*/0002.png"),
        ),
    ],
)
def test_an_export_makes_its_files_again(source, form, patterns, fault, tmp_path, capsys):
    imported(source, tmp_path / source)
    for i, clip in enumerate(sorted((tmp_path / source / "in").glob("clips/*.mp4"))):
        write_scene(random_scene(random.Random(i % 2), moving=True), 0, clip.with_suffix(""))
    again = functools.partial(exported, tmp_path / source, form, tmp_path / "export")
    again()
    damaged_and_made_again(tmp_path / "export", fault, patterns, again)


@each_fault
def test_an_export_that_was_killed_goes_on_from_no_damaged_file(fault, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_files, "PARQUET_ROWS", 5)
    exported(pictures, "trl", tmp_path / "whole")
    real = export_files.write_parquet

    def dies(dataset, file):
        if file.name == "train-00001.parquet":
            raise KeyboardInterrupt
        real(dataset, file)

    monkeypatch.setattr(export_files, "write_parquet", dies)
    with pytest.raises(KeyboardInterrupt):
        exported(pictures, "trl", tmp_path / "killed")
    fault(tmp_path / "killed" / "train" / "train-00000.parquet")
    monkeypatch.setattr(export_files, "write_parquet", real)
    exported(pictures, "trl", tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@each_fault
def test_bytes_of_a_benchmark_are_stored_again(fault, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    file = Path(media_file(data, root=None, cache=tmp_path / "cache"))
    fault(file)
    assert Path(media_file(data, root=None, cache=tmp_path / "cache")) == file and file.read_bytes() == data


@contextmanager
def serving_files(folder, short=0):
    """Serve the files of a folder, the last `short` bytes of each left out, and count the requests."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def copyfile(self, source, outputfile):
            asked.append(self.path)
            data = source.read()
            outputfile.write(data[: len(data) - short])

    asked = []
    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, asked
        server.shutdown()


@each_fault
def test_what_was_fetched_is_fetched_again_when_it_is_damaged_and_not_served_meanwhile(fault, tmp_path, capsys):
    (tmp_path / "served").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "served" / "a.png")
    data = (tmp_path / "served" / "a.png").read_bytes()
    with serving_files(tmp_path / "served") as (server, asked):
        fetch = functools.partial(
            media_file, f"http://127.0.0.1:{server.server_port}/a.png", root=None, cache=tmp_path / "cache"
        )
        assert fetch() == fetch() and len(asked) == 1
        file = Path(fetch())
        fault(file)
        assert fetch() == str(file) and file.read_bytes() == data and len(asked) == 2
        fault(file)
    assert fetch() == str(file) and not file.exists()  # an error row when it is judged
    assert "cannot be fetched" in capsys.readouterr().err


def test_an_answer_that_ends_too_early_is_not_kept_and_ends_no_run(tmp_path, capsys):
    (tmp_path / "served").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "served" / "a.png")
    with serving_files(tmp_path / "served", short=9) as (server, _):
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        assert not Path(media_file(url, root=None, cache=tmp_path / "cache")).exists()
    assert "a.png: cannot be fetched" in capsys.readouterr().err


@pytest.fixture
def judged(tmp_path):
    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}.png")
    records, output = make_records(tmp_path, 4), tmp_path / "judgments.jsonl"
    judge(records, LooksForRed(), protocol(), output)
    return records, output


def decisive(path):
    return {key: {**row.to_json(), "seconds": 0} for key, row in load_judgments(path).items()}


def test_no_bit_of_a_judgment_changes_without_a_word(judged):
    _, output = judged
    data, before, chance, refused = output.read_bytes(), decisive(output), random.Random(0), 0
    for _ in range(400):
        spoilt = bytearray(data)
        spoilt[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        output.write_bytes(spoilt)
        try:
            found = decisive(output)
        except RecordError as error:
            assert str(output) in str(error)
            refused += 1
        else:  # a bit of `seconds`, or the last line break: that line was cut
            assert found.items() <= before.items()
    assert refused > 360


@pytest.mark.parametrize("fault", [purged, cut, zeros])
def test_judgments_that_are_gone_are_made_again(fault, judged):
    records, output = judged
    before = decisive(output)
    fault(output)
    judge(records, LooksForRed(), protocol(), output)
    assert decisive(output) == before


def test_a_spoilt_judgment_is_refused_with_its_line_and_the_fix(judged):
    records, output = judged
    output.write_text(output.read_text().replace('"winner": 1', '"winner": 2', 1))
    with pytest.raises(RecordError, match=rf"{output}:\d+: .* has changed since .* remove the line and judge again"):
        judge(records, LooksForRed(), protocol(), output)


@each_fault
def test_the_toy_world_is_drawn_again_where_it_is_damaged_and_stays_where_it_is_whole(fault, tmp_path):
    again = functools.partial(write, tmp_path / "toy", cold_start=4, train=4, heldout=4)
    again()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "toy").rglob("*.*")}
    again()
    assert {file: file.stat().st_mtime_ns for file in files} == files
    damaged_and_made_again(
        tmp_path / "toy", fault, ("media/*.png", "media/*.mp4", "train.jsonl", "manifest.json"), again
    )
    write(tmp_path / "toy", cold_start=4, train=4, heldout=8)
    assert len((tmp_path / "toy" / "heldout.jsonl").read_text().splitlines()) == 8


def test_pictures_of_every_source_that_stores_them_have_their_digest_as_name(tmp_path):
    """What `damaged` relies on: an import names by its output what it has stored there, and nothing else."""
    for name in data_sources.SOURCES:
        _, rows = imported(name, tmp_path / name)
        out = tmp_path / name / "out"
        kept = {Path(path) for row in rows for entry in row.record.media for path in entry}
        inside = {path for path in kept if path.is_relative_to(out)}
        assert inside == {path for path in (out / "media").rglob("*") if path.is_file()}
