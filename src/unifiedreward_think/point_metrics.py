"""Numbers from scores of single candidates: do they order pairs as people do, how near are they to people's scores.

>>> from unifiedreward_think.points import parse_points
>>> rows = [Judgment(record_id="kite", order=order, form="pointwise", completion="", preferred=2, task="",
...                  verdict=parse_points(f"<answer>{said}/30</answer>", "Image"), scores=(2, 5), scale=(1, 5))
...         for order, said in (("a", 12), ("b", 27))]
>>> summary = summarize_points(rows)
>>> summary["pair_accuracy"]["value"], summary["equal_points"], round(summary["distance"]["value"], 3)
(1.0, 0, 0.097)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from unifiedreward_think.candidate_points import Points, points_of
from unifiedreward_think.intervals import block, cluster_bootstrap
from unifiedreward_think.records import Judgment

Share = Callable[[Points], float | None]


def summarize_points(judgments: Iterable[Judgment]) -> dict[str, Any]:
    """Return the numbers of scores, ready for JSON; those that need a label are over the candidates that have one.

    Returns:
        candidates: how many were scored; unscored: those of them without a readable score. pair_accuracy: of the pairs
        that labels order, the share that points order alike; equal points are half right, a pair with an unscored
        candidate is wrong. equal_points: how many of those pairs. distance: mean distance to the labelled score, both
        from 0 to 1. tau_b: Kendall's tau-b (ties counted out) between points and labelled scores. spread: mean
        standard deviation over the samples of a candidate. expectation, where it was asked for: the first six of the
        expected scores, without: candidates none of whose samples has one. Values are None where nothing counts.
    """
    scored = points_of(judgments)
    everyone = [points for candidates in scored.values() for points in candidates.values()]
    spreads = [points.spread for points in everyone if points.spread is not None]
    asked = any(row.expectation for points in everyone for row in points.samples)
    return {
        **_against_labels(scored, lambda points: points.share),
        "spread": fmean(spreads) if spreads else None,
        **({"expectation": _against_labels(scored, lambda points: points.expected)} if asked else {}),
    }


def _against_labels(scored: Mapping[str, Mapping[int, Points]], share_of: Share) -> dict[str, Any]:
    """Return how shares order pairs and how near they are to labels, with those of candidates by `share_of`."""
    everyone = [points for candidates in scored.values() for points in candidates.values()]
    pairs = [pair for candidates in scored.values() for pair in _ordered(candidates)]
    labelled = [
        (points.cluster, share, label)
        for points in everyone
        if (share := share_of(points)) is not None and (label := points.label) is not None
    ]
    distances = [(cluster, abs(share - label)) for cluster, share, label in labelled]
    return {
        "candidates": len(everyone),
        "unscored": sum(share_of(points) is None for points in everyone),
        "pair_accuracy": block(
            [(better.cluster, _right(share_of(better), share_of(worse))) for better, worse in pairs]
        ),
        "equal_points": sum(
            share_of(better) is not None and share_of(better) == share_of(worse) for better, worse in pairs
        ),
        "distance": {**cluster_bootstrap(distances)._asdict(), "total": len(distances)},
        "tau_b": tau_b([(share, label) for _, share, label in labelled]),
    }


def rightly_ordered(judgments: Iterable[Judgment]) -> list[float]:
    """Return, of each pair of candidates that labels order, 1 where points order it alike, .5 where they are equal."""
    pairs = [pair for candidates in points_of(judgments).values() for pair in _ordered(candidates)]
    return [_right(better.share, worse.share) for better, worse in pairs]


def tau_b(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return Kendall's tau-b of two columns; None where one of them holds a single value.

    >>> tau_b([(1, 1), (2, 2), (3, 3)]), tau_b([(1, 1), (1, 2)])
    (1.0, None)
    """
    from scipy.stats import kendalltau

    if any(len(set(column)) < 2 for column in zip(*pairs, strict=True)) or not pairs:
        return None
    return float(kendalltau(*zip(*pairs, strict=True)).statistic)


def _ordered(candidates: Mapping[int, Points]) -> list[tuple[Points, Points]]:
    """Return the pairs of candidates that labels order, the better one first: by scores, else by the preference."""
    found = []
    for a, b in combinations(candidates.values(), 2):
        preferred = a.samples[0].preferred
        if a.label is not None and b.label is not None:
            pair = (a, b) if a.label > b.label else (b, a) if b.label > a.label else None
        else:
            pair = (a, b) if preferred == a.candidate else (b, a) if preferred == b.candidate else None
        found += [pair] if pair else []
    return found


def _right(better: float | None, worse: float | None) -> float:
    if better is None or worse is None:
        return 0.0
    return 0.5 if better == worse else float(better > worse)
