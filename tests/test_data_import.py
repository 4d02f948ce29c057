"""An import is fast, flat in memory, the same bytes however often it is killed, and survives every broken input."""

import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from helpers import data_sources
from helpers.data import PLAIN, removed, row, run_import, source, tree
from unifiedreward_think.data import importing
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.importing import Input, Settings, expand, import_source
from unifiedreward_think.data.shards import read_stored, reason_kind
from unifiedreward_think.data.sources import readers
from unifiedreward_think.data.sources.declaration import load_source
from unifiedreward_think.data.sources.media_store import inside
from unifiedreward_think.errors import RecordError

BENCH = Path(__file__).parents[1] / "scripts" / "bench" / "data_import.py"
spec = importlib.util.spec_from_file_location("bench_data_import", BENCH)
data_import = importlib.util.module_from_spec(spec)
spec.loader.exec_module(data_import)

VIDEO = {**PLAIN, "name": "film", "task": "video_generation"}


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    data_sources.save_pictures(path.parent, ["a.png", "b.png"])
    return path


# Speed, memory, bytes


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """Two files of the HPD v2 layout: as many rows as a part holds, and three times as many."""
    root = tmp_path_factory.mktemp("big")
    data_sources.save_pictures(root / "train", [f"{i}.png" for i in range(8)])
    for name, count in (("small", 20_000), ("large", 60_000)):
        lines = (
            {"human_preference": [i % 2, 1 - i % 2], "prompt": f"tram {i}", "file_path": [f"{i % 8}.png", "0.png"]}
            for i in range(count)
        )
        (root / f"{name}.json").write_text("[" + ",\n".join(json.dumps(line) for line in lines) + "]")
    return root


def test_memory_stays_flat_and_rows_are_imported_about_as_fast_as_pandas_loops_over_them(big):
    """The figures for a million rows are those of scripts/bench/data_import.py, whose code this runs."""
    small, large = (data_import.measure(data_import.IMPORT, big / f"{name}.json") for name in ("small", "large"))
    loop = data_import.measure(data_import.PANDAS, big / "large.json")
    assert (large["rows"], large["first"]) == (loop["rows"], loop["first"]) == (60_000, 30_000)
    assert large["peak_mib"] < small["peak_mib"] + 20  # 40,000 more records would take three times as much
    assert large["seconds"] < 3 * loop["seconds"]  # half of it is a start that does not grow with the rows


def test_two_imports_are_the_same_bytes_and_a_third_into_the_same_folder_changes_nothing(tmp_path):
    file, _ = data_sources.hpd(tmp_path)
    for name in ("one", "two", "one"):
        import_source(load_source("hpd"), expand([str(file)], None), tmp_path / name, Settings(renamed={}, part_rows=5))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("part-*.parquet"))) == 3


KILLED = """
import sys
from pathlib import Path
from unifiedreward_think.data.importing import Settings, expand, import_source
from unifiedreward_think.data.sources.declaration import load_source
print("go", flush=True)
settings = Settings(renamed={}, part_rows=25)
import_source(load_source("hpd"), expand([sys.argv[1]], None), Path(sys.argv[2]), settings)
"""


def test_a_run_killed_at_any_moment_and_run_again_gives_the_bytes_of_an_undisturbed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(data_sources, "PAIRS", 400)
    file, _ = data_sources.hpd(tmp_path)
    settings = Settings(renamed={}, part_rows=25)
    import_source(load_source("hpd"), expand([str(file)], None), tmp_path / "whole", settings)
    output, rng, kills = tmp_path / "killed", random.Random(0), 0
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, file, output], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        child.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.45))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        child.stdout.close()
    assert kills
    import_source(load_source("hpd"), expand([str(file)], None), output, settings)
    assert tree(output) == tree(tmp_path / "whole")


class Killed(BaseException):
    """Stands for the kill: nothing catches it."""


