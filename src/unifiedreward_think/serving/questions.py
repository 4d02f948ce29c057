"""From the candidates of a request to the questions a backend answers, and from its judgments to their status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.order import ORDERS, STORED_ORDER, Order, in_order
from unifiedreward_think.prompting import to_content
from unifiedreward_think.ranking import Way
from unifiedreward_think.records import Judgment, PreferenceRecord, digest
from unifiedreward_think.serving import MODEL_NAMES
from unifiedreward_think.serving.intake import Picture
from unifiedreward_think.serving.jobs import Question
from unifiedreward_think.serving.limits import Limits
from unifiedreward_think.serving.public import without_folders
from unifiedreward_think.serving.schemas import Status
from unifiedreward_think.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """How `/compute` rewards candidates, whose requests do not say it.

    Attributes:
        by: as in a ranking; "points" are each candidate's own, in any batch.
        orders: in which pairs are shown.
        group: candidates of a group; 0 takes whatever comes as one.
    """

    by: Way = "pairs"
    orders: Literal["one", "both"] = "both"
    group: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server judges and what it allows.

    Attributes:
        judging: of every pair; its sampling also of a chat that does not name its own.
        points: of every candidate that is scored alone; None where the server has no prompts for that.
        limits: of requests.
        names: under which chats call the model.
        canary_seconds: how long a canary judgment counts.
        canary_deadline: seconds after which a canary without an answer says that the backend hangs; it waits for the
            batch that runs.
        compute: how candidates are rewarded that Flow-Factory sends.
    """

    judging: JudgingConfig
    points: JudgingConfig | None = None
    limits: Limits = field(default_factory=Limits)
    names: tuple[str, ...] = MODEL_NAMES
    canary_seconds: float = 30.0
    canary_deadline: float = 180.0
    compute: Compute = field(default_factory=Compute)


class Entry(NamedTuple):
    """A candidate or a medium, opened: a picture, the frames of a video, or a text."""

    pictures: tuple[Picture, ...] = ()
    text: str = ""

    @property
    def hashes(self) -> tuple[str, ...]:
        """What stands for its pictures in a record."""
        return tuple(picture.sha256 for picture in self.pictures)


def by_content(candidates: Sequence[Entry]) -> list[int]:
    """Return the places of candidates in an order that does not depend on these: schedules draw over it."""
    return sorted(range(len(candidates)), key=lambda place: (candidates[place].hashes, candidates[place].text))


class Shown(NamedTuple):
    """A pair of candidates, by their places in the request, in one order."""

    a: int
    b: int
    record: PreferenceRecord
    order: Order

    @property
    def first(self) -> int:
        """The candidate that is shown first."""
        return in_order((self.a, self.b), self.order)[0]

    @property
    def equal(self) -> bool:
        """Whether the candidates are the same, so that there is nothing to ask."""
        return len(set(self.record.candidates)) == 1


def record_of(task: str, prompt: str, media: Sequence[Entry], candidates: Sequence[Entry]) -> PreferenceRecord:
    """Return the record of what one prompt shows; hashes stand for files: equal content has an equal id and seeds."""
    generation = TASKS[task].compares_media
    entries = tuple(entry.hashes for entry in (candidates if generation else media))
    answers = () if generation else tuple(entry.text for entry in candidates)
    record = PreferenceRecord(id="shown", task=task, prompt=prompt, media=entries, answers=answers)
    return replace(record, id=_id(record))


def _id(record: PreferenceRecord) -> str:
    return f"{digest(record.task, record.prompt, record.media, record.answers):016x}"


def _seen(record: PreferenceRecord, order: Order) -> str:
    """Return the id of the pair that is seen: sent the other way round, it is the same in the other order."""
    return record.id if order == STORED_ORDER else _id(record.shown(order))


def shown(a: int, b: int, record: PreferenceRecord, orders: Literal["one", "both"], settings: Settings) -> list[Shown]:
    """Return a pair in the orders asked for.

    One order is drawn for what the two are, not for where they stand in the request: sent the other way round, the
    same candidate is shown first, and so wins or loses the same.
    """
    if orders == "both":
        return [Shown(a, b, record, order) for order in ORDERS]
    drawn = sorted((_seen(record, order), order) for order in ORDERS)
    _, order = drawn[digest("order", settings.judging.order_seed, *(seen for seen, _ in drawn)) % 2]
    return [Shown(a, b, record, order)]


def question(pair: Shown, entries: Sequence[Entry], settings: Settings) -> Question:
    """Return what a backend is asked about a pair.

    Raises:
        RecordError: the server has no prompt for this task.
    """
    row = row_of(pair.record, pair.order, entries, settings.judging)
    sampling = settings.judging.sampling
    seen = _seen(pair.record, pair.order)
    seed = digest(sampling.seed, seen, STORED_ORDER, 0)  # as the judge's of a record stored as this is shown
    return Question(key=digest("pair", seen), row=row, sampling=sampling, seed=seed)


def row_of(
    record: PreferenceRecord, order: Order, entries: Sequence[Entry], config: JudgingConfig
) -> dict[str, object]:
    """Return what a backend takes for a record whose hashes stand for the pictures of `entries`.

    Raises:
        RecordError: the server has no prompt for this task.
    """
    pictures = {picture.sha256: picture.image for entry in entries for picture in entry.pictures}
    parts = config.form.render(record, order=order, prompts=config.prompts)
    content, images = to_content(parts, lambda part: [pictures[sha256] for sha256 in part.paths])
    return {"id": record.id, "order": order, "prompt": [{"role": "user", "content": content}], "images": images}


def status_of(row: Judgment) -> tuple[Status, str]:
    """Return whether a judgment says what was asked for, a winner or a score, and if not, why."""
    if row.error:
        return "error", without_folders(row.error)
    if row.finish_reason == "length":
        return "truncated", "the token limit cut the completion"
    if not row.readable:
        return "unparsed", "; ".join(row.verdict.problems)
    return "ok", ""
