"""What all samples and orders of a pair say together: votes, ties by margin, mean scores.

Every sample in every order is a vote, for a candidate or, where a judge may call ties, for a tie. An unreadable or
failed one abstains. What has most votes wins; with as many for another nobody does (None). With a tie margin, the pair
is a tie where the mean difference of the score sums over the readable votes is that at most; without scores no tie can
be called so.

>>> from unifiedreward_think.verdict import parse, render
>>> said = [(1, "ab", 9, 4), (1, "ba", 8, 7), (2, "ab", 5, 6)]
>>> rows = [Judgment(record_id="kite", task="image_generation", order=order, sample=i, completion="",
...                  verdict=parse(render(winner, [("Aesthetics", *scores)], noun="Image"), "Image"))
...         for i, (winner, order, *scores) in enumerate(said)]
>>> result = combine(rows)
>>> result.winner, result.margin, result.votes
(2, 1.0, {'1': 1, '2': 2, 'abstained': 0})
>>> combine(rows, tie_margin=1).winner
'tie'
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unifiedreward_think.metrics import candidate_margin, majority
from unifiedreward_think.order import as_stored
from unifiedreward_think.records import Judgment, Preferred
from unifiedreward_think.scores import Dimension


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What all votes on a pair say together; candidates 1 and 2 as they were given, not as they were shown.

    Attributes:
        record_id: the pair.
        winner: 1, 2, "tie", or None where no vote can be read or the votes are split.
        margin: score sum of candidate 1 minus that of candidate 2, the mean over readable votes; None without scores.
        dimensions: mean scores on each dimension.
        votes: how many for "1" and for "2", for a "tie" where some are, and how many "abstained": unreadable or failed.
        chosen: the judgment whose reasoning stands for the result: the first for the winner, else the first.
        error: why the first failed vote failed; empty if none did.
    """

    record_id: str
    winner: Preferred | None
    margin: float | None
    dimensions: tuple[Dimension, ...]
    votes: dict[str, int]
    chosen: Judgment
    error: str

    @property
    def reasoning(self) -> str:
        """The completion of the chosen judgment; it names the candidates by their place in `chosen.order`."""
        return self.chosen.completion or ""

    @property
    def reason(self) -> str:
        """Why there is no winner; empty where there is one."""
        if self.winner is not None:
            return ""
        if any(number for name, number in self.votes.items() if name != "abstained"):
            return "the votes are split"
        return self.chosen.why_unreadable

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without the judgments."""
        return {
            "id": self.record_id,
            "winner": self.winner,
            "margin": self.margin,
            "scores": [[dimension.name, *dimension.scores] for dimension in self.dimensions],
            "votes": self.votes,
            "error": self.error,
            "reason": self.reason,
        }


def combine(judgments: Sequence[Judgment], *, tie_margin: float | None = None) -> Result:
    """Return the result of all judgments of one record."""
    name = judgments[0].record_id
    readable = [row for row in judgments if row.choice is not None]
    margin = mean_margin(judgments)
    winner = call_tie(majority(judgments)[name], margin, tie_margin)
    votes = {str(k): sum(row.choice == k for row in judgments) for k in (1, 2, "tie")}
    if not votes["tie"]:
        del votes["tie"]
    return Result(
        record_id=name,
        winner=winner,
        margin=margin,
        dimensions=_mean_scores(readable),
        votes={**votes, "abstained": len(judgments) - len(readable)},
        chosen=next((row for row in readable if row.choice == winner), (readable or judgments)[0]),
        error=next((row.error for row in judgments if row.error), ""),
    )


def mean_margin(judgments: Sequence[Judgment]) -> float | None:
    """Return the mean score sum of candidate 1 minus that of candidate 2 over readable votes; None without scores."""
    readable = [row for row in judgments if row.choice is not None]
    margins = [margin for row in readable if (margin := candidate_margin(row)) is not None]
    return sum(margins) / len(margins) if margins else None


def call_tie(winner: Preferred | None, margin: float | None, tie_margin: float | None) -> Preferred | None:
    """Return "tie" where the mean margin is `tie_margin` at most (None: never called), else the winner.

    >>> call_tie(1, 1.0, 2.0), call_tie(1, 3.0, 2.0), call_tie(1, 0.0, None), call_tie(2, None, 2.0)
    ('tie', 1, 1, 2)
    """
    # Sums of decimal scores differ in their last bits.
    near = tie_margin is not None and margin is not None and round(abs(margin), 6) <= tie_margin
    return "tie" if near else winner


def _mean_scores(rows: Sequence[Judgment]) -> tuple[Dimension, ...]:
    by_name: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for row in rows:
        for dimension in row.verdict.dimensions:
            by_name[dimension.name].append(as_stored(dimension.scores, row.order))
    return tuple(
        Dimension(name, tuple(sum(column) / len(column) for column in zip(*scores, strict=True)))
        for name, scores in by_name.items()
    )
