"""What people said of the candidates of a record: preferred, ranks, scores; how they fit together and follow an order.

>>> from unifiedreward_think.records import PreferenceRecord
>>> row = {"id": "k1", "task": "image_generation", "prompt": "a kite", "media": (("a.png",), ("b.png",), ("c.png",))}
>>> record = PreferenceRecord(**row, ranks=(2, 1, 2), scores=(3.5, 4.7, None), scale=(1, 5))
>>> record.preferred, record.shown("cb").preferred, record.shown("cb").scores
(2, 2, (None, 4.7))
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from unifiedreward_think.errors import RecordError
from unifiedreward_think.order import in_order

if TYPE_CHECKING:
    from unifiedreward_think.records import PreferenceRecord


def preferred_of(record: PreferenceRecord) -> int | Literal["tie"] | None:
    """Return the preferred candidate as it is stated, or as it follows from ranks or scores.

    Raises:
        RecordError: a label has the wrong length or type, or two of them contradict each other.
    """
    stated, name = record.preferred, f"record {record.id!r}"
    allowed = range(1, record.count + 1)
    # 1.0 and True equal 1, but would be written into answers as they are.
    if not (stated in allowed or stated in ("tie", None)) or isinstance(stated, bool | float):
        choices = ", ".join(map(str, allowed))
        raise RecordError(f'{name}: preferred is {stated!r}; write {choices} or "tie"')
    for key in ("ranks", "scores"):
        if (values := getattr(record, key)) and len(values) != record.count:
            raise RecordError(f"{name}: {len(values)} {key} for {record.count} candidates; write one for each")
    _check_numbers(record, name)
    by_ranks = _best([-rank for rank in record.ranks])
    by_scores = _best(record.scores) if None not in record.scores else None
    for key, implied in (("ranks", by_ranks), ("scores", by_scores)):
        if stated is not None and implied not in (None, stated):
            raise RecordError(f"{name}: preferred is {stated!r}, but the {key} say {implied!r}; correct one of them")
    if by_ranks is not None and by_scores not in (None, by_ranks):
        raise RecordError(f"{name}: the ranks say {by_ranks!r}, the scores {by_scores!r}; correct one of them")
    return stated if stated is not None else by_ranks if by_ranks is not None else by_scores


def in_order_of(record: PreferenceRecord, order: str) -> dict[str, Any]:
    """Return the label fields of a record whose candidates are shown in an order.

    What was said of all candidates is kept where all are shown; where some are left out, ranks and scores of the
    others still order them, the stated preference only where the preferred one is shown.
    """
    whole = len(order) == record.count
    ranks = in_order(record.ranks, order) if record.ranks and len(order) > 1 else ()
    scores = in_order(record.scores, order) if record.scores else ()
    shown = in_order(range(1, record.count + 1), order)
    preferred: Any = None
    if record.preferred in shown and len(order) > 1:
        preferred = shown.index(record.preferred) + 1
    elif record.preferred == "tie" and whole:
        preferred = "tie"
    return {
        "preferred": preferred,
        "ranks": _without_gaps(ranks),
        "scores": scores,
        "margin": record.margin if whole else None,
        "votes": record.votes if whole else None,
    }


def _best(values: Any) -> int | Literal["tie"] | None:
    """Return the one candidate with the largest value, "tie" where several share it, None without two values."""
    if len(values) < 2:
        return None
    best = max(values)
    places = [place for place, value in enumerate(values, start=1) if value == best]
    return places[0] if len(places) == 1 else "tie"


def _without_gaps(ranks: tuple[int, ...]) -> tuple[int, ...]:
    order = sorted(set(ranks))
    return tuple(order.index(rank) + 1 for rank in ranks)


def _check_numbers(record: PreferenceRecord, name: str) -> None:
    for score in record.scores:
        if score is not None and not (isinstance(score, int | float) and math.isfinite(score)):
            raise RecordError(f"{name}: score {score!r} is not a finite number; write null for a missing one")
        if score is not None and record.scale and not record.scale[0] <= score <= record.scale[1]:
            low, high = record.scale
            raise RecordError(
                f"{name}: score {score:g} lies outside its scale {low:g} to {high:g}; correct one of them"
            )
    if any(not isinstance(rank, int) or isinstance(rank, bool) or rank < 1 for rank in record.ranks):
        raise RecordError(f"{name}: ranks are {list(record.ranks)}; write whole numbers from 1")
