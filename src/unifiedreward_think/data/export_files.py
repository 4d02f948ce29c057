"""The files of an export: written whole, and held against their digests before they count as done.

A folder holds `manifest.json` with the digest of every file, written last, and until then `written/` with those of the
files with pictures inside, which take long: a run that was killed goes on after them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from unifiedreward_think import frame_cache
from unifiedreward_think.checksums import differing, file_sha256, read_checked, summed
from unifiedreward_think.data.rows import to_dataset, write_parquet
from unifiedreward_think.data.shards import MANIFEST, as_json
from unifiedreward_think.terminal import note
from unifiedreward_think.writing import open_whole, write_whole

PARQUET_ROWS = 1000  # pictures are inside: this is what memory holds
WRITTEN = "written"


def write_rows(output: Path, name: str, rows: Iterator[dict[str, Any]], files: dict[str, str]) -> int:
    """Write rows as JSON lines, as a JSON list, or as parquet files in a folder of their own; return how many.

    Args:
        output: of the export.
        name: of the file, or of the folder for parquet files.
        rows: of the file.
        files: digests that files must have to stay; those of the parquet files are added.

    Raises:
        OutputError: a file cannot be written.
    """
    target, count = output / name, 0
    if not target.suffix:
        while chunk := list(islice(rows, PARQUET_ROWS)):
            _write_part(output, f"{name}/train-{count // PARQUET_ROWS:05d}.parquet", chunk, files)
            count += len(chunk)
        return count
    opening, between, closing = ("[\n", ",\n", "\n]\n") if target.suffix == ".json" else ("", "\n", "\n")
    with open_whole(target) as file:
        file.write(opening)
        for row in rows:
            file.write((between if count else "") + json.dumps(row))
            count += 1
        file.write(closing if count or opening else "")
    return count


def _write_part(output: Path, part: str, rows: Sequence[dict[str, Any]], files: dict[str, str]) -> None:
    """Write a file with pictures inside, unless a run that was killed has, and add its digest to those of all files."""
    mark = output / WRITTEN / f"{part}.json"
    digests = read_checked(mark) or {part: files.get(part, "")}
    if differing(output, digests):
        write_parquet(to_dataset(rows), output / part)
        digests = {part: file_sha256(output / part)}
        write_whole(mark, as_json(summed(digests)))
    files |= digests


def listed(output: Path, parts: Mapping[str, str]) -> dict[str, str]:
    """Return the digests of all files of an export; of clips, the lists of their frames stand for these."""
    written = [*output.glob("*.json*"), *output.glob(f"frames/*/{frame_cache.LIST}")]
    others = {str(file.relative_to(output)): file_sha256(file) for file in written if file.name != MANIFEST}
    return dict(sorted({**parts, **others}.items()))


def is_whole(output: Path, files: Mapping[str, str]) -> bool:
    """Return whether the files of an export are there as they were written."""
    lost = differing(output, files)
    lost += [name for name in files if name.endswith(frame_cache.LIST) and not frame_cache.load((output / name).parent)]
    if lost:
        note(f"{output / lost[0]} is not there, or not what was written; the export is made again")
    return not lost
