"""One row of a source as a record: fields from the columns, media checked, order drawn, label after the swap.

>>> from unifiedreward_think.data.sources.declaration import read_source
>>> text = "{name: demo, judged_by: people, task: image_understanding, facts: [], unverified: [], "
>>> source = read_source(text + "label: {rule: first}, fields: {prompt: q, media: [i], answers: [x, y]}}", "demo.yaml")
>>> class Anything:
...     def entry(self, value):
...         return (value,)
>>> converter = Converter(source, ["q", "i", "x", "y"], {}, "train", Anything(), seed=0)
>>> stored, first = converter.convert({"q": "What?", "i": "a.png", "x": "A cat.", "y": "A dog."}, "demo-train-1")
>>> stored.record.answers[stored.record.preferred - 1], first
('A cat.', True)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from unifiedreward_think.data.formats.released import PLACEHOLDER
from unifiedreward_think.data.formats.shapes import Origin, check_text, read_record, read_trace
from unifiedreward_think.data.shards import Stored, with_record
from unifiedreward_think.data.sources.declaration import Source
from unifiedreward_think.data.sources.labels import Label
from unifiedreward_think.data.sources.pairing import PairRow
from unifiedreward_think.errors import RecordError
from unifiedreward_think.records import PreferenceRecord, digest
from unifiedreward_think.tasks import TASKS


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
        found: Sequence[str],
        renamed: Mapping[str, str],
        stem: str,
        media: Media,
        seed: int,
    ) -> None:
        self._source, self._stem, self._media, self._seed = source, stem, media, seed
        self._mapping = source.mapping(found, renamed) if source.shape == "columns" else None
        self._generation = source.task in TASKS and TASKS[source.task].compares_media  # released rows name their own

    def name(self, row: PairRow) -> str:
        """Return the id of a pair: source, input and number, so that ids never repeat."""
        return f"{self._source.name}-{self._stem}-{row.number}" + (f"-{row.part}" if row.part else "")

    def convert(self, row: Mapping[str, Any], name: str) -> tuple[Stored, bool | None]:
        """Return a row as a record, and whether the first candidate was preferred before the order was drawn.

        Raises:
            LeftOut: the declaration leaves the row out.
            RecordError: the row cannot be used.
        """
        stored = self._known(row, name) if self._mapping is None else self._mapped(row, name)
        record = stored.record
        if record.preferred is None:
            raise RecordError('preferred is missing; write 1, 2 or "tie"')
        check_text(record.prompt, record.instruction, *record.answers, *(p for e in record.media for p in e))
        first = None if record.preferred == "tie" else record.preferred == 1
        # A trace names the candidates by their place, so it stays as it is.
        if not stored.completion and record.swappable and digest("position", self._seed, name) % 2:
            swapped = record.shown("ba")
            stored = with_record(stored, media=swapped.media, answers=swapped.answers, preferred=swapped.preferred)
        return stored, first

    def _mapped(self, row: Mapping[str, Any], name: str) -> Stored:
        mapping = self._mapping
        assert mapping is not None
        prompt = PLACEHOLDER.sub("", _text(mapping.prompt.get(row), "prompt")).strip()
        if not prompt:
            raise RecordError("the prompt is empty")
        label: Label = mapping.label(row)
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
        )
        return Stored(record=record, margin=label.margin, votes=label.votes, judged_by=self._source.judged_by)

    def _known(self, row: Mapping[str, Any], name: str) -> Stored:
        """Read a row of a known shape; its own id and source, where it has them, are not unique across files."""
        origin = Origin(name, self._source.name, Path())
        trace = read_trace(row, origin) if "conversations" in row or "record" in row else None
        record = trace.record if trace else read_record(row, origin)
        group = record.group or f"{digest(record.prompt if record.task.endswith('generation') else record.media):016x}"
        stored = Stored(
            record=record,
            judged_by=self._source.judged_by,
            completion=trace.completion if trace else "",
            order=trace.order if trace else "ab",
        )
        media = tuple(self._media.entry(entry[0] if len(entry) == 1 else entry) for entry in record.media)
        return with_record(stored, id=name, media=media, group=group, source=record.source or self._source.name)


def _text(value: Any, name: str) -> str:
    """Return a text, as it is or under `value` (as some converters write answers)."""
    if isinstance(value, Mapping) and isinstance(value.get("value"), str):
        value = value["value"]
    if not isinstance(value, str):
        raise RecordError(f"{name} is {str(value)[:60]!r} ({type(value).__name__}); expected a text")
    return value
