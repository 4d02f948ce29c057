r"""Clean imported records: open all media, find duplicates and conflicts, and take benchmark rows out.

    python -m unifiedreward_think.data check --input data/hpdv2 data/oip --output data/clean \
        --against benchmarks/vl_rewardbench.json benchmarks/genai_images/

Every row that is left out is listed with its reason in `left_out/`. Opening the media takes nearly all the time; their
fingerprints are kept in `fingerprints/`, so that a killed run goes on. Memory holds some hundred bytes a record.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from unifiedreward_think.data.cleaning import Benchmarks, Duplicates, Limits, own_problem
from unifiedreward_think.data.files import BadRow, DataError
from unifiedreward_think.data.fingerprints import Fingerprint, fingerprint
from unifiedreward_think.data.readers import read_rows
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
    write_bytes_whole,
)
from unifiedreward_think.entry import run_main
from unifiedreward_think.media import DECODERS, IMAGE_SUFFIXES, FrameSampling
from unifiedreward_think.progress import progress
from unifiedreward_think.records import digest
from unifiedreward_think.tasks import TASKS

Entry = tuple[tuple[str, ...], str]  # paths and kind of a media entry
Prints = dict[Entry, Fingerprint]
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
        prints = _fingerprints(folders, output / "fingerprints", sampling, workers)
        benchmarks = read_benchmarks(against, limits, sampling)
        shards.done = 0  # deciding takes seconds and sees all rows: it starts over
        rows = iter(_decided(folders, prints, benchmarks, limits))
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


def _decided(folders: Sequence[Path], prints: Prints, benchmarks: Benchmarks, limits: Limits) -> Iterator[Decision]:
    """Yield every row with the reason to leave it out, "" to keep it: one pass to see all pairs, one to decide."""
    duplicates, ids = Duplicates(limits.near), set()
    problems: dict[int, str] = {}
    keys: dict[int, int] = {}
    for i, (file, number, stored) in enumerate(read_stored(folders)):
        record = stored.record
        if (name := digest(record.id)) in ids:
            raise DataError(f"{file}: row {number}: record {record.id!r} occurs twice; name every import once")
        ids.add(name)
        found = [prints[entry] for entry in entries_of(stored)]
        problem = own_problem(record, found, limits) or benchmarks.problem(record, found, limits)
        if problem:
            problems[i] = problem
        else:
            keys[i] = duplicates.see(record, found)
    for i, (file, number, stored) in enumerate(read_stored(folders)):
        problem = problems.get(i, "")
        if not problem:
            found = [prints[entry] for entry in entries_of(stored)]
            problem = duplicates.problem(keys[i], stored.record, found)
        yield file, number, stored, problem


def entries_of(stored: Stored) -> list[Entry]:
    """Return the media entries of a row with their kind."""
    kind = TASKS[stored.record.task].media_kind
    return [(paths, kind) for paths in stored.record.media]


def _fingerprints(folders: Sequence[Path], store: Path, sampling: FrameSampling, workers: int) -> Prints:
    """Return the fingerprint of every media entry, making those that no earlier run has made."""
    store.mkdir(parents=True, exist_ok=True)
    prints: Prints = {}
    rows = (stored for _, _, stored in read_stored(folders))
    with (
        progress(total_rows(folders), "opening media", unit="record") as advance,
        ThreadPoolExecutor(max_workers=workers) as threads,
    ):
        for number, batch in enumerate(iter(lambda: list(islice(rows, BATCH)), [])):
            file = store / f"{number:06d}.json"
            new = [entry for entry in dict.fromkeys(e for row in batch for e in entries_of(row)) if entry not in prints]
            if file.is_file():
                found = [Fingerprint(*values) for values in json.loads(file.read_bytes())]
            else:
                found = list(threads.map(lambda entry: fingerprint(entry[0], entry[1], sampling), new))
                write_bytes_whole(file, as_json(found).encode())
            prints.update(zip(new, found, strict=True))
            advance(len(batch))
    return prints


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
    parser = argparse.ArgumentParser(
        prog="python -m unifiedreward_think.data check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, limits = parser.add_argument, Limits()
    add("--input", type=Path, nargs="+", required=True, help="folders of imports")
    add("--output", type=Path, required=True, help="folder for the records that stay; a rerun goes on from it")
    add("--against", type=Path, nargs="*", default=[], help="benchmarks: files with prompts, folders of pictures")
    add("--near", type=int, default=limits.near, help="bits of 64 in which near duplicates may differ; -1: exact only")
    add("--min-chars", type=int, default=limits.min_chars, help="of a prompt")
    add("--max-chars", type=int, default=limits.max_chars, help="of a prompt")
    add("--max-answer-chars", type=int, default=limits.max_answer_chars, help="of an answer")
    add("--script", default=limits.script, help="most letters of a prompt must be of it, e.g. LATIN (default: any)")
    add("--prompt-words", type=int, default=limits.prompt_words, help="shorter questions are in no benchmark by text")
    add("--frames", type=int, default=8, help="frames of each video")
    add("--decoder", choices=DECODERS, default="decord", help="reads the videos")
    add("--workers", type=int, default=2, help="threads that open media")
    args = parser.parse_args(arguments)
    names = ("near", "min_chars", "max_chars", "max_answer_chars", "script", "prompt_words")
    manifest = clean(
        args.input,
        args.output,
        limits=Limits(**{name: getattr(args, name) for name in names}),
        sampling=FrameSampling(frames=args.frames, cache=args.output / "frames", decoder=args.decoder),
        against=args.against,
        workers=args.workers,
    )
    print(as_json(manifest["counts"]), end="")


if __name__ == "__main__":
    run_main(main)
