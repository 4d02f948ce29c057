"""Numbers of probabilities P(1), P(tie), P(2) against labels: are they right, near, calibrated, worth abstaining by.

>>> sure, split = Probabilities(0.8, 0.1, 0.1), Probabilities(0.4, 0.2, 0.4)
>>> sure.answer, sure.confidence, split.answer
(1, 0.8, None)
>>> rows = [Forecast("kite", sure, 1), Forecast("boat", sure, 2)]
>>> [round(value, 3) for value in (brier(rows), expected_calibration_error(rows), accuracy_at_coverage(rows))]
[0.76, 0.3, 0.5]
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from unifiedreward_think.intervals import block, cluster_bootstrap
from unifiedreward_think.records import Preferred

BINS = 10  # of confidence, equally wide (Guo et al. 2017, arXiv 1706.04599)
COVERAGE = 0.8
OUTCOMES: tuple[Preferred, ...] = (1, "tie", 2)


class Probabilities(NamedTuple):
    """That candidate 1 is preferred, that neither is, that candidate 2 is: in the record's own order; they sum to 1."""

    first: float
    tie: float
    second: float

    @property
    def confidence(self) -> float:
        """That of the most probable outcome."""
        return max(self)

    @property
    def answer(self) -> Preferred | None:
        """The most probable outcome; None where two are equally probable, never a coin flip."""
        best = [outcome for outcome, value in zip(OUTCOMES, self, strict=True) if value == self.confidence]
        return best[0] if len(best) == 1 else None


class Forecast(NamedTuple):
    """The probabilities of a labelled pair, and the cluster it belongs to."""

    cluster: str
    probabilities: Probabilities
    label: Preferred

    @property
    def right(self) -> bool:
        """Whether the most probable outcome is the label."""
        return self.probabilities.answer == self.label


def brier_of(row: Forecast) -> float:
    """Return the squared distance of the three probabilities from what came, from 0 to 2 (Brier 1950)."""
    return sum(
        (value - (outcome == row.label)) ** 2 for outcome, value in zip(OUTCOMES, row.probabilities, strict=True)
    )


def brier(rows: Sequence[Forecast]) -> float | None:
    """Return the mean Brier score; None without rows."""
    return fmean(map(brier_of, rows)) if rows else None


def reliability(rows: Sequence[Forecast]) -> list[dict[str, Any]]:
    """Return the filled bins of confidence: its ends and mean, and the accuracy there with its interval."""
    return [
        {
            "from": k / BINS,
            "to": (k + 1) / BINS,
            "confidence": fmean(row.probabilities.confidence for row in part),
            "accuracy": block([(row.cluster, float(row.right)) for row in part]),
        }
        for k, part in _binned(rows)
    ]


def expected_calibration_error(rows: Sequence[Forecast]) -> float | None:
    """Return the mean distance of confidence and accuracy over BINS bins, each as heavy as its rows; None without rows.

    It is biased upwards where bins hold few rows.
    """
    gaps = [math.fsum(row.probabilities.confidence - row.right for row in part) for _, part in _binned(rows)]
    return math.fsum(map(abs, gaps)) / len(rows) if rows else None


def accuracy_at_coverage(rows: Sequence[Forecast], coverage: float = COVERAGE) -> float | None:
    """Return the accuracy on the surest share of the rows; None without rows.

    Of rows of the same confidence at the border as many are taken as are needed, each right by their mean.
    """
    if not rows:
        return None
    wanted = math.ceil(coverage * len(rows) - 1e-9)
    groups: defaultdict[float, list[bool]] = defaultdict(list)
    for row in rows:
        groups[round(row.probabilities.confidence, 12)].append(row.right)
    right, left = 0.0, wanted
    for _, part in sorted(groups.items(), reverse=True):
        taken = min(left, len(part))
        right += taken * fmean(part)
        left -= taken
    return right / wanted


def summarize_forecasts(rows: Sequence[Forecast]) -> dict[str, Any]:
    """Return every number of labelled probabilities, ready for JSON; None where nothing counts.

    Returns:
        accuracy: of the three outcomes, the most probable one against the label, with its interval; no single most
        probable one is wrong. brier: mean Brier score, from 0 to 2, with a bootstrap interval over clusters.
        calibration_error: `expected_calibration_error`. accuracy_at_80: `accuracy_at_coverage`. reliability: its bins.
    """
    return {
        "accuracy": block([(row.cluster, float(row.right)) for row in rows]),
        "brier": {**cluster_bootstrap([(row.cluster, brier_of(row)) for row in rows])._asdict(), "total": len(rows)},
        "calibration_error": expected_calibration_error(rows),
        "accuracy_at_80": accuracy_at_coverage(rows),
        "reliability": reliability(rows),
    }


def _binned(rows: Sequence[Forecast]) -> list[tuple[int, list[Forecast]]]:
    bins: defaultdict[int, list[Forecast]] = defaultdict(list)
    for row in rows:
        # Sums of probabilities differ in their last bits: .3 is of the bin that begins there.
        bins[min(int(row.probabilities.confidence * BINS + 1e-9), BINS - 1)].append(row)
    return sorted(bins.items())
