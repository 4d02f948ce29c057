"""A folder of preference records as parquet parts, written so that a kill at any moment costs one part at most.

    part-00000.parquet      records; media paths are absolute, or start from this folder
    left_out/00000.jsonl    the rows that part left out: place, reason, whether they are broken or left out on purpose
    part-00000.json         counts and hash of the part; it is written last: a part without it is made again
    settings.json           what was asked for; a rerun with other settings is refused
    README.md               tells `datasets.load_dataset(folder)` that the parts are the data
    manifest.json           all counts, hashes and versions; it is there when the folder is complete

The same input and settings give the same bytes, in one run or in several.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unifiedreward_think.data.formats.files import BadRow, DataError
from unifiedreward_think.order import Order
from unifiedreward_think.progress import progress
from unifiedreward_think.provenance import provenance
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.writing import whole, write_whole

Counts = dict[str, Any]
PART_ROWS = 20_000
RECORD_COLUMNS = ("id", "task", "prompt", "media", "answers", "preferred", "source", "group", "instruction")
OWN_COLUMNS = ("margin", "votes", "judged_by", "completion", "order")
CARD = """---
configs:
- config_name: default
  data_files: part-*.parquet
---
Preference records, not yet rows of a trainer: `python -m unifiedreward_think.data export --format trl` writes those.
"""
KINDS = 60  # kinds of reasons counted apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A record with what its source says beyond it.

    Attributes:
        record: the pair.
        margin, votes: how clear the preference was, where the source says it.
        judged_by: people, a model, a metric.
        completion, order: of a trace.
    """

    record: PreferenceRecord
    margin: float | None = None
    votes: int | None = None
    judged_by: str = ""
    completion: str = ""
    order: Order = "ab"


@dataclass(frozen=True, slots=True)
class Removal:
    """A row that is not in the output, and why; `broken` if it could not be used, else it was left out on purpose."""

    row: BadRow
    broken: bool

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        row = self.row
        return {"file": row.file, "line": row.line, "id": row.record_id, "reason": row.reason, "broken": self.broken}


@dataclass(slots=True)
class Part:
    """What goes into one part."""

    rows: list[Stored] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    first_as_found: Counter[str] = field(default_factory=Counter)  # by source, before the order was drawn


