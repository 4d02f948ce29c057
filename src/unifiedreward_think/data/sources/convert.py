"""One row of a source as a record: fields from the columns, media checked, order drawn, label after the swap.

>>> from unifiedreward_think.data.sources.declaration import read_source
>>> text = "{name: demo, judged_by: people, task: image_understanding, facts: [], unverified: [], "
>>> source = read_source(text + "label: {rule: first}, fields: {prompt: q, media: [i], answers: [x, y]}}", "demo.yaml")
>>> class Anything:
...     def entry(self, value):
...         return (value,)
>>> converter = Converter(source, ["q", "i", "x", "y"], {}, "train", Anything(), seed=0)
>>> trace, first = converter.convert({"q": "What?", "i": "a.png", "x": "A cat.", "y": "A dog."}, "demo-train-1")
>>> trace.record.answers[trace.record.preferred - 1], first
('A cat.', True)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from unifiedreward_think.data.formats.shapes import Origin, check_text, read_record, read_trace
from unifiedreward_think.data.sources.declaration import Source
from unifiedreward_think.data.sources.labels import Label
from unifiedreward_think.data.sources.pairing import PairRow
from unifiedreward_think.errors import RecordError
from unifiedreward_think.forms import PAIRWISE
from unifiedreward_think.order import letters
from unifiedreward_think.records import PreferenceRecord, Trace, digest
from unifiedreward_think.tasks import TASKS

# LLaVA's files mark the pictures in front of a question or after it; a mark inside of a text is part of the text.
_OUTER_MARKS = re.compile(r"\A(\s*<(image|video)>)+|(<(image|video)>\s*)+\Z")


class Media(Protocol):
    """What turns the value of a media column into paths."""

    def entry(self, value: Any) -> tuple[str, ...]:
        """Return the paths of one media entry."""
        ...


class Converter:
    """Turns rows of one input into records.

    Args:
        source: the declaration.
        found: the columns of the input.
        renamed: expected column -> the one found.
        stem: what the input is called in record ids.
        media: finds the media.
        seed: decides which candidate stands first.

    Raises:
        DataError: a declared column is missing.
    """

    def __init__(
        self,
        source: Source,
        columns: Sequence[str],
        renamed: Mapping[str, str],
        stem: str,
        media: Media,
        seed: int,
    ) -> None:
        self._source, self._stem, self._media, self._seed = source, stem, media, seed
        self._mapping = source.mapping(columns, renamed) if source.shape == "columns" else None
        self._generation = source.task in TASKS and TASKS[source.task].compares_media  # released rows name their own

    def name(self, row: PairRow) -> str:
        """Return the id of a pair: source, input and number, so that ids never repeat."""
        return f"{self._source.name}-{self._stem}-{row.number}" + (f"-{row.part}" if row.part else "")

    def convert(self, row: Mapping[str, Any], name: str) -> tuple[Trace, bool | None]:
        """Return a row as a record, and whether the first candidate was preferred before the order was drawn.

        Raises:
            LeftOut: the declaration leaves the row out.
            RecordError: the row cannot be used.
        """
        trace = self._known(row, name) if self._mapping is None else self._mapped(row, name)
        record = trace.record
        if record.preferred is None and not record.scores:
            raise RecordError('preferred is missing; write 1, 2 or "tie"')
        check_text(record.prompt, record.instruction, *record.answers, *(p for e in record.media for p in e))
        first = record.preferred == 1 if isinstance(record.preferred, int) else None
        # A trace names the candidates by their place, so it stays as it is.
        if not trace.completion and record.swappable and record.count > 1:
            trace = replace(trace, record=record.shown(self._drawn_order(record.count, name)))
        return trace, first

    def _drawn_order(self, count: int, name: str) -> str:
        """Draw the order in which candidates are stored, so that their places say nothing."""
        if count == PAIRWISE.candidates:
            return "ba" if digest("position", self._seed, name) % 2 else "ab"
        return "".join(sorted(letters(count), key=lambda letter: digest("position", self._seed, name, letter)))

    def _mapped(self, row: Mapping[str, Any], name: str) -> Trace:
        mapping = self._mapping
        assert mapping is not None
        label: Label = mapping.label(row)  # first, as it may leave the row out
        prompt = _OUTER_MARKS.sub("", _text(mapping.prompt.get(row), "prompt")).strip()
        if not prompt:
            raise RecordError("the prompt is empty")
        answers = tuple(_text(column.get(row), "answers") for column in mapping.answers)
        media = tuple(self._media.entry(column.get(row)) for column in mapping.media)
        if self._source.task == "image_generation" and (most := max(map(len, media))) > 1:
            raise RecordError(f"a candidate has {most} files, an image has one; if they are frames, import as videos")
        shared = [column.get(row) for column in mapping.group] or ([prompt] if self._generation else [media])
        record = PreferenceRecord(
            id=name,
            task=self._source.task,
            prompt=prompt,
            media=media,
            answers=answers,
            preferred=label.preferred,
            source=self._source.name,
            group=f"{digest(*shared):016x}",
            margin=label.margin,
            votes=label.votes,
            scores=label.scores,
            scale=label.scale,
            judged_by=self._source.judged_by,
        )
        return Trace(record=record)

    def _known(self, row: Mapping[str, Any], name: str) -> Trace:
        """Read a row of a known shape; its own id and source, where it has them, are not unique across files."""
        origin = Origin(name, self._source.name, Path())
        traced = "conversations" in row or "record" in row
        trace = read_trace(row, origin) if traced else Trace(record=read_record(row, origin))
        record = trace.record
        by_prompt = TASKS[record.task].compares_media
        record = replace(
            record,
            id=name,
            media=tuple(self._media.entry(entry[0] if len(entry) == 1 else entry) for entry in record.media),
            group=record.group or f"{digest(record.prompt if by_prompt else record.media):016x}",
            source=record.source or self._source.name,
            judged_by=record.judged_by or self._source.judged_by,
        )
        return replace(trace, record=record)


def _text(value: Any, name: str) -> str:
    """Return a text, as it is or under `value` (as some converters write answers)."""
    if isinstance(value, Mapping) and isinstance(value.get("value"), str):
        value = value["value"]
    if not isinstance(value, str):
        raise RecordError(f"{name} is {str(value)[:60]!r} ({type(value).__name__}); expected a text")
    return value