@pytest.mark.parametrize("moment", range(0, 34, 3))
def test_a_kill_before_or_after_any_rename_loses_nothing(moment, tmp_path, monkeypatch):
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(i, votes_a=i % 4) for i in range(20)])
    run_import(file, tmp_path / "whole", part_rows=4)
    real, left = Path.replace, [moment // 2]

    def replace(self, target):
        if left[0] == 0 and moment % 2:
            raise Killed
        real(self, target)
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            run_import(file, tmp_path / "out", part_rows=4)
    run_import(file, tmp_path / "out", part_rows=4)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_folder_of_another_import_is_refused(tmp_path):
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(i) for i in range(3)])
    run_import(file, tmp_path / "out")
    with pytest.raises(DataError, match="other settings or inputs"):
        run_import(file, tmp_path / "out", seed=1)
    file.write_text(file.read_text() + json.dumps(row(9)) + "\n")
    with pytest.raises(DataError, match="other settings or inputs"):
        run_import(file, tmp_path / "out")


def test_the_limit_counts_pairs_and_a_longer_limit_keeps_the_same_order(tmp_path):
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(i) for i in range(30)])
    run_import(file, tmp_path / "ten", limit=10)
    run_import(file, tmp_path / "all")
    ten, every = ([stored for _, _, stored in read_stored([tmp_path / name])] for name in ("ten", "all"))
    assert ten == every[:10]


# Broken rows


BAD_ROWS = {
    "votes that are NaN": (row(votes_a=float("nan")), "label.first is nan; expected a finite number"),
    "infinite votes": (row(votes_b=float("inf")), "label.second is inf"),
    "votes that are no number": (row(votes_a="many"), "label.first is 'many' (str); expected a number"),
    "votes that are true": (row(votes_a=True), "label.first is 'True' (bool)"),
    "votes that are a list": (row(votes_a=[1]), "(list); expected a number"),
    "no votes": (row(votes_a=None), "(NoneType); expected a number"),
    "a fraction of a vote": (row(votes_a=1.5), "expected whole numbers"),
    "fewer votes than none": (row(votes_a=-1), "expected whole numbers"),
    "a number of a thousand digits": (row(votes_a=10**1000), "expected a number"),
    "a prompt that is a number": (row(prompt=7), "prompt is '7' (int); expected a text"),
    "an empty prompt": (row(prompt="  <image> "), "the prompt is empty"),
    "half a character": (row(prompt="kite \ud83d"), "half of a character"),
    "media that is a number": (row(a=3), "media is '3' (int); expected a path or bytes"),
    "no media": (row(a=None), "media is 'None' (NoneType)"),
    "an empty list of frames": (row(a=[]), "media is an empty list"),
    "media that is missing": (row(a="c.png"), "no such file"),
    "media with a zero byte": (row(a="a\0.png"), "no such file"),
    "a path of ten thousand letters": (row(a="x" * 10_000), "no such file"),
    "a path that leaves its folder": (row(a="../../etc/passwd"), "leaves its folder"),
    "a path that leaves by a detour": (row(a="x/../../out.png"), "leaves its folder"),
    "an absolute path elsewhere": (row(a="/etc/passwd"), "leaves its folder"),
    "an absolute path that only begins like the root": (row(a="{root}x/a.png"), "leaves its folder"),
    "bytes that are text": (row(a={"bytes": "x"}), "no such file"),
    "no object": ([1, 2], "expected an object, found list"),
    "a lost column": ({"prompt": "kite"}, "no column 'votes_a'"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_broken_row_is_listed_with_its_place_and_reason_and_the_others_are_kept(name, tmp_path):
    bad, reason = BAD_ROWS[name]
    text = json.dumps(bad).replace("{root}", str(tmp_path / "in"))
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(0), row(2)])
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], text, lines[1]]) + "\n")
    manifest = run_import(file, tmp_path / "out")
    (found,) = removed(tmp_path / "out")
    assert (found["file"], found["line"], found["broken"]) == (str(file), 2, True)
    assert reason in found["reason"] or reason in found["reason"].replace('"', "'")
    assert manifest["counts"]["kept"] == 2
    assert sum(manifest["counts"]["broken"].values()) == 1


