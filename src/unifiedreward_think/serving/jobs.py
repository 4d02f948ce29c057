"""A completion that is wanted of the queue, and its way through it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unifiedreward_think.backends import Completion, Failure
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.serving.limits import Share

Answer = Completion | Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One completion that is wanted.

    Attributes:
        key: equal for equal questions: same text, pictures, sampling and seed.
        row: what a backend takes: `prompt`, `images`, `id`, `order`.
        sampling, seed: how to draw it.
    """

    key: int
    row: Mapping[str, Any]
    sampling: Sampling
    seed: int


class Job:
    """A question on its way, how many wait for it, and what gives back the memory that it holds when it ends."""

    def __init__(self, question: Question, now: float, held: Share | None) -> None:
        self.question = question
        self.release = held.keep() if held else lambda: None
        self.arrived = self.started = now
        self.waiting = 0
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
