"""A threshold on the margin up to which a tie is called: the best one for given labels, and its cross-fitted twin.

>>> tie_calibration([3, -2, 0, 1], [1, 2, "tie", "tie"])
TieCalibration(threshold=1, correct=4, total=4)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from unifiedreward_think.folds import split
from unifiedreward_think.records import Preferred


class TieCalibration(NamedTuple):
    """The best threshold on |margin| (-1: a tie is never called), and how many rows it gets right."""

    threshold: float
    correct: int
    total: int


def tie_calibration(margins: Sequence[float | None], labels: Sequence[Preferred]) -> TieCalibration:
    """Return the (smallest) threshold on |margin|, up to which a tie is called, that is right most often.

    VideoAlign's accuracy with ties (calc_accuracy.py; Deutsch et al. 2023, arXiv 2305.14324) as an exact
    optimum: equal margins move together, and never calling a tie is a choice. Their script moves rows one by
    one, which is wrong for the whole-number sums of a chain of thought. Like theirs, the threshold is fitted
    on the rows it scores. A margin of None (no scores) is always wrong; a margin of 0 is wrong where no tie
    is called.

    Raises:
        ValueError: a row has no label.
    """
    correct, gains = 0, Counter[float]()
    for margin, label in zip(margins, labels, strict=True):
        if label not in (1, 2, "tie"):
            raise ValueError(f"label {label!r} is neither 1, 2 nor 'tie'; leave unlabelled rows out")
        if margin is not None:
            size = round(margin, 6)  # sums of decimal scores differ in their last bits
            right = (size > 0 and label == 1) or (size < 0 and label == 2)
            correct += right
            gains[abs(size)] += (label == "tie") - right
    best = TieCalibration(-1, correct, len(labels))
    for size in sorted(gains):
        correct += gains[size]
        if correct > best.correct:
            best = TieCalibration(size, correct, len(labels))
    return best


def cross_fitted_ties(pairs: Sequence[tuple[str, float | None, Preferred]]) -> dict[str, Any]:
    """Return the accuracy with ties of thresholds that were fitted on other rows than those they score.

    Args:
        pairs: cluster, margin and label of each row.

    Returns:
        accuracy, correct and total; thresholds: for each fold (`folds.split`) the best one of the other folds.

    >>> cross_fitted_ties([(name, 0, "tie") for name in "abcdefgh"])["correct"]
    8
    """
    correct, thresholds = 0, []
    for part, others in split(pairs, lambda pair: pair[0]):
        best = tie_calibration([margin for _, margin, _ in others], [label for *_, label in others])
        thresholds.append(best.threshold)
        correct += sum(_called(margin, best.threshold) == label for _, margin, label in part)
    total = len(pairs)
    accuracy = correct / total if total else None
    return {"accuracy": accuracy, "correct": correct, "total": total, "thresholds": thresholds}


def _called(margin: float | None, threshold: float) -> Preferred | None:
    """Return what a margin says with a threshold, by the rules of `tie_calibration`."""
    size = None if margin is None else round(margin, 6)
    if size is None or (size == 0 and threshold < 0):
        return None
    return "tie" if abs(size) <= threshold else 1 if size > 0 else 2
