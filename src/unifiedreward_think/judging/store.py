"""The file of judgments: a JSON line each, whole again after any kill, one file again after ranks shared the work.

A judgment holds everything that decided it (model, sampling, prompts, frames, the content of its record). A file of
judgments made with other settings is refused, so that two experiments are never mixed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any

from unifiedreward_think.backends.placement import PLACEMENT
from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.judging.content import content_of
from unifiedreward_think.judging.ranks import Ranks
from unifiedreward_think.records import Judgment, PreferenceRecord
from unifiedreward_think.strict_json import json_lines, read_json_lines
from unifiedreward_think.terminal import note
from unifiedreward_think.writing import write_whole

Key = tuple[str, str, int]  # record id, order, sample


def load_judgments(path: Path) -> dict[Key, Judgment]:
    """Read judgments by (record id, order, sample).

    The file is only read. A last line without its line break was cut by a kill, or is just being written: it is left
    out. Of two judgments of the same item the later one counts.

    Raises:
        RecordError: a line is no judgment; the message names file and line.
    """
    whole = path.read_bytes().count(b"\n")
    rows = {}
    for number, row in islice(read_json_lines(path), whole):
        try:
            judgment = Judgment.from_json(row)
        except RecordError as error:
            raise RecordError(f"{path}:{number}: {error}") from error
        rows[key_of(judgment)] = judgment
    return rows


def part_of(output: Path, ranks: Ranks) -> Path:
    """Return the file that this rank appends to."""
    return output if ranks.count == 1 else output.with_name(f"{output.name}.rank{ranks.rank}")


def resume(
    path: Path, wanted: set[Key], settings: Mapping[str, Any], records: Iterable[PreferenceRecord]
) -> dict[Key, Judgment]:
    """Return what is done, and leave just that in the file: no cut line, and no failed item that is tried again.

    What ranks of an interrupted run have left moves into it. A judgment of a record whose content has changed since is
    left out, to be judged again; labels become those of `records`.

    Raises:
        RecordError: it holds a broken line, or judgments made with other settings.
        OutputError: it cannot be written.
    """
    parts = _parts(path)
    if not parts and not path.exists():
        return {}
    rows = load_judgments(path) if path.exists() else {}
    for part in parts:
        rows |= load_judgments(part)
    for row in rows.values():
        before = {"model": row.model, "decoder": row.decoder or settings["decoder"], "form": row.form, **row.settings}
        keys = (before.keys() | settings) - {PLACEMENT}  # whether the server could be checked decides nothing
        if different := sorted(key for key in keys if before.get(key) != settings.get(key)):
            key = different[0]
            raise RecordError(
                f"{path}: holds judgments made with {key} = {before.get(key)!r}, now it is {settings.get(key)!r}; "
                "choose another output folder, or remove this file to judge again"
            )
    done = _of_today({key: row for key, row in rows.items() if not (row.error and key in wanted)}, records)
    text = json_lines(done.values())
    if parts or text.encode() != path.read_bytes():
        write_whole(path, text)
    for part in parts:
        part.unlink()
    return done


def _of_today(rows: Mapping[Key, Judgment], records: Iterable[PreferenceRecord]) -> dict[Key, Judgment]:
    """Return the judgments that are still of what the records hold, with the labels that they have now."""
    today = {record.id: record for record in records}
    contents: dict[str, str] = {}
    kept = {}
    for key, row in rows.items():
        if record := today.get(row.record_id):
            content = contents.setdefault(record.id, content_of(record)) if row.content else ""
            if content and content != row.content:
                continue
            row = row.labelled(record)
        kept[key] = row
    if changed := len(rows) - len(kept):
        note(f"{changed} judgments are of records that have changed since; they are made again")
    return kept


def merge_parts(output: Path, keys: Sequence[Key], done: dict[Key, Judgment]) -> dict[Key, Judgment]:
    """Make one file of what was done before and of all parts, in the order of `keys`, and return its judgments.

    Raises:
        InputError: some of `keys` are missing: another rank wrote into another folder.
        OutputError: it cannot be written.
    """
    parts = _parts(output)
    for part in parts:
        done = {**done, **load_judgments(part)}
    if missing := len(set(keys) - done.keys()):
        raise InputError(
            f"{output}: {missing} judgments of other ranks are not here; put it into a folder that all nodes share"
        )
    merged = {key: done[key] for key in dict.fromkeys([*keys, *done])}
    if parts or list(merged) != list(done):
        write_whole(output, json_lines(merged.values()))
    for part in parts:
        part.unlink()
    return merged


def _parts(output: Path) -> list[Path]:
    """Return the files that ranks have left."""
    return sorted(output.parent.glob(f"{escape(output.name)}.rank*"))


def key_of(row: Judgment) -> Key:
    """Return what a judgment is of."""
    return row.record_id, row.order, row.sample


def write_evaluation(folder: Path, records: Iterable[PreferenceRecord], results: Mapping[str, Any]) -> None:
    """Write what stands beside judgments.jsonl in the folder of an evaluation: records.jsonl and results.json.

    Raises:
        OutputError: they cannot be written.
    """
    write_whole(folder / "records.jsonl", json_lines(records))
    write_whole(folder / "results.json", json.dumps(results, indent=1) + "\n")
