r"""Clean imported records: open all media, find duplicates and conflicts, and take benchmark rows out.

    python -m unifiedreward_think.data check --input data/hpdv2 data/oip --output data/clean \
        --against benchmarks/vl_rewardbench.json benchmarks/genai_images/

Every row that is left out is listed with its reason in `left_out/`. Opening the media takes nearly all the time; their
fingerprints are kept in `fingerprints/`, so that a killed run goes on. Memory does not grow with the rows: what must be
known of all of them is in a database in the output folder, which is removed at the end.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from unifiedreward_think.data.arguments import add_frames, command, frame_sampling
from unifiedreward_think.data.curation.cleaning import Benchmarks, Duplicates, Limits, number_of, own_problem, pixels_of
from unifiedreward_think.data.curation.fingerprints import Fingerprint, fingerprint
from unifiedreward_think.data.formats.files import BadRow, DataError
from unifiedreward_think.data.shards import (
    PART_ROWS,
    Part,
    Removal,
    ShardFolder,
    Stored,
    as_json,
    described,
    read_stored,
    total_rows,
)
from unifiedreward_think.data.sources.readers import read_rows
from unifiedreward_think.entry import run_main
from unifiedreward_think.media import IMAGE_SUFFIXES, FrameSampling
from unifiedreward_think.progress import progress
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.writing import write_whole

Entry = tuple[tuple[str, ...], str]  # paths and kind of a media entry
Opened = list[tuple[str, Stored, list[Fingerprint]]]  # place of a row, the row, and the fingerprints of its media
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
                for place, stored, found in batch:
                    problem = own_problem(stored.record, found, limits)
                    seen.add(place, stored, found, problem or benchmarks.problem(stored.record, found, limits))
            shards.done = 0  # deciding takes little time and sees all rows: it starts over
            rows = seen.decided(folders)
            while chunk := list(islice(rows, PART_ROWS)):
                shards.write(_part(chunk), len(chunk))
    return shards.finish(about)


def _benchmark(path: Path) -> dict[str, Any]:
    """Return what identifies a benchmark: the hash of a file, the number of files in a folder."""
    if path.is_file():
        return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return {"path": str(path), "files": sum(1 for _ in path.rglob("*"))}


Decision = tuple[str, int, Stored, str]


def _part(chunk: Iterable[Decision]) -> Part:
    part = Part()
    for file, number, stored, problem in chunk:
        if problem:
            part.removals.append(Removal(BadRow(file, number, stored.record.id, problem), broken=False))
        else:
            part.rows.append(stored)
    return part


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

    def keep(self, entries: Iterable[Entry], found: Iterable[Fingerprint]) -> None:
        """Remember the fingerprints of media entries."""
        rows = ((number_of(*entry), *values) for entry, values in zip(entries, found, strict=True))
        self._database.executemany("INSERT INTO media VALUES (?, ?, ?, ?, ?, ?)", rows)

    def add(self, place: str, stored: Stored, found: Sequence[Fingerprint], problem: str) -> None:
        """Remember the next row and what is wrong with it by itself.

        Raises:
            DataError: its id occurred before.
        """
        record = stored.record
        try:
            self._database.execute("INSERT INTO ids VALUES (?)", [number_of(record.id)])
        except sqlite3.IntegrityError as error:
            raise DataError(f"{place}: record {record.id!r} occurs twice; name every import once") from error
        key = None if problem else self._duplicates.see(record, found)
        row = (self._rows, key, pixels_of(found), problem)
        self._database.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", row)
        self._rows += 1

    def decided(self, folders: Sequence[Path]) -> Iterator[Decision]:
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


def entries_of(stored: Stored) -> list[Entry]:
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
            if file.is_file():
                found = [Fingerprint(*values) for values in json.loads(file.read_bytes())]
            else:
                found = list(threads.map(lambda entry: fingerprint(entry[0], entry[1], sampling), new))
                write_whole(file, as_json(found))
            seen.keep(new, found)
            prints.update(zip(new, found, strict=True))
            yield [(f"{part}: row {n}", row, [prints[e] for e in entries_of(row)]) for part, n, row in batch]
            advance(len(batch))


def read_benchmarks(paths: Sequence[Path], limits: Limits, sampling: FrameSampling) -> Benchmarks:
    """Read what must not be trained on: the prompts of files and their media, and the pictures of folders.

    Raises:
        DataError: a path does not exist, or a file has no column of prompts.
    """
    known = Benchmarks(limits.near)
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
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


def _sound(found: Fingerprint) -> Fingerprint:
    if found.error:
        raise DataError(f"a benchmark's picture cannot be opened: {found.error}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Clean from the command line."""
    parser = command("check", __doc__, output="folder for the records that stay; a rerun goes on from it")
    add, limits = parser.add_argument, Limits()
    add("--against", type=Path, nargs="*", default=[], help="benchmarks: files with prompts, folders of pictures")
    add("--near", type=int, default=limits.near, help="bits of 64 in which near duplicates may differ; -1: exact only")
    add("--min-chars", type=int, default=limits.min_chars, help="of a prompt")
    add("--max-chars", type=int, default=limits.max_chars, help="of a prompt")
    add("--max-answer-chars", type=int, default=limits.max_answer_chars, help="of an answer")
    add("--script", default=limits.script, help="most letters of a prompt must be of it, e.g. LATIN (default: any)")
    add("--prompt-words", type=int, default=limits.prompt_words, help="shorter questions are in no benchmark by text")
    add("--workers", type=int, default=2, help="threads that open media")
    add_frames(parser)
    args = parser.parse_args(arguments)
    names = ("near", "min_chars", "max_chars", "max_answer_chars", "script", "prompt_words")
    manifest = clean(
        args.input,
        args.output,
        limits=Limits(**{name: getattr(args, name) for name in names}),
        sampling=frame_sampling(args, args.output / "frames"),
        against=args.against,
        workers=args.workers,
    )
    print(as_json(manifest["counts"]), end="")


if __name__ == "__main__":
    run_main(main)
