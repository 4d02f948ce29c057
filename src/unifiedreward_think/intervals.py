"""How sure a number is: shares and means with 95% intervals, and exact p-values of paired differences.

Values are fractions between 0 and 1. scipy is imported when it is needed: importing this module takes a moment.

>>> print(Rate(8, 10))
80.0% [49.0, 94.3]
>>> print(interval([("kite", True), ("kite", True), ("boat", False), ("boat", False), ("dog", True)]))
60.0% [0.0, 100.0]
>>> round(sign_flip_p([1, 1, 1, 1, 1]), 6)
0.0625
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

from unifiedreward_think.records import digest

_Z = NormalDist().inv_cdf(0.975)
Flag = tuple[str, float]  # the cluster of a row, and whether the row counts, 0 or 1, or as how much of one


class Estimate(NamedTuple):
    """A value with its 95% interval, all fractions; None without data.

    >>> print(Estimate(0.842, 0.81, 0.87))
    84.2% [81.0, 87.0]
    """

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "n/a"
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Rate(NamedTuple):
    """A share of independent rows, `count` of `total`; `low` and `high` are the ends of its Wilson interval.

    >>> print(Rate(8, 10), Rate(0, 0))
    80.0% [49.0, 94.3] n/a
    """

    count: float  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    total: int

    @property
    def value(self) -> float | None:
        """The share, None when there are no rows."""
        return self.count / self.total if self.total else None

    @property
    def low(self) -> float | None:
        """Lower end, None when there are no rows."""
        return wilson(*self)[0] if self.total else None

    @property
    def high(self) -> float | None:
        """Upper end, None when there are no rows."""
        return wilson(*self)[1] if self.total else None

    def __str__(self) -> str:
        return str(Estimate(self.value, self.low, self.high))


def wilson(count: float, total: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a share (no continuity correction); `count` may be a fraction.

    >>> [round(end, 4) for end in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    share, spread = count / total, _Z**2 / total
    middle, reach = share + spread / 2, math.sqrt(spread * share * (1 - share) + spread**2 / 4)
    return max(0.0, (middle - reach) / (1 + spread)), min(1.0, (middle + reach) / (1 + spread))


def as_rate(flags: Sequence[Flag]) -> Rate:
    """Return how many of the rows count."""
    return Rate(sum(flag for _, flag in flags), len(flags))


def interval(flags: Sequence[Flag]) -> Estimate:
    """Return a share with the interval that fits how its rows hang together.

    Wilson where every cluster holds one row. Else a bootstrap over clusters: Wilson would take the two orders
    of a pair for two independent trials and come out up to 1.4 times too narrow, and Wilson on one order
    alone would throw half of the data away. Where all clusters agree, such as those of a judge that always
    names the first candidate, a bootstrap has width 0; then Wilson, each cluster one trial.
    """
    share, clusters = as_rate(flags), len({cluster for cluster, _ in flags})
    if clusters == len(flags):
        return Estimate(share.value, share.low, share.high)
    estimate = cluster_bootstrap(flags)
    if estimate.value is not None and estimate.low == estimate.high:
        return Estimate(estimate.value, *wilson(estimate.value * clusters, clusters))
    return estimate


def block(flags: Sequence[Flag]) -> dict[str, Any]:
    """Return a share for JSON: value, low and high of its `interval`, count and total.

    >>> block([])
    {'value': None, 'low': None, 'high': None, 'count': 0, 'total': 0}
    """
    return {**interval(flags)._asdict(), **as_rate(flags)._asdict()}


def cluster_bootstrap(rows: Sequence[tuple[str, float]], *, seed: int = 0, resamples: int = 2000) -> Estimate:
    """Return the mean of (cluster, value) rows with a percentile interval from resampling whole clusters.

    Rows of one cluster (same prompt, same pictures, other order) depend on each other; clusters do not. Under
    about 20 clusters percentile intervals come out too narrow.

    >>> cluster_bootstrap([("kite", 1), ("kite", 1), ("boat", 0), ("boat", 0)])
    Estimate(value=0.5, low=0.0, high=1.0)
    """
    return macro_average({"": rows}, seed=seed, resamples=resamples)


def macro_average(
    strata: Mapping[str, Sequence[tuple[str, float]]], *, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """Return the unweighted mean of the means of strata (tasks), bootstrapped by cluster within each stratum.

    The result depends on `seed` alone, not on the order of rows or strata; empty strata do not count.
    """
    filled = {name: rows for name, rows in strata.items() if rows}
    if not filled:
        return Estimate(None, None, None)
    means = [math.fsum(value for _, value in rows) / len(rows) for rows in filled.values()]
    draws = [_resampled(rows, digest("bootstrap", seed, name), resamples) for name, rows in sorted(filled.items())]
    macro = sorted(sum(draw) / len(draws) for draw in zip(*draws, strict=True))
    tail = int(0.025 * resamples)
    return Estimate(math.fsum(means) / len(means), macro[tail], macro[-1 - tail])


def sign_flip_p(differences: Sequence[int]) -> float:
    """Return the exact two-sided p-value of paired differences: P(|sum| >= |observed sum|) over all signs.

    The null is that every difference takes either sign with equal chance. With differences of 1, 0 and -1 this is
    McNemar's exact test.

    >>> [round(sign_flip_p(part), 6) for part in ([1, -1, 1], [2, 2, 0], [])]
    [1.0, 0.5, 1.0]
    """
    from scipy.signal import convolve
    from scipy.stats import binom

    density = [1.0]  # over the sums -n ... n
    for size, count in sorted(Counter(abs(d) for d in differences if d).items()):
        part = [0.0] * (2 * size * count + 1)
        part[:: 2 * size] = binom.pmf(range(count + 1), count, 0.5).tolist()
        density = convolve(density, part, method="direct").tolist()
    reach, middle = abs(sum(differences)), len(density) // 2
    return min(1.0, math.fsum(p for i, p in enumerate(density) if abs(i - middle) >= reach))


def _resampled(rows: Sequence[tuple[str, float]], seed: int, resamples: int) -> list[float]:
    """Draw means; clusters of equal sum and size are drawn as one kind: same distribution, much faster."""
    from scipy.stats import multinomial

    clusters: dict[str, list[float]] = defaultdict(list)
    for cluster, value in rows:
        clusters[cluster].append(value)
    kinds = Counter((math.fsum(values), len(values)) for values in clusters.values())
    shares = [kinds[kind] / len(clusters) for kind in sorted(kinds)]
    drawn = multinomial(len(clusters), shares, seed=seed % 2**32).rvs(resamples)
    means: list[float] = (
        (drawn @ [total for total, _ in sorted(kinds)]) / (drawn @ [n for _, n in sorted(kinds)])
    ).tolist()
    return means
