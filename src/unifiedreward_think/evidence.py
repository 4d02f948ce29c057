"""What the judgments of a pair say together, as what a calibration looks at; candidates as they are stored.

>>> from unifiedreward_think.verdict import parse, render
>>> said = [(1, "ab", 9, 4), (1, "ba", 8, 7), (2, "ab", 5, 6)]
>>> rows = [Judgment(record_id="kite", task="image_generation", order=order, sample=i, completion="", preferred=2,
...                  verdict=parse(render(winner, [("Light", *scores)], noun="Image"), "Image"))
...         for i, (winner, order, *scores) in enumerate(said)]
>>> pair = evidence_of(rows)["kite"]
>>> pair.votes, pair.margin, pair.margins, round(pair.spread, 2), round(pair.position, 2), pair.label
((1, 0, 2), 1.0, {'light': 1.0}, 2.83, 0.33, 2)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from unifiedreward_think.errors import RecordError
from unifiedreward_think.forms import PAIRWISE
from unifiedreward_think.metrics import by_record, candidate_margin, pair_orders
from unifiedreward_think.order import as_stored, place_shown
from unifiedreward_think.records import Judgment, Preferred


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a pair before its label.

    Attributes:
        record_id, cluster: which pair, and what it hangs together with.
        votes: readable judgments for candidate 1, for a tie, for candidate 2.
        unreadable: the other judgments, failed ones included.
        margin: mean score sum of candidate 1 less that of candidate 2; None without scores.
        margins: the same on each dimension that scores both, by its name in lower case.
        spread: standard deviation of the difference of the sums over judgments; None with fewer than two.
        agreement: share of the samples in both orders that name the same candidate; None without such.
        position: how much more often candidate 1 stood first, of the readable judgments: from -1 (never) to 1.
        label: what people said; None without a label.
    """

    record_id: str
    cluster: str
    votes: tuple[float, float, float]
    unreadable: int = 0
    margin: float | None = None
    margins: dict[str, float] = field(default_factory=dict)
    spread: float | None = None
    agreement: float | None = None
    position: float = 0.0
    label: Preferred | None = None


def evidence_of(judgments: Iterable[Judgment]) -> dict[str, Evidence]:
    """Return record id -> what its judgments say.

    Raises:
        RecordError: a judgment is of another form than pairs.
    """
    found = {}
    for name, rows in by_record(judgments).items():
        if other := next((row.form for row in rows if row.form != PAIRWISE.name), None):
            raise RecordError(f"record {name!r}: form {other!r} says nothing of who is better; take judgments of pairs")
        found[name] = _of_pair(rows)
    return found


def _of_pair(rows: Sequence[Judgment]) -> Evidence:
    readable = [row for row in rows if row.choice is not None]
    margins = [margin for row in readable if (margin := candidate_margin(row)) is not None]
    by_name: defaultdict[str, list[float]] = defaultdict(list)
    for row in readable:
        for dimension in row.verdict.dimensions:
            first, second = as_stored(dimension.scores, row.order)
            by_name[dimension.name.lower()].append(first - second)
    orders = [(x, y) for x, y in pair_orders(rows) if x.choice is not None and y.choice is not None]
    places = [1 if place_shown(1, row.order) == 1 else -1 for row in readable]
    votes = [sum(row.choice == candidate for row in readable) for candidate in (1, 2)]
    return Evidence(
        record_id=rows[0].record_id,
        cluster=rows[0].cluster,
        votes=(votes[0], len(readable) - sum(votes), votes[1]),
        unreadable=len(rows) - len(readable),
        margin=fmean(margins) if margins else None,
        margins={name: fmean(values) for name, values in by_name.items()},
        spread=pstdev(margins) if len(margins) > 1 else None,
        agreement=fmean(x.choice == y.choice for x, y in orders) if orders else None,
        position=fmean(places) if places else 0.0,
        label=rows[0].preferred,
    )
