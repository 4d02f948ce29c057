"""From the pairs of a request to the questions a backend answers, and from its judgments to what a reply says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.order import ORDERS, Order, in_order
from unifiedreward_think.prompting import build_parts
from unifiedreward_think.records import Judgment, PreferenceRecord, digest, order_shown
from unifiedreward_think.serving import MODEL_NAMES
from unifiedreward_think.serving.batching import Question
from unifiedreward_think.serving.intake import Picture
from unifiedreward_think.serving.limits import Limits
from unifiedreward_think.serving.schemas import Status
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import Style


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server judges and what it allows.

    Attributes:
        prompts: task -> template (`prompting.load_prompts`).
        style: what the parser expects.
        sampling: of every judgment; of a chat what it does not say itself.
        frames: of each video that the model is shown.
        order_seed: decides the order where a pair is shown once.
        limits: of requests.
        names: under which chats call the model.
        canary_seconds: how long a canary judgment counts.
        canary_deadline: seconds after which a canary without an answer says that the backend hangs; it waits for the
            batch that runs.
    """

    prompts: Mapping[str, str]
    style: Style = "cot"
    sampling: Sampling
    frames: int = 8
    order_seed: int = 0
    limits: Limits = field(default_factory=Limits)
    names: tuple[str, ...] = MODEL_NAMES
    canary_seconds: float = 30.0
    canary_deadline: float = 180.0


class Entry(NamedTuple):
    """A candidate or a medium, opened: a picture, the frames of a video, or a text."""

    pictures: tuple[Picture, ...] = ()
    text: str = ""

    @property
    def hashes(self) -> tuple[str, ...]:
        """What stands for its pictures in a record."""
        return tuple(picture.sha256 for picture in self.pictures)


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


def pair_record(task: str, prompt: str, media: Sequence[Entry], pair: Sequence[Entry]) -> PreferenceRecord:
    """Return the record of a pair; hashes stand for files, so equal content has an equal id and equal seeds."""
    generation = TASKS[task].compares_media
    entries = tuple(entry.hashes for entry in (pair if generation else media))
    answers = () if generation else tuple(entry.text for entry in pair)
    return PreferenceRecord(
        id=f"{digest(task, prompt, entries, answers):016x}", task=task, prompt=prompt, media=entries, answers=answers
    )


def shown(a: int, b: int, record: PreferenceRecord, orders: Literal["one", "both"], settings: Settings) -> list[Shown]:
    """Return a pair in the orders asked for."""
    chosen = ORDERS if orders == "both" else (order_shown(record, settings.order_seed),)
    return [Shown(a, b, record, order) for order in chosen]


def question(pair: Shown, entries: Sequence[Entry], settings: Settings) -> Question:
    """Return what a backend is asked about a pair.

    Raises:
        RecordError: the server has no prompt for this task.
    """
    pictures = {picture.sha256: picture.image for entry in entries for picture in entry.pictures}
    content: list[dict[str, Any]] = []
    images = []
    for part in build_parts(pair.record, order=pair.order, prompts=settings.prompts):
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            content += [{"type": "image", "text": None}] * len(part.paths)
            images += [pictures[sha256] for sha256 in part.paths]
    row = {
        "id": pair.record.id,
        "order": pair.order,
        "prompt": [{"role": "user", "content": content}],
        "images": images,
    }
    seed = digest(settings.sampling.seed, pair.record.id, pair.order, 0)  # as the judge's
    return Question(key=digest("pair", pair.record.id, pair.order), row=row, sampling=settings.sampling, seed=seed)


def status_of(row: Judgment) -> tuple[Status, str]:
    """Return whether a judgment has a winner, and if not, why."""
    if row.error:
        return "error", row.error
    if row.finish_reason == "length":
        return "truncated", "the token limit cut the completion"
    if row.verdict.winner is None:
        return "unparsed", "; ".join(row.verdict.problems)
    return "ok", ""
