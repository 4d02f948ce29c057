"""One JSON object as a record or a trace, whichever of the known shapes it has.

>>> origin = Origin(name="train-1", source="train", root=Path("/data"))
>>> row = {"id": "kite-1", "task": "image_generation", "prompt": "a red kite", "media": ["a.png", "b.png"]}
>>> read_record(row, origin).media
(('/data/a.png',), ('/data/b.png',))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from unifiedreward_think.data.formats.files import is_url
from unifiedreward_think.data.formats.released import read_conversation, read_problem
from unifiedreward_think.errors import RecordError
from unifiedreward_think.forms import PAIRWISE, Form
from unifiedreward_think.order import STORED_ORDER
from unifiedreward_think.prompting import instruction_parts
from unifiedreward_think.records import Judgment, PreferenceRecord, Trace
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.trace_rules import rejections

SHAPES = (
    "record (id, task, prompt, media, preferred)",
    "trace (record, completion, order)",
    "released SFT row (conversations, images)",
    "released GRPO row (problem, solution, images)",
)


class Origin(NamedTuple):
    """What a row does not say itself: its name if it has no id, its source, the folder of its relative paths."""

    name: str
    source: str
    root: Path


def read_record(row: Mapping[str, Any], origin: Origin) -> PreferenceRecord:
    """Build a record, with absolute media paths, from an object of any shape; of a trace its record is taken.

    Raises:
        RecordError: the keys fit no shape, or what they hold cannot be used.
    """
    if "record" in row or "conversations" in row:
        return _trace(row, origin).record
    if "problem" in row:
        return _placed(read_problem(row, name=origin.name, source=origin.source), origin.root)
    if "media" in row or "task" in row:
        return _placed(PreferenceRecord.from_json(row), origin.root)
    raise RecordError(f"unknown shape with the keys {_keys(row)}; expected a {', a '.join(SHAPES)}")


def read_trace(row: Mapping[str, Any], origin: Origin, *, form: Form = PAIRWISE) -> Trace:
    """Build a trace, with absolute media paths, from one of our own or from a released SFT row.

    Raises:
        RecordError: the object is no trace, it cannot be used, or its completion would teach something wrong.
    """
    trace = _trace(row, origin)
    record, noun = trace.record, TASKS[trace.record.task].noun
    if trace.order not in (orders := form.orders(record)):
        raise RecordError(f"order is {trace.order!r}; write {' or '.join(map(repr, orders))}")
    judgment = Judgment(
        record_id=record.id,
        order=trace.order,
        form=form.name,
        completion=trace.completion,
        verdict=form.parse(trace.completion, noun),
        task=record.task,
    ).labelled(record)
    # How exact the form must be is a choice of whoever samples traces; those written before it are read, too.
    if reasons := rejections(judgment, require_strict=False, require_arithmetic=False):
        raise RecordError(
            f"the completion is no training trace: {reasons[0]} (in order {trace.order!r}, preferred is "
            f"{record.preferred!r}, candidates are called {noun}); correct it or the label, or remove the row"
        )
    return trace


def _trace(row: Mapping[str, Any], origin: Origin) -> Trace:
    if "conversations" in row:
        trace = read_conversation(row, name=origin.name, source=origin.source)
    elif "record" in row:
        trace = Trace.from_json(row)
    else:
        raise RecordError(f"no trace, found the keys {_keys(row)}; expected a {SHAPES[1]} or a {SHAPES[2]}")
    if trace.order != STORED_ORDER and not trace.record.swappable:
        raise RecordError(
            f"order is {trace.order!r}, but the answers are inside a ready-made instruction; only 'ab' works"
        )
    check_text(trace.completion)
    return replace(trace, record=_placed(trace.record, origin.root))


def _placed(record: PreferenceRecord, root: Path) -> PreferenceRecord:
    """Return a record with absolute media paths, refusing what passes for valid but no stage could use."""
    paths = [path for entry in record.media for path in entry]
    check_text(record.id, record.prompt, record.instruction, *record.answers, *paths)
    if record.places:
        instruction_parts(record)  # refuses places that do not fit
    media = tuple(tuple(_absolute(path, root) for path in entry) for entry in record.media)
    return replace(record, media=media)


def _absolute(path: str, root: Path) -> str:
    # A picture pasted in as base64 is longer than any path, and would fail in the operating system's own words.
    full = str(root / path)
    too_long = len(full.encode()) > 4000 or any(len(part.encode()) > 255 for part in path.split("/"))
    if too_long or is_url(path):
        raise RecordError(f"media {path[:60]!r} is no path; save it as a file and name that")
    return full


def check_text(*texts: str) -> None:
    """Refuse half of a surrogate pair, which JSON can spell (an emoji cut in two) but no tokenizer reads."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise RecordError(f"a text holds {half!r}, half of a character; write all of it or none") from error


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "none"
