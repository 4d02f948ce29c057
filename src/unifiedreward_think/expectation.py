"""The expected score: of every number that could stand in a completion's place, weighed by how probable it is there.

A sample says one number; the model had probabilities for all. In a chain of thought the expectation is that of each
dimension's score given the text before it, summed; in style "direct" that of the answer's number.

>>> place = Place("Light", "Light: 8/10", 7, 8, 11, ("7", "8", "9"))
>>> place.alternative("9")
'Light: 9/10'
>>> found = expect([(place, Masses((0.25, 0.5, 0.25)))])
>>> found.score, found.mass, found.parts
(Score(value=8.0, lowest=7.0, highest=9.0), 1.0, (('Light', 8.0),))
>>> expect([(place, Masses((0.25, 0.5, 0.2), left_out=0.05))]).reason
"5.0% of the probability at 'Light' is not told, 1% may be"
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unifiedreward_think.scores import Score, read_score

MOST_LEFT_OUT = 0.01  # of the probability at a place
NOT_STRICT = "the completion is not strict, so its numbers have no certain places"


class Place(NamedTuple):
    """Where a completion says a number.

    Attributes:
        name: the dimension; "" for the answer.
        text: the completion.
        start, end: of the number in it.
        close: the end of what stands behind the number and ends it, such as "/10".
        allowed: the numbers that may stand there, as they are written.
    """

    name: str
    text: str
    start: int
    end: int
    close: int
    allowed: tuple[str, ...]

    def alternative(self, number: str) -> str:
        """Return the completion up to the end of what ends the number, with another number."""
        return self.text[: self.start] + number + self.text[self.end : self.close]


class Masses(NamedTuple):
    """How probable each allowed number is, ended: "1" is not the beginning of "10". `left_out` is not told."""

    of_allowed: tuple[float, ...]
    left_out: float = 0.0


class Expectation(NamedTuple):
    """The expected score of a completion.

    Attributes:
        score: the value and the ends of its scale; None where it is not known.
        mass: the probability of all allowed numbers together, the smallest over the places; the rest went to other
            text, and the expectation is that of the allowed numbers alone.
        parts: each place and its expected number.
        reason: why there is no score; "" where there is one.
    """

    score: Score | None
    mass: float | None = None
    parts: tuple[tuple[str, float], ...] = ()
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; a score is a list of its value, lowest and highest."""
        if self.score is None:
            return {"score": None, "reason": self.reason}
        return {"score": list(self.score), "mass": self.mass, "parts": [list(part) for part in self.parts]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Expectation:
        """Build an expectation from its JSON form; a KeyError, TypeError or ValueError where it is none."""
        if row["score"] is None:
            return cls(None, reason=row["reason"])
        parts = tuple((str(name), float(value)) for name, value in row["parts"])
        return cls(read_score(row["score"]), float(row["mass"]), parts)


def expect(numbers: Sequence[tuple[Place, Masses]]) -> Expectation:
    """Return the expectation over places, summed; the scale is from the lowest to the highest allowed numbers' sums."""
    if not numbers:
        return Expectation(None, reason=NOT_STRICT)
    parts = []
    for place, known in numbers:
        if known.left_out > MOST_LEFT_OUT:
            where = f" at {place.name!r}" if place.name else ""
            share = f"{100 * known.left_out:.1f}% of the probability{where} is not told"
            return Expectation(None, reason=f"{share}, {MOST_LEFT_OUT:.0%} may be")
        total = math.fsum(known.of_allowed)
        if total <= 0:
            return Expectation(None, reason="no allowed number has any probability")
        weighed = math.fsum(float(n) * p for n, p in zip(place.allowed, known.of_allowed, strict=True))
        parts.append((place.name, weighed / total))
    value = math.fsum(value for _, value in parts)
    mass = min(math.fsum(known.of_allowed) for _, known in numbers)
    lowest, highest = (sum(end(map(float, place.allowed)) for place, _ in numbers) for end in (min, max))
    return Expectation(Score(value, lowest, highest), mass, tuple(parts))
