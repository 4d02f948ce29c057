r"""Clean imported records: open all media, find duplicates and conflicts, and take benchmark rows out.

    python -m unifiedreward_think.data check --input data/hpdv2 data/oip --output data/clean \
        --against benchmarks/vl_rewardbench.json benchmarks/genai_images/

Every row that is left out is listed with its reason in `left_out/`. Opening the media takes nearly all the time; their
fingerprints are kept in `fingerprints/`, so that a killed run goes on. Memory does not grow with the rows: what must be
known of all of them is in a database in the output folder, which is removed at the end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from unifiedreward_think.checksums import file_sha256, read_checked, summed
from unifiedreward_think.data.arguments import FRAMES, ShownArguments, command, frame_sampling
from unifiedreward_think.data.curation.cleaning import Benchmarks, Duplicates, Limits, number_of, own_problem, pixels_of
from unifiedreward_think.data.curation.fingerprints import Fingerprint, fingerprint
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.shards import (
    Decided,
    ShardFolder,
    as_json,
    described,
    parts_kept,
    read_stored,
    total_rows,
)
from unifiedreward_think.data.sources.media_store import damaged
from unifiedreward_think.data.sources.readers import read_rows, visible_files
from unifiedreward_think.flags import Count, ranged, read
from unifiedreward_think.media import IMAGE_SUFFIXES, FrameSampling
from unifiedreward_think.progress import progress
from unifiedreward_think.records import Trace
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.writing import write_whole

Entry = tuple[tuple[str, ...], str]  # paths and kind of a media entry
Opened = list[tuple[str, Trace, list[Fingerprint]]]  # place of a row, the row, and the fingerprints of its media
BATCH = 500  # rows whose fingerprints are written at once
PROMPT_KEYS = ("prompt", "query", "prompt_text", "question", "Text", "problem")


def clean(
    folders: Sequence[Path],
    output: Path,
    *,
    limits: Limits,
    sampling: FrameSampling,
    against: Sequence[Path] = (),
    workers: int = 2,
) -> dict[str, Any]:
    """Write the records of `folders` that are worth training on to `output` and return its manifest.

    Args:
        folders: complete imports.
        output: folder for the records.
        limits: what a record may be.
        sampling: how videos become frames.
        against: benchmarks: files with prompts (and media, if they are our records), or folders of pictures.
        workers: threads that open media.

    Raises:
        DataError: a folder is not complete, a record id occurs twice, or a benchmark cannot be read.
    """
    frames = {"frames": sampling.frames, "decoder": sampling.decoder}
    chosen = {**asdict(limits), **frames, "against": list(map(_benchmark, against))}
    about = {"command": "check", "inputs": [described(folder) for folder in folders], "settings": chosen}
    shards = ShardFolder(output, about)
    if not shards.finished:
        benchmarks = read_benchmarks(against, limits, sampling)
        with scratch_database(output / "scratch.sqlite") as database:
            seen = Seen(database, limits.near)
            for batch in _opened(folders, output / "fingerprints", seen, sampling, workers):
                for place, stored, prints in batch:
                    problem = own_problem(stored.record, prints, limits)
                    seen.add(place, stored, prints, problem or benchmarks.problem(stored.record, prints, limits))
            shards.write_decided(seen.decided(folders))
    return shards.finish(about)


def _benchmark(path: Path) -> dict[str, Any]:
    """Return what identifies a benchmark: the hash of a file, the number of files in a folder."""
    if path.is_file():
        return {"path": str(path), "sha256": file_sha256(path)}
    return {"path": str(path), "files": len(visible_files(path, IMAGE_SUFFIXES))}


class Seen:
    """What deciding has to know of all media and all rows, in a database: memory does not grow with them."""

    def __init__(self, database: sqlite3.Connection, near: int) -> None:
        self._database, self._rows = database, 0
        self._duplicates = Duplicates(near, database)
        prints = "sha256 TEXT, phash TEXT, width INTEGER, height INTEGER, error TEXT"
        database.execute(f"CREATE TABLE media (entry INTEGER PRIMARY KEY, {prints})")
        database.execute("CREATE TABLE ids (id INTEGER PRIMARY KEY)")
        database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, key INTEGER, pixels INTEGER, problem TEXT)")

    def fingerprint(self, entry: Entry) -> Fingerprint | None:
        """Return the fingerprint of a media entry, None if it is not known yet."""
        query = "SELECT sha256, phash, width, height, error FROM media WHERE entry = ?"
        row = self._database.execute(query, [number_of(*entry)]).fetchone()
        return Fingerprint(*row) if row else None

    def keep(self, entries: Iterable[Entry], prints: Iterable[Fingerprint]) -> None:
        """Remember the fingerprints of media entries."""
        rows = ((number_of(*entry), *values) for entry, values in zip(entries, prints, strict=True))
        self._database.executemany("INSERT INTO media VALUES (?, ?, ?, ?, ?, ?)", rows)

    def add(self, place: str, stored: Trace, prints: Sequence[Fingerprint], problem: str) -> None:
        """Remember the next row and what is wrong with it by itself.

        Raises:
            DataError: its id occurred before.
        """
        record = stored.record
        try:
            self._database.execute("INSERT INTO ids VALUES (?)", [number_of(record.id)])
        except sqlite3.IntegrityError as error:
            raise DataError(f"{place}: record {record.id!r} occurs twice; name every import once") from error
        key = None if problem else self._duplicates.see(record, prints)
        row = (self._rows, key, pixels_of(prints), problem)
        self._database.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", row)
        self._rows += 1

    def decided(self, folders: Sequence[Path]) -> Iterator[Decided]:
        """Yield every row with the reason to leave it out, "" to keep it."""
        known = self._database.execute("SELECT key, pixels, problem FROM rows ORDER BY number")
        for (file, number, stored), (key, pixels, problem) in zip(read_stored(folders), known, strict=True):
            yield file, number, stored, problem or self._duplicates.problem(key, stored.record, pixels)


@contextmanager
def scratch_database(file: Path) -> Iterator[sqlite3.Connection]:
    """Open an empty database that is worth nothing after the run: it is removed at its end, and after a kill."""
    file.unlink(missing_ok=True)
    database = sqlite3.connect(file, isolation_level=None)
    try:
        for setting in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = -65536"):
            database.execute(f"PRAGMA {setting}")
        database.execute("BEGIN")
        yield database
    finally:
        database.close()
        file.unlink()


def entries_of(stored: Trace) -> list[Entry]:
    """Return the media entries of a row with their kind."""
    kind = TASKS[stored.record.task].media_kind
    return [(paths, kind) for paths in stored.record.media]


def _opened(
    folders: Sequence[Path], store: Path, seen: Seen, sampling: FrameSampling, workers: int
) -> Iterator[Opened]:
    """Yield all rows in batches with the fingerprints of their media, making those that no earlier run has made."""
    store.mkdir(parents=True, exist_ok=True)
    rows = read_stored(folders)
    with (
        progress(total_rows(folders), "opening media", unit="record") as advance,
        ThreadPoolExecutor(max_workers=workers) as threads,
    ):
        for number, batch in enumerate(iter(lambda: list(islice(rows, BATCH)), [])):
            file = store / f"{number:06d}.json"
            wanted = dict.fromkeys(entry for _, _, row in batch for entry in entries_of(row))
            prints = {entry: known for entry in wanted if (known := seen.fingerprint(entry))}
            new = [entry for entry in wanted if entry not in prints]
            about, kept = f"{number_of(*new)}", read_checked(file) or {}
            if kept.get("entries") == about:
                new_prints = [Fingerprint(*values) for values in kept["prints"]]
            else:
                new_prints = list(threads.map(lambda entry: _fingerprint(entry, folders, sampling), new))
                write_whole(file, as_json(summed({"entries": about, "prints": new_prints})))
            seen.keep(new, new_prints)
            prints.update(zip(new, new_prints, strict=True))
            yield [(f"{part}: row {n}", row, [prints[e] for e in entries_of(row)]) for part, n, row in batch]
            advance(len(batch))


def _fingerprint(entry: Entry, folders: Sequence[Path], sampling: FrameSampling) -> Fingerprint:
    """Return the fingerprint of a media entry; what an import has stored must be what it stored."""
    paths, kind = entry
    for folder in folders:
        if lost := damaged(folder, [path.removeprefix(f"{folder.absolute()}/") for path in paths]):
            fix = "run the import again, and this into another folder"
            return Fingerprint(error=f"{folder / lost[0]}: not there, or not what was imported; {fix}")
    return fingerprint(paths, kind, sampling)


def read_benchmarks(paths: Sequence[Path], limits: Limits, sampling: FrameSampling) -> Benchmarks:
    """Read what must not be trained on: the prompts of files and their media, and the pictures of folders.

    Raises:
        DataError: a path does not exist, or a file has no column of prompts.
    """
    known = Benchmarks(limits.near)
    for path in paths:
        if path.is_dir():
            files = visible_files(path, IMAGE_SUFFIXES)
            if not files:
                raise DataError(f"{path}: no picture in this folder; name a folder of pictures or a file of prompts")
            for file in files:
                known.add_picture(_sound(fingerprint([str(file)], "image", sampling)), path.name)
            continue
        for number, row in read_rows(path):
            values = row if isinstance(row, Mapping) else {}
            prompts = [values[key] for key in PROMPT_KEYS if isinstance(values.get(key), str)]
            if not prompts:
                raise DataError(
                    f"{path}: row {number}: no prompt; expected one of the columns {', '.join(PROMPT_KEYS)}"
                )
            known.add_prompt(prompts[0], path.stem)
            for entry in values["media"] if isinstance(values.get("media"), list) else []:
                files = [path.parent / name for name in ([entry] if isinstance(entry, str) else entry)]
                kind = TASKS[values["task"]].media_kind if values.get("task") in TASKS else "image"
                known.add_picture(_sound(fingerprint([str(file) for file in files], kind, sampling)), path.stem)
    return known


def _sound(picture: Fingerprint) -> Fingerprint:
    if picture.error:
        raise DataError(f"a benchmark's picture cannot be opened: {picture.error}")
    return picture


def main(arguments: Sequence[str] | None = None) -> None:
    """Clean from the command line."""
    parser = command("check", __doc__, output="folder for the records that stay; a rerun goes on from it")
    add = parser.add_argument
    add("--against", type=Path, nargs="*", default=[], help="benchmarks: files with prompts, folders of pictures")
    add("--workers", type=ranged(Count), default=2, help="threads that open media")
    parser.add(Limits)
    parser.add(ShownArguments, *FRAMES)
    args = parser.parse_args(arguments)
    with parts_kept(args.output):
        manifest = clean(
            args.input,
            args.output,
            limits=read(args, Limits),
            sampling=frame_sampling(args, args.output / "frames"),
            against=args.against,
            workers=args.workers,
        )
    print(as_json(manifest["counts"]), end="")