def test_lines_that_are_no_json_are_listed_too(tmp_path):
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(0)])
    file.write_bytes(file.read_bytes() + b'{"prompt": \n' + b"\xff\xfe\n" + b"[" * 100_000 + b"\n")
    run_import(file, tmp_path / "out")
    assert [(r["line"], r["reason"][:14]) for r in removed(tmp_path / "out")] == [
        (n, "not valid JSON") for n in (2, 3, 4)
    ]


def test_what_a_declaration_leaves_out_on_purpose_is_not_broken(tmp_path):
    declared = source(label={**PLAIN["label"], "min_votes": 5, "min_margin": 0.2, "ties": "leave_out"})
    rows = [row(0), row(1, votes_a=2, votes_b=2), row(2, votes_a=3, votes_b=3), row(3, votes_a=11, votes_b=10)]
    file = write_rows(tmp_path / "in" / "rows.jsonl", [*rows, row(4, a="https://example.org/a.png")])
    counts = run_import(file, tmp_path / "out", declared)["counts"]
    assert counts["broken"] == {}
    assert sorted(r["reason"][:20] for r in removed(tmp_path / "out")) == [
        "a margin under 0.2",
        "a tie",
        "fewer than 5 votes",
        "media is a URL; fetc",
    ]


def test_urls_are_looked_up_in_a_folder_on_request(tmp_path):
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(0, a="https://example.org/x/a.png?size=2")])
    assert run_import(file, tmp_path / "out", url_folder=tmp_path / "in")["counts"]["kept"] == 1


