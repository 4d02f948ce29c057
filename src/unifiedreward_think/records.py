"""The rows that travel through the project: `PreferenceRecord` in, `Judgment` out, both as JSON lines.

>>> record = PreferenceRecord(id="kite-1", task="image_generation", prompt="a red kite",
...                           media=(("a.png",), ("b.png",)), preferred=2)
>>> PreferenceRecord.from_json(record.to_json()) == record
True
>>> record.shown("ba").media, record.shown("ba").preferred
((('b.png',), ('a.png',)), 1)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

from unifiedreward_think import labels, lines
from unifiedreward_think.checksums import checked, summed
from unifiedreward_think.errors import RecordError
from unifiedreward_think.expectation import Expectation
from unifiedreward_think.forms import FORMS, PAIRWISE
from unifiedreward_think.order import STORED_ORDER, Order, in_order, is_order, winner_as_stored
from unifiedreward_think.tasks import TASK_NAMES, TASKS
from unifiedreward_think.verdict import Verdict

Preferred = int | Literal["tie"]


class Candidate(NamedTuple):
    """What is judged: media (one image or video file, or the frames of a video) or a text."""

    media: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRecord:
    """Candidates, from one to N, what they were asked for, and what people said of them.

    Attributes:
        id: unique in its data set; names the row in every later file and error.
        task: one of TASK_NAMES.
        prompt: the caption (generation) or the question (understanding).
        media: generation: one entry for each candidate; understanding: what the question is about. An entry is a tuple
            of paths: one image or video file, or the frames of a video in order.
        answers: the candidates of the understanding tasks, empty otherwise.
        preferred: the best candidate from 1, or "tie", in the order stored here; None when unlabelled. It follows
            from ranks or scores where it is absent.
        ranks: the rank of each candidate from 1; equal ranks are ties; empty when unranked.
        scores: the score of each candidate on `scale`, None for one without; empty when unscored.
        scale: lowest and highest possible score.
        margin: by how much the preferred one is better, in the units of the source.
        votes: how many people stand behind the label.
        judged_by: who they are: people, a model, a metric.
        source: data set the record comes from.
        group: rows that must stay together in splits and clustered intervals (same prompt, same images).
        instruction: a complete instruction in place of the task's prompt, as in the released SFT and GRPO files; that
            of an understanding task has its answers inside and cannot be swapped.
        places: the characters of the instruction before each media entry, or before each frame; empty: media first.
    """

    id: str
    task: str
    prompt: str
    media: tuple[tuple[str, ...], ...]
    answers: tuple[str, ...] = ()
    preferred: Preferred | None = None
    ranks: tuple[int, ...] = ()
    scores: tuple[float | None, ...] = ()
    scale: tuple[float, float] | None = None
    margin: float | None = None
    votes: int | None = None
    judged_by: str = ""
    source: str = ""
    group: str = ""
    instruction: str = ""
    places: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a row no stage could use; derive `preferred`."""
        if self.task not in TASK_NAMES:
            raise RecordError(f"record {self.id!r}: task {self.task!r} is not one of {', '.join(TASK_NAMES)}")
        needs = f"record {self.id!r}: {self.task} needs"
        compares_media = TASKS[self.task].compares_media
        if not self.media:
            what = "media of 2 candidates, found 0" if compares_media else "the media the question is about, found none"
            raise RecordError(f"{needs} {what}")
        if not compares_media and not self.instruction and not self.answers:
            raise RecordError(f"{needs} 2 answers, found 0")
        if any(not entry or not all(entry) for entry in self.media):
            raise RecordError(f"record {self.id!r}: an empty media path; name a file for every candidate")
        object.__setattr__(self, "preferred", labels.preferred_of(self))

    @property
    def count(self) -> int:
        """How many candidates there are; 2 where the instruction holds them."""
        return len(self.candidates) or PAIRWISE.candidates

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """What is judged, in the order stored; empty where the instruction holds the answers."""
        if TASKS[self.task].compares_media:
            return tuple(Candidate(media=entry) for entry in self.media)
        return tuple(Candidate(text=answer) for answer in self.answers)

    @property
    def swappable(self) -> bool:
        """Whether the candidates can be shown in another order."""
        return TASKS[self.task].compares_media or not self.instruction

    @property
    def winner(self) -> int | None:
        """The preferred candidate, from 1; None for ties and unlabelled rows."""
        return None if self.preferred == "tie" else self.preferred

    def shown(self, order: str) -> PreferenceRecord:
        """Return the record with the candidates that `order` names, in that order; the label follows.

        The one place where candidates change places: media (generation) or answers (understanding). The order may
        leave candidates out: "a" is the first one alone, whose rank among the others says nothing and goes.

        Raises:
            RecordError: the instruction holds the answers, or the order names a candidate twice or one not there.
        """
        if order == STORED_ORDER and self.count == len(order):
            return self
        if not self.swappable:
            raise RecordError(f"record {self.id!r}: its instruction holds the answers; only order 'ab' works")
        if not is_order(order, self.count):
            raise RecordError(f"record {self.id!r}: order {order!r} does not name some of its {self.count} candidates")
        compares_media = TASKS[self.task].compares_media
        return replace(
            self,
            media=in_order(self.media, order) if compares_media else self.media,
            answers=() if compares_media else in_order(self.answers, order),
            **labels.in_order_of(self, order),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form (`lines`): empty optional fields are left out, one-file media entries plain strings."""
        return lines.record_to_json(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> PreferenceRecord:
        """Build a record from its JSON form, with `media` and `answers` or with `candidates` and `context`.

        Raises:
            RecordError: a key is unknown or missing, or a value has the wrong type.
        """
        return cls(**lines.record_fields(row, cls.__slots__))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A chain of thought on a record, shown in `order`: one supervised training row; empty in a folder of records."""

    record: PreferenceRecord
    completion: str = ""
    order: Order = "ab"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"record": self.record.to_json(), "order": self.order, "completion": self.completion}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Trace:
        """Build a trace from its JSON form.

        Raises:
            RecordError: a part is missing or wrong.
        """
        if not isinstance(row.get("record"), Mapping):
            raise RecordError(f"a trace holds its record as an object under 'record', found {row.get('record')!r}")
        record = PreferenceRecord.from_json(row["record"])
        if unknown := set(row) - set(cls.__slots__):
            raise RecordError(f"record {record.id!r}: unknown key {min(unknown)!r}; known: {', '.join(cls.__slots__)}")
        order, completion = row.get("order", "ab"), row.get("completion")
        if not is_order(order, record.count):
            raise RecordError(f"record {record.id!r}: order is {order!r}; write letters of its candidates, as 'ba'")
        if not isinstance(completion, str) or not completion.strip():
            raise RecordError(f"record {record.id!r}: completion must be a non-empty string")
        return cls(record=record, completion=completion, order=order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """One completion on one record in one order, with everything needed to score it again without a model.

    Attributes:
        record_id: the judged record.
        order: "ab" shows the candidates as stored, "ba" swapped.
        form: what was asked for, a key of `forms.FORMS`.
        sample: which of the K samples this is.
        completion: what the model wrote, None when the item failed before the model answered (see `error`).
        finish_reason, verdict: "stop" or "length" (the token limit); what it says, in the order shown.
        preferred, scores, scale, task, source, group: those of the record.
        model, settings, decoder, seconds: how it came about; `seconds` is the time of its batch, divided by its rows.
        error: why the item failed, empty otherwise.
        content: digest of what was judged (`judging.content`); empty for a failure, and in older files.
        expectation: the expected score, where it was asked for.
    """

    record_id: str
    order: Order
    form: str = PAIRWISE.name
    sample: int = 0
    completion: str | None
    finish_reason: str = "stop"
    verdict: Verdict
    preferred: Preferred | None = None
    scores: tuple[float | None, ...] = ()
    scale: tuple[float, float] | None = None
    task: str
    source: str = ""
    group: str = ""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    decoder: str = ""
    seconds: float = 0.0
    error: str = ""
    content: str = ""
    expectation: Expectation | None = None

    @property
    def choice(self) -> Preferred | None:
        """The winning candidate in the record's own order, or "tie"; None when unparsed."""
        return winner_as_stored(self.verdict.winner, self.order)

    @property
    def cluster(self) -> str:
        """What it hangs together with in intervals: its group, or its record where that is empty."""
        return self.group or self.record_id

    @property
    def readable(self) -> bool:
        """Whether the verdict says what was asked for."""
        return FORMS[self.form].readable(self.verdict)

    @property
    def why_unreadable(self) -> str:
        """Why nothing can be read: it failed, was cut, or is malformed."""
        if self.error:
            return self.error
        if self.finish_reason == "length":
            return "cut at the token limit; raise max_new_tokens"
        return "; ".join(self.verdict.problems)

    @property
    def correct(self) -> bool | None:
        """Whether the verdict agrees with the label (unparsed: False); None without a gold answer, as for ties."""
        form = FORMS[self.form]
        agreement = form.agreement(self.verdict, form.gold(self, self.order))
        return None if agreement is None else agreement == 1

    def labelled(self, record: PreferenceRecord) -> Judgment:
        """Return the judgment with the labels of a record."""
        names = ("preferred", "scores", "scale", "source", "group")
        return replace(self, **{name: getattr(record, name) for name in names})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without what older files did not hold: a pairwise form, no scores or scale ..."""
        older = {"form": PAIRWISE.name, "content": "", "scores": (), "scale": None, "expectation": None}
        row = {field.name: getattr(self, field.name) for field in fields(self)} | {"verdict": self.verdict.to_json()}
        row["expectation"] = self.expectation and self.expectation.to_json()
        return summed({key: value for key, value in row.items() if value != older.get(key, ...)}, without="seconds")

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Judgment:
        """Build a judgment from its JSON form.

        Raises:
            RecordError: the row was not written by `to_json`, or has changed since.
        """
        try:
            held = checked(row, without="seconds")
            named = {{"sampling": "settings"}.get(key, key): value for key, value in held.items()}  # as 0.1 named them
            tuples = {key: tuple(named[key]) for key in ("scores", "scale") if named.get(key)}
            if named.get("expectation") is not None:
                named["expectation"] = Expectation.from_json(named["expectation"])
            return cls(**{**named, "verdict": Verdict.from_json(row["verdict"]), **tuples})
        except (KeyError, TypeError, ValueError) as error:
            name = row.get("record_id")
            raise RecordError(f"record {name!r}: not a judgment ({error}); remove the line and judge again") from error


def digest(*parts: object) -> int:
    """Return a 64-bit integer that depends on `parts` only: the source of every order, split and sample seed.

    >>> digest("seed", 1) == digest("seed", 1) != digest("seed", 2)
    True
    """
    text = json.dumps([str(part) for part in parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
