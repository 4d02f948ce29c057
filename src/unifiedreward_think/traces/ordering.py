"""Which sampled scores of a pair become traces, where the label says only which candidate is better.

Every sample of one candidate meets every sample of the other. A combination qualifies where the score of the better
candidate lies above the other's by a margin at least. What is kept is a whole combination, a trace for each candidate,
so that the two traces order the pair rightly together.

>>> from unifiedreward_think.points import parse_points
>>> def sample(order, value):
...     text = f"<answer>{value}/30</answer>"
...     return Judgment(record_id="kite", order=order, completion=text, verdict=parse_points(text, "Image"),
...                     form="pointwise", preferred=2, task="image_generation")
>>> rows = [sample("a", 12), sample("a", 21), sample("b", 18)]
>>> [(row.order, row.completion) for row in kept_of(ordered(rows, margin=0.1), "shortest")]
[('b', '<answer>18/30</answer>'), ('a', '<answer>12/30</answer>')]
>>> order_rate(rows)
(1, 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

from unifiedreward_think.order import candidate_at
from unifiedreward_think.records import Judgment

Keep = Literal["shortest", "first", "all"]
Combination = tuple[Judgment, Judgment]  # the sample of the better candidate, that of the other


def ordered(rows: Sequence[Judgment], *, margin: float = 0.0) -> list[Combination]:
    """Return the combinations of samples that order the pair as its label does.

    Args:
        rows: samples of both candidates.
        margin: least difference of the shares; equal scores never qualify.
    """
    return [
        (x, y)
        for x, y in product(_of(rows, preferred=True), _of(rows, preferred=False))
        if (difference := _share(x) - _share(y)) > 0 and round(difference, 6) >= margin
    ]


def kept_of(combinations: Sequence[tuple[Judgment, ...]], keep: Keep) -> list[Judgment]:
    """Return the samples to keep of the combinations that qualify, those of the preferred candidate first.

    A single sample is a combination, too, where each stands for itself. "first" takes the earliest combination,
    "shortest" the one with the fewest characters, the earliest among equals: the least padding for the same verdict.
    "all" takes every sample that is in one, a text drawn twice in one order once.
    """
    if keep == "all":
        rows = [row for column in zip(*combinations, strict=True) for row in column]
        return list({(row.order, row.completion): row for row in rows}.values())
    if keep == "shortest":
        combinations = sorted(combinations, key=lambda pair: sum(len(row.completion or "") for row in pair))
    return [row for pair in combinations[:1] for row in pair]


def order_rate(rows: Sequence[Judgment]) -> tuple[int, int]:
    """Return how many of the combinations of a pair's samples are rightly ordered, and how many there are.

    One with an unreadable sample is not.
    """
    first = sum(candidate_at(1, row.order) == row.preferred for row in rows)
    return len(ordered(rows)), first * (len(rows) - first)


def _of(rows: Sequence[Judgment], *, preferred: bool) -> list[Judgment]:
    return [row for row in rows if row.verdict.score and (candidate_at(1, row.order) == row.preferred) == preferred]


def _share(row: Judgment) -> float:
    return row.verdict.score.share if row.verdict.score else 0.0
