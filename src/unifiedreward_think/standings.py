"""What samples of scores earn where the label is a pair's preference alone: each is held against the other candidate's.

A sample of the better candidate earns the share of the other's readable samples that it beats, one of the worse the
share that beats it; equal scores count half. Candidates that are equally good earn nearness, 1 - |difference|.

>>> from unifiedreward_think.records import PreferenceRecord
>>> record = PreferenceRecord(id="kite", task="image_generation", prompt="a kite", media=(("a",), ("b",)), preferred=2)
>>> standing_of(record, "a"), standing_of(record, "b"), standing_of(record, "ab")
('worse', 'better', None)
>>> earned(0.5, [0.25, 0.5, None, 1.0], "better"), earned(0.5, [0.25, 0.5], "equal"), earned(None, [0.5], "worse")
(0.5, 0.875, 0.0)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from unifiedreward_think.order import Order, candidate_at

if TYPE_CHECKING:
    from unifiedreward_think.records import PreferenceRecord

STANDINGS = ("better", "worse", "equal")
SAME = 1e-6  # of a scale: equal scores on different scales differ in their last bits


class Sample(NamedTuple):
    """One score of one candidate of a pair.

    Attributes:
        pair: id of the record.
        order: letter of the candidate.
        standing: of STANDINGS, by the label of the pair.
        share: where the score stands on its scale, from 0 to 1; None where it cannot be read.
    """

    pair: str
    order: Order
    standing: str
    share: float | None


def standing_of(record: PreferenceRecord, order: Order) -> str | None:
    """Return how the candidate shown stands to the other one by the label of their pair.

    None where there are not two, where both are shown, and without a label.
    """
    if record.count != 2 or len(order) != 1 or record.preferred is None:
        return None
    return "equal" if record.preferred == "tie" else "better" if candidate_at(1, order) == record.preferred else "worse"


def earned(share: float | None, others: Sequence[float | None], standing: str) -> float | None:
    """Return what a sample earns, from 0 to 1; 0 where it cannot be read, None where none of the others can.

    Args:
        share: where its score stands on its scale.
        others: the same of the samples of the other candidate.
        standing: of STANDINGS, of the candidate whose sample it is.
    """
    if share is None:
        return 0.0
    readable = [other for other in others if other is not None]
    return fmean(_agrees(share, other, standing) for other in readable) if readable else None


def earned_together(samples: Sequence[Sample]) -> tuple[list[float | None], int]:
    """Return what each sample earns, and how many earn None because no sample of the other candidate is among them."""
    shares: defaultdict[str, defaultdict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        shares[sample.pair][sample.order].append(sample.share)
    rewards: list[float | None] = []
    alone = 0
    for sample in samples:
        others = [share for order, some in shares[sample.pair].items() if order != sample.order for share in some]
        alone += not others
        rewards.append(earned(sample.share, others, sample.standing) if others else None)
    return rewards, alone


def _agrees(share: float, other: float, standing: str) -> float:
    if standing == "equal":
        return 1 - abs(share - other)
    if abs(share - other) < SAME:
        return 0.5
    return float((share > other) == (standing == "better"))
