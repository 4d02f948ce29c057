"""How tokens are drawn."""

from __future__ import annotations

from dataclasses import dataclass


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
