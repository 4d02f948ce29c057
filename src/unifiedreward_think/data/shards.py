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

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from unifiedreward_think.checksums import checked, differing, read_checked, summed
from unifiedreward_think.data import table
from unifiedreward_think.data.formats.files import BadRow, DataError
from unifiedreward_think.data.sources.media_store import damaged
from unifiedreward_think.in_use import LOCK, hold, release
from unifiedreward_think.interrupts import kept
from unifiedreward_think.plain_text import holds_control
from unifiedreward_think.progress import progress
from unifiedreward_think.provenance import provenance
from unifiedreward_think.records import Trace
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.terminal import note
from unifiedreward_think.writing import write_whole

Counts = dict[str, Any]
Decided = tuple[str, int, Trace, str]  # where a row was, the row, and why it is left out ("": it is not)
PART_ROWS = 20_000
MANIFEST = "manifest.json"
SETTINGS = "settings.json"
_AGAIN = "run the command that made this folder again, and it is made again"
CARD = """---
configs:
- config_name: default
  data_files: part-*.parquet
---
Preference records, not yet rows of a trainer: `python -m unifiedreward_think.data export --format trl` writes those.
"""
KINDS = 60  # kinds of reasons counted apart


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

    rows: list[Trace] = field(default_factory=list)
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
        while _is_whole(folder, self.done):
            self.done += 1

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: all parts are there, as they were written."""
        manifest = read_checked(self.folder / MANIFEST)
        return manifest is not None and self.done >= len(manifest["parts"])

    def write(self, part: Part, inputs: int) -> None:
        """Write the next part, made of `inputs` rows."""
        name = f"part-{self.done:05d}"
        sha256 = table.write(self.folder / f"{name}.parquet", part.rows)
        write_whole(self.folder / "left_out" / f"{self.done:05d}.jsonl", json_lines(part.removals))
        meta = {"file": f"{name}.parquet", "rows": len(part.rows), "sha256": sha256, "counts": count(part, inputs)}
        write_whole(self.folder / f"{name}.json", as_json(summed(meta)))
        self.done += 1

    def write_decided(self, rows: Iterable[Decided]) -> None:
        """Write all parts, from the first on: what is decided with all rows in sight starts over after a kill."""
        self.done, left = 0, iter(rows)
        while chunk := list(islice(left, PART_ROWS)):
            part = Part()
            for file, number, row, reason in chunk:
                if reason:
                    part.removals.append(Removal(BadRow(file, number, row.record.id, reason), broken=False))
                else:
                    part.rows.append(row)
            self.write(part, len(chunk))

    def finish(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Write and return the manifest: `about`, the sum of all counts, and the hash of every part."""
        parts = [checked(json.loads((self.folder / f"part-{i:05d}.json").read_bytes())) for i in range(self.done)]
        counts = count(Part(), 0)
        for part in parts:
            merge(counts, part.pop("counts"))
        write_whole(self.folder / "README.md", CARD)
        manifest = {**about, "counts": counts, "parts": parts, **provenance()}
        write_whole(self.folder / MANIFEST, as_json(summed(manifest)))
        release(self.folder / LOCK)
        return manifest


def _is_whole(folder: Path, number: int) -> bool:
    """Return whether a part, and the media stored for it, are there as they were written."""
    meta = read_checked(folder / f"part-{number:05d}.json")
    if meta is None:
        return False
    lost = differing(folder, {meta["file"]: meta["sha256"]})
    lost = lost or damaged(folder, _media_of(folder / meta["file"]))
    if lost:
        note(f"{folder / lost[0]} is not there, or not what was written; it is made again")
    return not lost


def _media_of(part: Path) -> list[str]:
    """Return the media paths of a part, each once."""
    from pyarrow import compute, parquet

    entries = parquet.read_table(part, columns=["media"])["media"]
    paths: list[str] = compute.unique(compute.list_flatten(compute.list_flatten(entries))).to_pylist()
    return paths


def parts_kept(folder: Path) -> AbstractContextManager[None]:
    """Say at Ctrl-C that whole parts stay."""
    return kept(lambda: f"whole parts are kept in {folder}; the same command goes on after them")


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder the output of `settings`, less what a killed run left half written, and hold it until `release`.

    Raises:
        DataError: the folder holds the output of other settings.
        InputError: another live run writes into it.
    """
    text, file = as_json(settings), folder / SETTINGS
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise DataError(f"{folder}: holds the output of other settings or inputs; choose another, or remove it")
    hold(folder / LOCK)
    write_whole(file, text)
    for scratch in [*folder.glob("*.new"), *folder.glob("*/*.new")]:
        scratch.unlink()
    for scratch in folder.glob("frames/*.*"):  # of a video half decoded; the name of whole ones has no dot
        shutil.rmtree(scratch)


def count(part: Part, inputs: int) -> Counts:
    """Return the counts of a part."""
    decided = [row.record for row in part.rows if row.record.preferred in (1, 2)]
    held = sum(holds_control(row.record, row.completion) for row in part.rows)
    removed: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for removal in part.removals:
        removed[removal.broken][reason_kind(removal.row.reason)] += 1
    return {
        "inputs": inputs,
        "kept": len(part.rows),
        "kept by source and task": dict(Counter(f"{r.record.source} {r.record.task}" for r in part.rows)),
        "labels by source": dict(Counter(f"{r.record.source} {r.record.preferred}" for r in part.rows)),
        **(
            {"scored": dict(scored)}
            if (scored := Counter(r.record.source for r in part.rows if r.record.scores))
            else {}
        ),
        **({"preferred first as found": dict(part.first_as_found)} if part.first_as_found else {}),
        "preferred first": dict(Counter(record.source for record in decided if record.preferred == 1)),
        **({"hold control tokens": held} if held else {}),
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


def read_stored(folders: Iterable[Path]) -> Iterator[tuple[str, int, Trace]]:
    """Yield (part, row number from 1, row) of complete folders, media paths made absolute.

    Raises:
        DataError: a folder is not complete, or a part is not what was written.
    """
    from unifiedreward_think.data.sources.readers import read_rows

    for folder in folders:
        for part in manifest_of(folder)["parts"]:
            path = folder / part["file"]
            if differing(folder, {part["file"]: part["sha256"]}):
                raise DataError(f"{path}: not there, or not what was written; {_AGAIN}")
            for number, row in read_rows(path):
                yield str(path), number, table.read_row(row, folder.absolute(), f"{path}: row {number}")


def read_tracked(folders: Sequence[Path], label: str) -> Iterator[tuple[str, int, Trace]]:
    """Yield what `read_stored` does, and show how far it has come."""
    with progress(total_rows(folders), label, unit="row") as advance:
        for item in read_stored(folders):
            yield item
            advance(1)


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return the manifest of a complete folder.

    Raises:
        DataError: the folder holds no records, or its command was not finished.
    """
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder}: no {MANIFEST}; run its command again until it is finished, or check the path")
    manifest = read_checked(folder / MANIFEST)
    if manifest is None:
        raise DataError(f"{folder / MANIFEST}: not what was written; {_AGAIN}")
    return manifest


def described(folder: Path) -> dict[str, Any]:
    """Return what identifies a complete folder: its name and the hashes of its parts."""
    return {"folder": str(folder), "parts": [part["sha256"] for part in manifest_of(folder)["parts"]]}


def total_rows(folders: Iterable[Path]) -> int:
    """Return how many records complete folders hold."""
    return sum(part["rows"] for folder in folders for part in manifest_of(folder)["parts"])


def as_json(value: Any) -> str:
    """Return JSON for people, the same for the same value."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