def test_the_command_fails_on_broken_rows_unless_they_are_accepted(tmp_path, capsys):
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(0), row(1, votes_a=None)])
    (tmp_path / "plain.yaml").write_text(json.dumps(PLAIN))
    command = ["--source", str(tmp_path / "plain.yaml"), "--input", str(file), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="1"):
        importing.main(command)
    assert "1 of 2 rows are broken" in capsys.readouterr().err
    importing.main([*command, "--skip-bad"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(values=st.lists(st.fixed_dictionaries({k: json_values for k in row()}) | json_values, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_no_row_of_any_shape_makes_an_import_crash(values, tmp_path_factory):
    root = tmp_path_factory.mktemp("any")
    file = write_rows(root / "in" / "rows.jsonl", [row(0), *values])
    counts = run_import(file, root / "out")["counts"]
    assert counts["inputs"] == len(values) + 1
    assert counts["kept"] + len(removed(root / "out")) == counts["inputs"]


def test_bytes_of_no_known_picture_are_a_broken_row(tmp_path):
    rows = [
        row(0, a=data_sources.png(1), b=data_sources.png(2)),
        row(1, a=b"MZ\x90\0 a program", b=data_sources.png(3)),
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    run_import(tmp_path / "rows.parquet", tmp_path / "out")
    assert "no known picture or clip" in removed(tmp_path / "out")[0]["reason"]


# Broken files


def parquet_rows(path, count=200):
    rows = [row(i, a={"bytes": data_sources.png(i), "path": None}) for i in range(count)]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
    data_sources.save_pictures(path.parent, ["b.png"])
    return path


def test_a_truncated_parquet_file_is_an_error_that_names_it(tmp_path):
    file = parquet_rows(tmp_path / "rows.parquet")
    data = file.read_bytes()
    for size in (len(data) - 1, len(data) // 2, 8, 0):
        file.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"rows\.parquet"):
            run_import(file, tmp_path / f"out-{size}")


def test_a_parquet_file_damaged_inside_names_the_last_good_row(tmp_path):
    file = parquet_rows(tmp_path / "rows.parquet")
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = b"\xff" * 4000
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"broken after row \d+"):
        run_import(file, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", "", "expected a JSON list"),
        ("rows.json", '{"prompt": 1}', "expected a JSON list"),
        ("rows.json", "[]", "no object among its first"),
        ("rows.json", '[{"prompt": "a"', "item 1: not valid JSON"),
        ("rows.json", '[{"a": 1} {"b": 2}]', "item 1: not valid JSON"),
        ("rows.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("rows.jsonl", "", "no object among its first"),
        ("rows.csv", 'prompt,a\n"open', "not readable as CSV"),
        ("rows.txt", "kite", "unknown kind of file '.txt'"),
        ("rows.arrow", "kite", "unknown kind of file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(name, content, message, tmp_path):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        run_import(file, tmp_path / "out")
    assert str(file) in str(caught.value)


def test_mixed_types_in_csv_cells_are_listed_not_guessed(tmp_path):
    data_sources.save_pictures(tmp_path, ["a.png", "b.png"])
    file = tmp_path / "rows.csv"
    file.write_text("prompt,a,b,votes_a,votes_b\nkite,a.png,b.png,5,2\nkite,a.png,b.png,nan,2\nkite,a.png,b.png\n")
    assert run_import(file, tmp_path / "out")["counts"]["kept"] == 1
    assert [r["line"] for r in removed(tmp_path / "out")] == [2, 3]


@given(st.lists(json_values.filter(lambda v: v == v), max_size=8), st.integers(1, 40), st.sampled_from([None, 1, 2]))
@settings(max_examples=80, deadline=None)
def test_a_json_list_is_read_item_by_item_as_the_json_module_reads_it_whole(values, chunk, indent):
    root = Path(os.environ.get("PYTEST_TMP", "/tmp"), f"json-list-{os.getpid()}.json")
    root.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    before, readers._CHUNK = readers._CHUNK, chunk
    try:
        text = root.read_bytes()
        try:
            expected = json.loads(text)
        except UnicodeDecodeError:
            return
        assert json.dumps([v for _, v in readers.read_rows(root)]) == json.dumps(expected)
    finally:
        readers._CHUNK = before
        root.unlink()


def test_a_line_of_any_length_is_skipped_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 1000)
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(0)])
    file.write_bytes(file.read_bytes() + b'"' + b"x" * 5000 + b'"\n' + json.dumps(row(1)).encode() + b"\n")
    assert run_import(file, tmp_path / "out")["counts"]["kept"] == 2
    assert removed(tmp_path / "out")[0]["line"] == 2


# Archives


def zipped(path, members, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data, **options)
    return path


def test_members_of_an_archive_become_files_named_by_their_content(tmp_path):
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(0, a="x/a.png", b="x/b.png")])
    archive = zipped(tmp_path / "images.zip", {"x/a.png": data_sources.png(1), "x/b.png": data_sources.png(2)})
    run_import(file, tmp_path / "out", archives=(archive,))
    ((_, _, stored),) = read_stored([tmp_path / "out"])
    found = {Path(entry[0]).read_bytes() for entry in stored.record.media}
    assert found == {data_sources.png(1), data_sources.png(2)}
    assert all(Path(entry[0]).is_relative_to(tmp_path / "out" / "media") for entry in stored.record.media)


def test_a_zip_bomb_is_an_error_of_its_row_and_nothing_of_it_is_unpacked(tmp_path):
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(0, a="bomb.png"), row(1)])
    archive = zipped(tmp_path / "images.zip", {"bomb.png": bytes(30 * 2**20), "a.png": os.urandom(10_000)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run_import(file, tmp_path / "out", archives=(archive,))
    (found,) = removed(tmp_path / "out")
    assert found["line"] == 1
    assert "zip bomb" in found["reason"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 20_000


def test_an_archive_that_would_fill_the_disk_is_refused_as_a_whole(tmp_path):
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(0)])
    archive = zipped(tmp_path / "images.zip", {f"{i}.png": bytes(30 * 2**20) for i in range(4)})
    with pytest.raises(DataError, match=r"images\.zip: would grow .* a zip bomb"):
        run_import(file, tmp_path / "out", archives=(archive,))


def test_a_member_that_lies_about_its_size_or_checksum_is_an_error_of_its_row(tmp_path):
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(0, a="x.png"), row(1)])
    archive = zipped(tmp_path / "images.zip", {"x.png": data_sources.png(1) * 5})
    data = archive.read_bytes()
    archive.write_bytes(data.replace(data[60:80], bytes(20), 1))
    run_import(file, tmp_path / "out", archives=(archive,))
    (found,) = removed(tmp_path / "out")
    assert "cannot be unpacked" in found["reason"]


