"""The real files go all the way: imported by a declaration, checked, split, exported, reported."""

import json
from collections import Counter

import pytest

from unifiedreward_think.data import exporting, importing, report
from unifiedreward_think.data.curation import check
from unifiedreward_think.data.curation import split as splitting
from unifiedreward_think.data.formats.loading import load_checked_records
from unifiedreward_think.data.shards import read_stored
from unifiedreward_think.media import FrameSampling

CHOSEN = {"rule": "first"}
SOURCES = {
    "nlvr": {
        "file": "nlvr/pairs.jsonl",
        "task": "image_generation",
        "fields": {"prompt": "prompt", "media": ["chosen", "rejected"]},
        "label": CHOSEN,
    },
    "mathvision": {
        "file": "mathvision_pairs/pairs.jsonl",
        "task": "image_understanding",
        "fields": {"prompt": "question", "media": ["image"], "answers": ["chosen", "rejected"]},
        "label": CHOSEN,
    },
    "videoalign": {
        "file": "videoalign_examples/pairs.jsonl",
        "task": "video_generation",
        "fields": {"prompt": "prompt", "media": ["video_A", "video_B"]},
        "label": {"rule": "words", "column": "TA", "first": ["A"], "second": ["B"], "tie": ["same"]},
    },
    "video_qa": {
        "file": "video_understanding/qa.jsonl",
        "task": "video_understanding",
        "fields": {"prompt": "question", "media": ["video"], "answers": ["chosen", "rejected"]},
        "label": CHOSEN,
    },
}


@pytest.fixture(scope="module")
def records(test_data, tmp_path_factory):
    """The four sources, imported and checked."""
    root = tmp_path_factory.mktemp("real")
    for name, declared in SOURCES.items():
        source = {key: value for key, value in declared.items() if key != "file"}
        source |= {"name": name, "judged_by": "see its README", "facts": ["../shared/data/README.md"], "unverified": []}
        (root / f"{name}.yaml").write_text(json.dumps(source))
        command = ["--source", root / f"{name}.yaml", "--input", test_data / declared["file"], "--limit", "60"]
        importing.main([*map(str, command), "--output", str(root / name)])
    command = ["--input", *(root / name for name in SOURCES), "--output", root / "clean", "--frames", "3"]
    check.main(list(map(str, command)))
    return root


def test_every_kind_of_real_pair_is_imported_and_opens(records):
    counts = json.loads((records / "clean" / "manifest.json").read_text())["counts"]
    assert counts["kept by source and task"].keys() == {f"{name} {s['task']}" for name, s in SOURCES.items()}
    rows = [row for _, _, row in read_stored([records / name for name in SOURCES])]
    assert Counter(row.record.source for row in rows) == {"nlvr": 60, "mathvision": 60, "videoalign": 3, "video_qa": 9}
    lines = (records / "clean" / "left_out" / "00000.jsonl").read_text().splitlines()
    assert not [line for line in lines if "cannot be opened" in line]


def test_real_pairs_are_split_exported_and_loaded_by_the_stages(records, tmp_path, capsys):
    splitting.main(["--input", str(records / "clean"), "--output", str(tmp_path / "split"), "--shares", "2", "1", "1"])
    counts = json.loads(capsys.readouterr().out)
    total = json.loads((records / "clean" / "manifest.json").read_text())["counts"]["kept"]
    assert sum(part["kept"] for part in counts.values()) == total
    command = ["--input", tmp_path / "split" / "train", "--format", "records", "--output", tmp_path / "export"]
    exporting.main(list(map(str, command)))
    sampling = FrameSampling(frames=3, cache=tmp_path / "frames")
    loaded = load_checked_records([str(tmp_path / "export" / "records.jsonl")], sampling=sampling)
    assert len(loaded.rows) == counts["train"]["kept"]


def test_the_report_shows_real_pictures_and_frames(records, tmp_path, capsys):
    report.main(["--input", str(records / "clean"), "--output", str(tmp_path / "report.html"), "--frames", "3"])
    page = (tmp_path / "report.html").read_text()
    assert "0 unreadable media" in page
    assert page.count("data:image/jpeg") >= 12
