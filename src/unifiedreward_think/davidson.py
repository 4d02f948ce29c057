"""P(1), P(tie), P(2) from what judgments say of a pair: Bradley-Terry with ties after Davidson (1970).

P(1) : P(tie) : P(2) = exp(s / 2) : exp(t) : exp(-s / 2). The strength s is a weighted sum of what turns round when the
candidates change places (votes, margins, who stood first), without a constant: so P(1) and P(2) change places with
them, always. t is one of what does not turn round (how near, how scattered, how split). Votes count as smoothed
log-odds: where verdicts are all there is, this is the Bradley-Terry-Davidson model of them, with an effect of order.

>>> pairs = [Evidence(record_id=str(i), cluster=str(i), votes=(5, 0, 0) if i % 2 else (0, 0, 5), label=2 - i % 2)
...          for i in range(40)]
>>> model = fit(pairs)
>>> [round(value, 2) for value in model.probabilities(pairs[1])]
[0.98, 0.0, 0.02]
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unifiedreward_think.errors import RecordError
from unifiedreward_think.evidence import Evidence
from unifiedreward_think.folds import split
from unifiedreward_think.probability_metrics import OUTCOMES, Probabilities

# Of a weight, where its feature has a root mean square of 1: keeps a model finite that its few pairs do not contradict.
PRIOR_SD = 2.0
DIMENSION = "margin: "
MIN_SHARE = 0.1  # of the fitted pairs that must score a dimension, for a weight of its own
MIN_PAIRS = 20  # that a model is fitted on


def strength_features(pair: Evidence) -> dict[str, float]:
    """Return what turns round with the candidates; 0 where it is not known."""
    first, tied, second = pair.votes
    votes = math.log((first + tied / 2 + 0.5) / (second + tied / 2 + 0.5))
    margin = pair.margin or 0.0
    return {
        "votes": votes,
        "votes where orders agree": votes * (pair.agreement or 0.0),
        "margin": margin,
        "margin over spread": margin / (1 + (pair.spread or 0.0)),
        "position": pair.position,
        **{DIMENSION + name: value for name, value in pair.margins.items()},
    }


def tie_features(pair: Evidence) -> dict[str, float]:
    """Return what does not turn round; 0 where it is not known."""
    features = strength_features(pair)
    total = sum(pair.votes) + pair.unreadable
    return {
        "constant": 1.0,
        "size of votes": abs(features["votes"]),
        "size of margin": abs(features["margin"]),
        "spread": pair.spread or 0.0,
        "orders differ": 0.0 if pair.agreement is None else 1 - pair.agreement,
        "ties said": pair.votes[1] / total if total else 0.0,
        "unreadable": pair.unreadable / total if total else 0.0,
    }


@dataclass(frozen=True, slots=True)
class Davidson:
    """The model: the weights of `strength_features` and of `tie_features`; None for `tie`: ties never come."""

    strength: Mapping[str, float]
    tie: Mapping[str, float] | None

    def probabilities(self, pair: Evidence) -> Probabilities:
        """Return the probabilities of a pair; a feature without a weight says nothing."""
        half = _weighted(self.strength, strength_features(pair)) / 2
        logits = [half, -math.inf if self.tie is None else _weighted(self.tie, tie_features(pair)), -half]
        top = max(logits)
        odds = [math.exp(logit - top) for logit in logits]
        return Probabilities(*(odd / math.fsum(odds) for odd in odds))


def fit(pairs: Sequence[Evidence]) -> Davidson:
    """Return the model with the highest posterior on labelled pairs; those without a label are left out.

    Raises:
        RecordError: fewer than MIN_PAIRS are labelled.
    """
    labelled = [pair for pair in pairs if pair.label is not None]
    if len(labelled) < MIN_PAIRS:
        raise RecordError(f"{len(labelled)} labelled pairs; a calibration is fitted on {MIN_PAIRS} at least")
    strength, tie = [strength_features(pair) for pair in labelled], [tie_features(pair) for pair in labelled]
    with_ties = any(pair.label == "tie" for pair in labelled)
    counted = Counter(name for row in strength for name, value in row.items() if value)
    least = MIN_SHARE * len(labelled)
    named = [name for name in sorted(counted) if counted[name] >= (least if name.startswith(DIMENSION) else 1)]
    tie_named = sorted({name for row in tie for name, value in row.items() if value}) if with_ties else []
    weights = _weights(
        [[row.get(name, 0.0) for name in named] for row in strength],
        [[row[name] for name in tie_named] for row in tie],
        [OUTCOMES.index(pair.label) for pair in labelled if pair.label is not None],
        with_ties,
    )
    return Davidson(
        dict(zip(named, weights[: len(named)], strict=True)),
        dict(zip(tie_named, weights[len(named) :], strict=True)) if with_ties else None,
    )


def cross_fit(pairs: Sequence[Evidence]) -> dict[str, Probabilities]:
    """Return record id -> its probabilities, by a model that was fitted on the pairs of the other folds alone.

    Raises:
        RecordError: the other folds of some pair hold fewer than MIN_PAIRS labelled ones.
    """
    found: dict[str, Probabilities] = {}
    for part, others in split(pairs, lambda pair: pair.cluster):
        model = fit(others)
        found |= {pair.record_id: model.probabilities(pair) for pair in part}
    return {pair.record_id: found[pair.record_id] for pair in pairs}


def _weighted(weights: Mapping[str, float], features: Mapping[str, float]) -> float:
    return math.fsum(weight * features.get(name, 0.0) for name, weight in weights.items())


def _weights(
    strength: Sequence[Sequence[float]], tie: Sequence[Sequence[float]], outcomes: Sequence[int], with_ties: bool
) -> list[float]:
    """Return the weights of the highest posterior, those of the strength first."""
    import numpy as np

    columns = np.hstack([np.array(strength, dtype=float).reshape(len(outcomes), -1), np.array(tie, dtype=float)])
    scale = np.sqrt((columns**2).mean(0))
    columns = columns / scale
    count = len(strength[0])  # of the strength
    design = np.zeros((len(outcomes), 3, columns.shape[1]))  # pair, outcome, weight
    design[:, 0, :count], design[:, 2, :count] = columns[:, :count] / 2, -columns[:, :count] / 2
    design[:, 1, count:] = columns[:, count:]
    never = np.array([0.0, 0.0 if with_ties else -np.inf, 0.0])
    weights = _maximum(design, np.eye(3)[list(outcomes)], never)
    return [float(weight) for weight in weights / scale]


def _maximum(design: Any, came: Any, never: Any) -> Any:
    """Return the maximum of the log-posterior by Newton's method with halved steps; it is concave and has one."""
    import numpy as np

    def posterior(weights: Any) -> tuple[float, Any]:
        logits = design @ weights + never
        logits = logits - logits.max(1, keepdims=True)
        odds = np.exp(logits)
        chances = odds / odds.sum(1, keepdims=True)
        likely = float(np.log((chances * came).sum(1)).sum())
        return likely - float(weights @ weights) / (2 * PRIOR_SD**2), chances

    weights = np.zeros(design.shape[2])
    value, chances = posterior(weights)
    for _ in range(100):
        slope = np.einsum("nk,nkd->d", came - chances, design) - weights / PRIOR_SD**2
        mean = np.einsum("nk,nkd->nd", chances, design)
        curve = (
            np.einsum("nk,nkd,nke->de", chances, design, design) - mean.T @ mean + np.eye(len(weights)) / PRIOR_SD**2
        )
        step = np.linalg.solve(curve, slope)
        while (better := posterior(weights + step))[0] < value and np.abs(step).max() > 1e-9:
            step = step / 2
        weights, (value, chances) = weights + step, better
        if np.abs(step).max() < 1e-9:
            break
    return weights
