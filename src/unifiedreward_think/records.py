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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from unifiedreward_think.tasks import TASK_NAMES, TASKS
from unifiedreward_think.verdict import DimensionScore, Verdict

Order = Literal["ab", "ba"]
Preferred = Literal[1, 2, "tie"]
ORDERS: tuple[Order, Order] = ("ab", "ba")
STORED_ORDER: Order = "ab"
T = TypeVar("T")


class InputError(ValueError):
    """Something the user can mend; entry points print it without a traceback (`entry.run_main`)."""


class RecordError(InputError):
    """A row that cannot be used; the message names the file and line or the record, and the mend."""


def _preferred(candidate: int) -> Preferred:
    return 1 if candidate == 1 else 2


def in_order(stored: Sequence[T], order: str) -> tuple[T, ...]:
    """Return what is stored for each candidate in the order shown: its letters name the candidates from a on.

    >>> in_order(["x", "y"], "ba"), in_order(["x", "y", "z"], "cab")
    (('y', 'x'), ('z', 'x', 'y'))
    """
    return tuple(stored[ord(letter) - ord("a")] for letter in order)


def as_stored(shown: Sequence[T], order: str) -> tuple[T, ...]:
    """Return what is shown for each candidate in the order stored, the inverse of `in_order`.

    >>> as_stored(in_order(["x", "y", "z"], "cab"), "cab")
    ('x', 'y', 'z')
    """
    return tuple(shown[place_shown(candidate, order) - 1] for candidate in range(1, len(order) + 1))


def candidate_at(place: int, order: str) -> int:
    """Return which candidate stands at a place of the order shown; both count from 1.

    >>> candidate_at(1, "ba"), candidate_at(1, "cab")
    (2, 3)
    """
    return ord(order[place - 1]) - ord("a") + 1