class ShardFolder:
    """The output of a command, gone on with where an earlier run was stopped.

    Args:
        folder: made if needed.
        settings: everything that decides the output.

    Raises:
        DataError: the folder holds the output of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        claim(folder, settings)
        (folder / "left_out").mkdir(exist_ok=True)
        self.done = 0
        while (folder / f"part-{self.done:05d}.json").is_file():
            self.done += 1

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.folder / "manifest.json").is_file()

    def write(self, part: Part, inputs: int) -> None:
        """Write the next part, made of `inputs` rows."""
        name = f"part-{self.done:05d}"
        sha256 = write_table(self.folder / f"{name}.parquet", part.rows)
        lines = "".join(json.dumps(removal.to_json()) + "\n" for removal in part.removals)
        write_whole(self.folder / "left_out" / f"{self.done:05d}.jsonl", lines)
        meta = {"file": f"{name}.parquet", "rows": len(part.rows), "sha256": sha256, "counts": count(part, inputs)}
        write_whole(self.folder / f"{name}.json", as_json(meta))
        self.done += 1

    def finish(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Write and return the manifest: `about`, the sum of all counts, and the hash of every part."""
        parts = [json.loads((self.folder / f"part-{i:05d}.json").read_bytes()) for i in range(self.done)]
        counts = count(Part(), 0)
        for part in parts:
            merge(counts, part.pop("counts"))
        write_whole(self.folder / "README.md", CARD)
        manifest = {**about, "counts": counts, "parts": parts, **provenance()}
        write_whole(self.folder / "manifest.json", as_json(manifest))
        return manifest


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder the output of `settings`, less what a killed run left half written.

    Raises:
        DataError: the folder holds the output of other settings.
    """
    text, file = as_json(settings), folder / "settings.json"
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise DataError(f"{folder}: holds the output of other settings or inputs; choose another, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)
    for scratch in [*folder.glob("*.new"), *folder.glob("*/*.new")]:
        scratch.unlink()
    for scratch in folder.glob("frames/*.*"):  # of a video half decoded; the name of whole ones has no dot
        shutil.rmtree(scratch)


def count(part: Part, inputs: int) -> Counts:
    """Return the counts of a part."""
    decided = [row.record for row in part.rows if row.record.preferred in (1, 2)]
    removed: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for removal in part.removals:
        removed[removal.broken][reason_kind(removal.row.reason)] += 1
    return {
        "inputs": inputs,
        "kept": len(part.rows),
        "kept by source and task": dict(Counter(f"{r.record.source} {r.record.task}" for r in part.rows)),
        "labels by source": dict(Counter(f"{r.record.source} {r.record.preferred}" for r in part.rows)),
        **({"preferred first as found": dict(part.first_as_found)} if part.first_as_found else {}),
        "preferred first": dict(Counter(record.source for record in decided if record.preferred == 1)),
        "decided": dict(Counter(record.source for record in decided)),
        "left out": dict(removed[False]),
        "broken": dict(removed[True]),
    }


def reason_kind(reason: str) -> str:
    """Return a reason without what differs from row to row, for counting.

    >>> reason_kind("media 'a/b.png': no such file 12"), reason_kind("votes are 1.5 and 2; expected whole numbers")
    ('media *: no such file *', 'votes are * and *')
    """
    return re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|\[.*?\]|\b-?\d[\d.,]*\b|\bnan\b|-?\binf\b", "*", reason).split(";")[0][:120]


def merge(total: Counts, more: Mapping[str, Any]) -> None:
    """Add counts to `total`, keys in order of first appearance; beyond KINDS kinds the rest is one."""
    for key, value in more.items():
        if isinstance(value, Mapping):
            merge(total.setdefault(key, {}), value)
        elif key in total or len(total) < KINDS:
            total[key] = total.get(key, 0) + value
        else:
            total["others"] = total.get("others", 0) + value


def write_table(path: Path, rows: Sequence[Stored]) -> str:
    """Write records as a parquet file, whole or not at all, and return its sha256."""
    import pyarrow as pa
    from pyarrow import parquet

    texts = pa.list_(pa.string())
    kinds = {"media": pa.list_(texts), "answers": texts, "margin": pa.float64(), "votes": pa.int64()}
    values = {name: [getattr(row.record, name) for row in rows] for name in RECORD_COLUMNS}
    values["preferred"] = [None if label is None else str(label) for label in values["preferred"]]
    values |= {name: [getattr(row, name) for row in rows] for name in OWN_COLUMNS}
    columns = {name: pa.array(column, kinds.get(name, pa.string())) for name, column in values.items()}
    with whole(path) as scratch:
        parquet.write_table(pa.table(columns), scratch, compression="zstd")
        with scratch.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


_LABELS: dict[str | None, Any] = {"1": 1, "2": 2, "tie": "tie", None: None}


def read_stored(folders: Iterable[Path]) -> Iterator[tuple[str, int, Stored]]:
    """Yield (part, row number from 1, row) of complete folders, media paths made absolute.

    Raises:
        DataError: a folder is not complete, or a part is broken.
    """
    from unifiedreward_think.data.sources.readers import read_rows

    for folder in folders:
        for part in parts_of(folder):
            for number, row in read_rows(part):
                yield str(part), number, from_row(row, folder.absolute(), f"{part}: row {number}")


def read_tracked(folders: Sequence[Path], label: str) -> Iterator[tuple[str, int, Stored]]:
    """Yield what `read_stored` does, and show how far it has come."""
    with progress(total_rows(folders), label, unit="row") as advance:
        for item in read_stored(folders):
            yield item
            advance(1)


def from_row(row: Mapping[str, Any], root: Path, place: str) -> Stored:
    """Return a row of a part, its relative media paths starting from `root`.

    Raises:
        DataError: the row was not written by `write_table`.
    """
    if set(row) != {*RECORD_COLUMNS, *OWN_COLUMNS}:
        raise DataError(f"{place}: no record of an import; found the columns {', '.join(row)}")
    record = PreferenceRecord(
        **{key: row[key] for key in ("id", "task", "prompt", "source", "group", "instruction")},
        media=tuple(tuple(path if path[0] == "/" else f"{root}/{path}" for path in entry) for entry in row["media"]),
        answers=tuple(row["answers"]),
        preferred=_LABELS[row["preferred"]],
    )
    return Stored(record=record, **{key: row[key] for key in OWN_COLUMNS})


def parts_of(folder: Path) -> list[Path]:
    """Return the parts of a complete folder.

    Raises:
        DataError: the folder holds no records, or its command was not finished.
    """
    if not (folder / "manifest.json").is_file():
        raise DataError(f"{folder}: no manifest.json; run its command again until it is finished, or check the path")
    names = [part["file"] for part in json.loads((folder / "manifest.json").read_bytes())["parts"]]
    return [folder / name for name in names]


def described(folder: Path) -> dict[str, Any]:
    """Return what identifies a complete folder: its name and the hashes of its parts."""
    parts_of(folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return {"folder": str(folder), "parts": [part["sha256"] for part in manifest["parts"]]}


def total_rows(folders: Iterable[Path]) -> int:
    """Return how many records complete folders hold."""
    return sum(
        part["rows"]
        for folder in folders
        if parts_of(folder)
        for part in json.loads((folder / "manifest.json").read_bytes())["parts"]
    )


def with_record(stored: Stored, **changes: Any) -> Stored:
    """Return a row with a changed record."""
    return replace(stored, record=replace(stored.record, **changes))


def as_json(value: Any) -> str:
    """Return JSON for people, the same for the same value."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
