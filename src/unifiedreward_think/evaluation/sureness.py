"""How sure a run is: P(1), P(tie), P(2) of each pair, held against the labels, beside votes and over samples.

    results = summarize_run(judgments)                           # each pair by a model fitted on the other pairs
    results = summarize_run(judgments, calibration)              # by a calibration fitted on a file of its own

Everything comes from stored judgments; no model of pictures is needed.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unifiedreward_think.calibration import Calibration
from unifiedreward_think.davidson import cross_fit
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evidence import Evidence, evidence_of
from unifiedreward_think.folds import FOLDS
from unifiedreward_think.forms import PAIRWISE
from unifiedreward_think.intervals import block
from unifiedreward_think.metrics import majority, summarize
from unifiedreward_think.probability_metrics import (
    Forecast,
    Probabilities,
    brier,
    expected_calibration_error,
    summarize_forecasts,
)
from unifiedreward_think.records import Judgment

MOST_SAMPLES = 16  # of the curve
KEY = "probabilities"


def add_calibration(parser: ArgumentParser) -> None:
    """Add the flag that names a calibration file."""
    about = "probabilities by this file of evaluation.calibrate, fitted on other pairs (default: cross-fitted)"
    parser.add_argument("--calibration", type=Path, metavar="FILE", help=about)


def summarize_run(judgments: Iterable[Judgment], calibration: Calibration | None = None) -> dict[str, Any]:
    """Return `metrics.summarize` of a run, and under "probabilities" how sure it is; see `summarize_probabilities`."""
    rows = list(judgments)
    pairs = any(row.form == PAIRWISE.name for row in rows)
    return summarize(rows) | ({KEY: summarize_probabilities(rows, calibration)} if pairs else {})


def summarize_probabilities(judgments: Sequence[Judgment], calibration: Calibration | None = None) -> dict[str, Any]:
    """Return the numbers of probabilities, ready for JSON.

    Returns:
        fitted: "cross-fitted", "file", or "not" with a `reason`. calibrated and vote_shares: `summarize_forecasts` of
        the calibrated probabilities, and of the shares of the readable votes as they are. majority: accuracy of the
        vote over the same three outcomes. curve: of the first n samples, for n up to 16: accuracy of both and Brier
        score, each n calibrated for itself; with a file, which is for one n, there is none. calibration: of a file,
        what it was fitted on.

    Raises:
        RecordError: the calibration does not fit the judgments.
    """
    pairs = evidence_of(judgments)
    known = [pair for pair in pairs.values() if pair.label is not None]
    votes = {name: vote_shares(pair) for name, pair in pairs.items()}
    common = {
        "vote_shares": summarize_forecasts(forecasts(known, votes)),
        "majority": _majority(judgments, known),
    }
    if calibration is not None:
        calibrated = calibration.probabilities(judgments)
        about = {"pairs": calibration.pairs, "labels": dict(calibration.labels), "data": calibration.data}
        return {
            "fitted": "file",
            "calibration": about,
            "calibrated": summarize_forecasts(forecasts(known, calibrated)),
            **common,
        }
    try:
        crossed = cross_fit(known)
    except RecordError as error:
        return {"fitted": "not", "reason": str(error), **common}
    return {
        "fitted": "cross-fitted",
        "folds": FOLDS,
        "calibrated": summarize_forecasts(forecasts(known, crossed)),
        **common,
        "curve": curve(judgments),
    }


def forecasts(pairs: Iterable[Evidence], probabilities: Mapping[str, Probabilities]) -> list[Forecast]:
    """Return the probabilities of labelled pairs beside their labels."""
    return [
        Forecast(pair.cluster, probabilities[pair.record_id], pair.label) for pair in pairs if pair.label is not None
    ]


def vote_shares(pair: Evidence) -> Probabilities:
    """Return the shares of the readable votes; a third each where none can be read."""
    total = sum(pair.votes)
    return Probabilities(*(votes / total if total else 1 / 3 for votes in pair.votes))


def curve(judgments: Sequence[Judgment]) -> list[dict[str, Any]]:
    """Return what the first n samples of each order give, for each n up to 16; nothing where there is one sample."""
    labelled = [row for row in judgments if row.preferred is not None]
    most = min(MOST_SAMPLES, 1 + max((row.sample for row in labelled), default=0))
    return [_point(labelled, n) for n in range(1, most + 1)] if most > 1 else []


def _point(labelled: Sequence[Judgment], n: int) -> dict[str, Any]:
    first = [row for row in labelled if row.sample < n]
    pairs = list(evidence_of(first).values())
    calibrated = forecasts(pairs, cross_fit(pairs))
    return {
        "samples": n,
        "calibrated": block([(row.cluster, float(row.right)) for row in calibrated]),
        "majority": _majority(first, pairs),
        "brier": brier(calibrated),
        "calibration_error": expected_calibration_error(calibrated),
    }


def _majority(judgments: Iterable[Judgment], pairs: Sequence[Evidence]) -> dict[str, Any]:
    """Return the accuracy of the vote over three outcomes; a split vote, and one on a true tie, is wrong."""
    voted = majority(judgments)
    return block([(pair.cluster, float(voted[pair.record_id] == pair.label)) for pair in pairs])
