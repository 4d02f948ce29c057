"""Where completions come from. A backend turns prompts into completions; it knows nothing of records or verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn; stored in every judgment.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus, 1 keeps the whole distribution.
        max_new_tokens: a completion that reaches it is marked as cut ("length").
        seed: with the record id, order and sample number it gives each sample a seed of its own.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 2048
    seed: int = 0


class Completion(NamedTuple):
    """A completion and why it ended: "stop" or "length"."""

    text: str
    finish_reason: str


class Backend(Protocol):
    """What the judge needs of a backend.

    Attributes:
        model: name of the model, stored in every judgment.
        batch_size: prompts in one call of `complete`.
        settings: what else decides the completions, such as pixel limits; stored in every judgment.
    """

    model: str
    batch_size: int
    settings: Mapping[str, Any]

    def complete(
        self, prompts: Sequence[Mapping[str, Any]], *, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        """Return len(seeds[i]) completions for prompt i.

        A prompt is `prompt`, the messages with a placeholder for each picture, and `images`, the opened pictures.
        """
        ...