def test_a_file_that_is_no_archive_is_an_error(tmp_path):
    file = write_rows(tmp_path / "in" / "rows.jsonl", [row(0)])
    with pytest.raises(DataError, match="not a readable zip file"):
        run_import(file, tmp_path / "out", archives=(file,))


@given(st.text(max_size=20), st.text(alphabet="./ab\\", max_size=20))
@settings(deadline=None)
def test_a_path_stays_inside_its_folder_or_is_refused(folder, path):
    folder = folder.strip("/. ")
    try:
        full = inside(folder, path)
    except RecordError:
        return
    assert not full.startswith(("/", "../"))
    assert ".." not in full.split("/")


def test_reasons_of_many_rows_are_counted_by_kind():
    kinds = {reason_kind(f"media '/data/{i}.png': no such file; check the path") for i in range(50)}
    assert len(kinds) == 1


def test_frames_are_a_list_or_a_folder(tmp_path):
    root = tmp_path / "in"
    data_sources.save_pictures(root, ["v1/0.png", "v1/1.png", "v2/0.png", "v2/1.png"])
    file = write_rows(root / "rows.jsonl", [row(0, a="v1", b=["v2/0.png", "v2/1.png"])])
    assert run_import(file, tmp_path / "out", source(VIDEO))["counts"]["kept"] == 1
    frames = source(VIDEO, media={"location": "frames"})
    file = write_rows(root / "rows.jsonl", [row(0, a="v1", b="a.png")])
    run_import(file, tmp_path / "frames", frames)
    assert "keeps the frames of a video in a folder" in removed(tmp_path / "frames")[0]["reason"]


def test_rows_of_two_files_of_one_name_have_different_ids(tmp_path):
    files = [write_rows(tmp_path / name / "rows.jsonl", [row(0)]) for name in ("x", "y")]
    inputs = [Input(str(file), file.parent) for file in files]
    import_source(source(), inputs, tmp_path / "out", Settings(renamed={}))
    ids = [stored.record.id for _, _, stored in read_stored([tmp_path / "out"])]
    assert ids == ["plain-x/rows-1", "plain-y/rows-1"]


def test_labels_of_our_own_lines_are_kept_and_follow_the_candidates(tmp_path):
    """Margin, votes, ranks and scores used to be dropped, and a third candidate could not be swapped."""
    data_sources.save_pictures(tmp_path, [f"{letter}.png" for letter in "abc"])
    three = [{"media": f"{letter}.png"} for letter in "abc"]
    lines = [
        {"prompt": f"kite {i}", "candidates": three, "ranks": [2, 1, 3], "scores": [3.5, 4.5, 1.0], "scale": [1, 5]}
        for i in range(12)
    ]
    lines += [
        {"prompt": f"dog {i}", "media": ["a.png", "b.png"], "preferred": 2, "margin": 1.5, "votes": 7} for i in range(9)
    ]
    rows = [{"id": f"r{i}", "task": "image_generation", **line} for i, line in enumerate(lines)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    declared = {key: value for key, value in PLAIN.items() if key not in ("task", "fields", "label")}
    run_import(tmp_path / "own.jsonl", tmp_path / "out", source({**declared, "shape": "known"}))
    records = [trace.record for _, _, trace in read_stored([tmp_path / "out"])]
    stored = [[Path(entry[0]).stem for entry in record.media] for record in records]
    assert len(records) == 21 and {record.judged_by for record in records} == {"people"}
    assert len({tuple(names) for names in stored[:12]}) > 3 and len({tuple(names) for names in stored[12:]}) == 2
    for names, record in zip(stored, records, strict=True):
        assert names[record.preferred - 1] == "b"
        if len(names) == 3:
            assert dict(zip(names, record.ranks, strict=True)) == {"a": 2, "b": 1, "c": 3}
            assert dict(zip(names, record.scores, strict=True)) == {"a": 3.5, "b": 4.5, "c": 1.0}
            assert record.scale == (1, 5)
        else:
            assert (record.margin, record.votes) == (1.5, 7)
