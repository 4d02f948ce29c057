"""Ties for a judge that never says one: a chain of thought states score sums, and two near sums are a tie.

The paper has no tau for its model. Here the difference of the sums stands for the score difference of VideoAlign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unifiedreward_think.evaluation.parity import (
    Choice,
    exact_match,
    samples,
    share,
    videoalign_with_ties,
    videoalign_without_ties,
)
from unifiedreward_think.intervals import Rate
from unifiedreward_think.metrics import by_record, candidate_margin, majority
from unifiedreward_think.records import Judgment, Preferred
from unifiedreward_think.tie_threshold import cross_fitted_ties, tie_calibration
from unifiedreward_think.votes import call_tie, mean_margin


def said(row: Judgment, tie_margin: float | None = None) -> Choice:
    """Return what one judgment says of its record, in the record's own order."""
    return call_tie(row.choice, candidate_margin(row), tie_margin)


def ties(judgments: Sequence[Judgment], *, tie_margin: float | None = None) -> dict[str, Any]:
    """Return accuracies with ties (tau) and without, from the first sample and from all judgments.

    "single": the first sample, in the benchmark's own order. "combined": majority vote and mean margin over all
    readable samples and orders. Each holds: "with_ties_fitted_on_these_rows", the best threshold on the margin, and
    "with_ties_videoalign", as their script computes it, both fitted on the rows they score; "with_ties_cross_fitted",
    by thresholds that were fitted on the other folds; "without_ties", the pairs with a winner by their margin; and
    "at_tie_margin", the answers with ties called by `tie_margin`, which nothing was fitted for. Unlabelled rows are
    left out; a row without scores is wrong wherever the margin decides.
    """
    rows = [row for row in judgments if row.preferred is not None]
    single = {name: part[0] for name, part in samples(rows, order="stored").items()}
    labels: list[Preferred] = [row.preferred for row in single.values() if row.preferred is not None]
    clusters = [row.cluster for row in single.values()]
    votes = majority(rows)
    means = {name: mean_margin(part) for name, part in by_record(rows).items()}
    return {
        "single": _block([(r.choice, candidate_margin(r)) for r in single.values()], labels, clusters, tie_margin),
        "combined": _block([(votes[name], means[name]) for name in single], labels, clusters, tie_margin),
    }


def _block(
    pairs: Sequence[tuple[Choice, float | None]],
    labels: Sequence[Preferred],
    clusters: Sequence[str],
    tie_margin: float | None,
) -> dict[str, Any]:
    margins = [margin for _, margin in pairs]
    human = [0 if label == "tie" else 1 if label == 1 else -1 for label in labels]
    best = tie_calibration(margins, labels)
    crossed = cross_fitted_ties(list(zip(clusters, margins, labels, strict=True)))
    block: dict[str, Any] = {
        "with_ties_videoalign": {"value": videoalign_with_ties(human, margins)},
        "with_ties_fitted_on_these_rows": {"threshold": best.threshold, **share(Rate(best.correct, best.total))},
        "with_ties_cross_fitted": share(Rate(crossed["correct"], crossed["total"])),
        "without_ties": share(videoalign_without_ties(human, margins)),
    }
    if tie_margin is not None:
        called = [call_tie(choice, margin, tie_margin) for choice, margin in pairs]
        block["at_tie_margin"] = {"threshold": tie_margin, **exact_match(called, labels)}
    return block