def place_shown(candidate: int, order: str) -> int:
    """Return at which place a candidate is shown, the inverse of `candidate_at`.

    >>> place_shown(2, "ba"), place_shown(3, "cab")
    (1, 1)
    """
    return order.index(chr(ord("a") + candidate - 1)) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRecord:
    """Two candidates, what they were asked for, and who is preferred.

    Attributes:
        id: unique in its data set; names the row in every later file and error.
        task: one of TASK_NAMES.
        prompt: the caption (generation) or the question (understanding).
        media: generation: one entry for each candidate; understanding: the picture(s) or the video the question
            is about. An entry is a tuple of paths: one image or video file, or the frames of a video in order.
        answers: the two answers of the understanding tasks, empty otherwise.
        preferred: 1, 2 or "tie" in the order stored here; None when unlabelled.
        source: data set the pair comes from.
        group: rows that must stay together in splits and clustered intervals (same prompt, same pictures).
        instruction: a complete instruction to use word for word in place of the task's prompt, as in the
            released SFT and GRPO files; such a row of an understanding task has its answers inside and cannot be
            swapped.
    """

    id: str
    task: str
    prompt: str
    media: tuple[tuple[str, ...], ...]
    answers: tuple[str, ...] = ()
    preferred: Preferred | None = None
    source: str = ""
    group: str = ""
    instruction: str = ""

    def __post_init__(self) -> None:
        """Refuse a row no stage could use."""
        if self.task not in TASK_NAMES:
            raise RecordError(f"record {self.id!r}: task {self.task!r} is not one of {', '.join(TASK_NAMES)}")
        # 1.0 and True equal 1, but would be written into answers as they are.
        if self.preferred not in (1, 2, "tie", None) or isinstance(self.preferred, bool | float):
            raise RecordError(f'record {self.id!r}: preferred is {self.preferred!r}; write 1, 2 or "tie"')
        generation = TASKS[self.task].compares_media
        needs = f"record {self.id!r}: {self.task} needs"
        if generation and len(self.media) != 2:
            raise RecordError(f"{needs} media of 2 candidates, found {len(self.media)}")
        if not generation and not self.media:
            raise RecordError(f"{needs} the media the question is about, found none")
        if not generation and not self.instruction and len(self.answers) != 2:
            raise RecordError(f"{needs} 2 answers, found {len(self.answers)}")
        if any(not entry or not all(entry) for entry in self.media):
            raise RecordError(f"record {self.id!r}: an empty media path; name a file for every candidate")

    @property
    def swappable(self) -> bool:
        """Whether the candidates can be shown in another order."""
        return TASKS[self.task].compares_media or not self.instruction

    @property
    def winner(self) -> int | None:
        """The preferred candidate, 1 or 2; None for ties and unlabelled rows."""
        return self.preferred if self.preferred in (1, 2) else None

    def shown(self, order: Order) -> PreferenceRecord:
        """Return the record with its candidates in the order shown; the label follows.

        The one place where candidates change places: media (generation) or answers (understanding).

        Raises:
            RecordError: the instruction holds the answers, so they cannot change places.
        """
        if order == STORED_ORDER:
            return self
        if not self.swappable:
            raise RecordError(f"record {self.id!r}: its instruction holds the answers; only order 'ab' works")
        winner = self.winner
        return replace(
            self,
            media=in_order(self.media, order) if TASKS[self.task].compares_media else self.media,
            answers=in_order(self.answers, order) if self.answers else (),
            preferred=self.preferred if winner is None else _preferred(place_shown(winner, order)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: empty optional fields are left out, one-file media entries plain strings."""
        row = {key: value for key, value in asdict(self).items() if value not in ("", (), None)}
        row["media"] = [entry[0] if len(entry) == 1 else list(entry) for entry in self.media]
        row["prompt"] = self.prompt
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> PreferenceRecord:
        """Build a record from its JSON form.

        Raises:
            RecordError: a key is unknown or missing, or a value has the wrong type.
        """
        name = row.get("id")
        if not isinstance(name, str) or not name:
            raise RecordError(f"id is {name!r}; every record needs a non-empty string id")
        if unknown := set(row) - set(cls.__slots__):
            known = ", ".join(cls.__slots__)
            raise RecordError(f"record {name!r}: unknown key {min(unknown)!r}; known: {known}")
        if missing := {"task", "prompt", "media"} - set(row):
            raise RecordError(f"record {name!r}: {min(missing)!r} is missing; add it")
        for key in ("task", "prompt", "source", "group", "instruction"):
            if not isinstance(row.get(key, ""), str):
                raise RecordError(f"record {name!r}: {key} must be a string, found {row[key]!r}")
        media, answers = row["media"], row.get("answers", ())
        if not isinstance(media, (list, tuple)) or not isinstance(answers, (list, tuple)):
            raise RecordError(f"record {name!r}: media and answers must be lists")
        if not all(isinstance(answer, str) for answer in answers):
            raise RecordError(f"record {name!r}: answers must be strings")
        entries = tuple((e,) if isinstance(e, str) else tuple(e) if isinstance(e, (list, tuple)) else () for e in media)
        if not all(isinstance(path, str) for entry in entries for path in entry):
            raise RecordError(f"record {name!r}: media paths must be strings")
        return cls(**{**row, "media": entries, "answers": tuple(answers)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A chain of thought on a record, shown in `order`: one supervised training row."""

    record: PreferenceRecord
    completion: str
    order: Order = "ab"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"record": self.record.to_json(), "order": self.order, "completion": self.completion}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Trace:
        """Build a trace from its JSON form.

        Raises:
            RecordError: the record, the order or the completion is missing or wrong.
        """
        if not isinstance(row.get("record"), Mapping):
            raise RecordError(f"a trace holds its record as an object under 'record', found {row.get('record')!r}")
        record = PreferenceRecord.from_json(row["record"])
        if unknown := set(row) - set(cls.__slots__):
            known = ", ".join(cls.__slots__)
            raise RecordError(f"record {record.id!r}: unknown key {min(unknown)!r}; known: {known}")
        order, completion = row.get("order", "ab"), row.get("completion")
        if order not in ORDERS:
            raise RecordError(f"record {record.id!r}: order is {order!r}; write 'ab' or 'ba'")
        if not isinstance(completion, str) or not completion.strip():
            raise RecordError(f"record {record.id!r}: completion must be a non-empty string")
        return cls(record=record, completion=completion, order=order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """One completion on one record in one order, with everything needed to score it again without a model.

    Attributes:
        record_id: the judged record.
        order: "ab" shows the candidates as stored, "ba" swapped.
        sample: which of the K samples this is.
        completion: what the model wrote, None when the item failed before the model answered (see `error`).
        finish_reason: "stop" or "length" (the token limit cut it).
        verdict: what the completion says, in the order shown.
        preferred, task, source, group: copied from the record so that the row stands alone.
        model, sampling, decoder, seconds: how it came about; `seconds` is the wall time of the item's batch
            divided by its rows.
        error: why the item failed, empty otherwise.
    """

    record_id: str
    order: Order
    sample: int = 0
    completion: str | None
    finish_reason: str = "stop"
    verdict: Verdict
    preferred: Preferred | None = None
    task: str
    source: str = ""
    group: str = ""
    model: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    decoder: str = ""
    seconds: float = 0.0
    error: str = ""

    @property
    def candidate(self) -> int | None:
        """The winning candidate in the record's own order; None when unparsed."""
        winner = self.verdict.winner
        return None if winner is None else candidate_at(winner, self.order)

    @property
    def correct(self) -> bool | None:
        """Whether the preferred candidate won (unparsed: False); None for ties and unlabelled rows."""
        return None if self.preferred not in (1, 2) else self.candidate == self.preferred

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Judgment:
        """Build a judgment from its JSON form.

        Raises:
            RecordError: the row was not written by `to_json`.
        """
        try:
            said = row["verdict"]
            verdict = Verdict(
                winner=said["winner"],
                strict=said["strict"],
                scores=tuple(DimensionScore(*score) for score in said["scores"]),
                totals=None if said["totals"] is None else (said["totals"][0], said["totals"][1]),
                problems=tuple(said["problems"]),
            )
            return cls(**{**row, "verdict": verdict})
        except (KeyError, TypeError, IndexError) as error:
            name = row.get("record_id")
            raise RecordError(f"record {name!r}: not a judgment ({error}); remove the line and judge again") from error


def digest(*parts: object) -> int:
    """Return a 64-bit integer that depends on `parts` only: the source of every order, split and sample seed.

    >>> digest("seed", 1) == digest("seed", 1) != digest("seed", 2)
    True
    """
    text = json.dumps([str(part) for part in parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def order_shown(record: PreferenceRecord, seed: int) -> Order:
    """Return the order to show, from (seed, record id) alone: limit, resume and shards never change it."""
    return "ba" if record.swappable and digest("order", seed, record.id) % 2 else "ab"


def json_lines(rows: Iterable[PreferenceRecord | Trace | Judgment]) -> str:
    """Return rows as the lines of a file that `read_json_lines` reads."""
    return "".join(json.dumps(row.to_json()) + "\n" for row in rows)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSONL file.

    Raises:
        RecordError: a line is no JSON object; the message names file and line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # syntax, bytes, a number too long, brackets too deep
                message = f"{path}:{number}: not valid JSON ({error}); mend or remove the line"
                raise RecordError(message) from error
            if not isinstance(row, dict):
                raise RecordError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
            yield number, row
