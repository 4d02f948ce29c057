"""The scores in a completion: dimensions, their sums, a score on its scale; and whether stated totals follow from them.

>>> score = Score(24, 3, 30)
>>> score.share, str(score)
(0.7777777777777778, '24/30')
>>> total_problems([Dimension("Aesthetics", (8, 4))], (8, 5))
['total of candidate 2 is stated as 5, its scores add up to 4']
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

HIGHEST = 10  # of a dimension; the lowest is 1
NUMBER = r"(\d{1,4}(?:\.\d{1,2})?)"  # how a completion writes a score or a total


class Dimension(NamedTuple):
    """A named dimension and the score (out of 10) of each candidate, in the order shown."""

    name: str
    scores: tuple[float, ...]


class Score(NamedTuple):
    """The score of one candidate and the ends of its scale."""

    value: float
    lowest: float
    highest: float

    @property
    def share(self) -> float:
        """Where it stands on its scale, from 0 to 1, so that scores on other scales compare."""
        return share_of(self.value, (self.lowest, self.highest))

    def __str__(self) -> str:
        return f"{self.value:g}/{self.highest:g}"


def share_of(value: float, scale: tuple[float, float]) -> float:
    """Return where a value stands on a scale of two different ends, from 0 to 1.

    >>> share_of(3, (1, 5))
    0.5
    """
    lowest, highest = scale
    return (value - lowest) / (highest - lowest)


def sums_of(dimensions: Sequence[Dimension]) -> tuple[float, ...]:
    """Return the sum of each candidate's scores; empty without scores."""
    return tuple(map(sum, zip(*(dimension.scores for dimension in dimensions), strict=True)))


def total_problems(dimensions: Sequence[Dimension], totals: Sequence[float]) -> list[str]:
    """Return which stated totals are not the sums of their scores."""
    return [
        f"total of candidate {k} is stated as {stated:g}, its scores add up to {actual:g}"
        for k, (stated, actual) in enumerate(zip(totals, sums_of(dimensions), strict=True), start=1)
        if abs(stated - actual) > 1e-6
    ]


def winner_problems(
    winner: int | Literal["tie"], dimensions: Sequence[Dimension], totals: Sequence[float] | None
) -> list[str]:
    """Return why the winner of a pair does not follow from the scores and totals that are stated."""
    if not dimensions:
        return ["no dimension scores both candidates"]
    if totals is None:
        return ["totals are not stated"]
    problems = total_problems(dimensions, totals)
    if winner == "tie":
        problems += ["a tie is called, the totals differ"] if len(set(totals)) > 1 else []
    elif list(totals).count(max(totals)) > 1:
        problems.append("totals are equal, so the answer does not follow from them")
    elif totals[winner - 1] != max(totals):
        problems.append("the winner has the smaller total")
    return problems


def score_problems(score: Score, dimensions: Sequence[Dimension], totals: Sequence[float] | None) -> list[str]:
    """Return why the score of one candidate does not follow from the dimensions and the total that are stated.

    >>> score_problems(Score(8, 1, 10), [Dimension("Light", (8,))], (8,))
    []
    """
    if not dimensions:
        return ["no dimension is scored"]
    if totals is None:
        return ["the total is not stated"]
    problems = total_problems(dimensions, totals)
    if abs(score.value - totals[0]) > 1e-6:
        problems.append(f"the answer is {score}, the total is stated as {totals[0]:g}")
    if score.highest != HIGHEST * len(dimensions):
        problems.append(f"the answer is out of {score.highest:g}, but {len(dimensions)} dimensions are scored")
    return problems


def read_score(row: Any) -> Score:
    """Return a score from its JSON form, a list of value, lowest and highest.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(row, list | tuple) or len(row) != 3 or not all(isinstance(part, int | float) for part in row):
        raise TypeError(f"a score is a list of its value and the ends of its scale, found {row!r}")
    return Score(*row)


def read_dimension(row: Any) -> Dimension:
    """Return a dimension from its JSON form, a list of its name and the scores.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(row, list | tuple):
        raise TypeError(f"a dimension is a list of its name and the scores, found {row!r}")
    name, *scores = row
    if not isinstance(name, str) or not all(isinstance(score, int | float) for score in scores):
        raise TypeError(f"a dimension is a list of its name and the scores, found {row!r}")
    return Dimension(name, tuple(scores))
