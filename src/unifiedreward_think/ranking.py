"""Who meets whom, and what the games say: win rates, and Bradley-Terry scores with 95% intervals. Pure arithmetic.

>>> round_robin(3)
[(0, 1), (0, 2), (1, 2)]
>>> table = standings(3, [Game(0, 1, 0), Game(0, 2, 0), Game(1, 2, None)])
>>> [row.win_rate for row in table], [row.games for row in table]
([1.0, 0.0, 0.0], [2, 1, 1])
>>> table[0].score.value > 0 > table[1].score.value
True
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, pairwise
from statistics import NormalDist
from typing import Literal, NamedTuple, get_args

from unifiedreward_think.forms import DECIMALS
from unifiedreward_think.intervals import Estimate
from unifiedreward_think.records import digest

# Log-odds of one candidate against the average one. Two standard deviations are odds of 55 to 1, so the prior matters
# only where games are few: it keeps the score of a candidate that won them all finite.
PRIOR_SD = 2.0
_Z = NormalDist().inv_cdf(0.975)

Pair = tuple[int, int]
Way = Literal["pairs", "points", "points_then_pairs"]  # what decides who is better
WAYS: tuple[Way, ...] = get_args(Way)


class Game(NamedTuple):
    """One judgment of a pair of candidates, by their places in the list.

    `winner` is None where none can be read, and where the two are equal: then it is a `tie`, half a win for each.
    """

    a: int
    b: int
    winner: int | None
    tie: bool = False

    @property
    def readable(self) -> bool:
        """Whether it counts."""
        return self.tie or self.winner is not None

    def wins(self, candidate: int) -> float:
        """Return what a candidate has of it.

        >>> Game(0, 1, 1).wins(1), Game(0, 1, None, tie=True).wins(1), Game(0, 1, 1).wins(0)
        (1.0, 0.5, 0.0)
        """
        if self.tie:
            return 0.5 * (candidate in (self.a, self.b))
        return float(self.winner == candidate)


class Standing(NamedTuple):
    """What the games say of one candidate.

    `wins` of `games` that count give the win rate, None without any; a tie is half a win. `score` is the Bradley-Terry
    log-strength: 0 is the average candidate, and one beats another with probability 1 / (1 + exp(-difference)).
    """

    wins: float
    games: int
    score: Estimate

    @property
    def win_rate(self) -> float | None:
        """Share of the games that count."""
        return self.wins / self.games if self.games else None


def round_robin(count: int) -> list[Pair]:
    """Return every pair once."""
    return list(combinations(range(count), 2))


def k_opponents(count: int, opponents: int, seed: int) -> list[Pair]:
    """Return pairs in which everybody meets `opponents` others, drawn from `seed`.

    Candidates stand in a shuffled circle and meet their neighbours up to some distance, so that from two opponents on
    all are connected and their scores can be compared. Where `count` and `opponents` are odd, one candidate has one
    more, as no other schedule exists.

    >>> len(k_opponents(8, 3, seed=0)), k_opponents(4, 9, seed=0) == round_robin(4)
    (12, True)
    """
    if opponents >= count - 1:
        return round_robin(count)
    circle = list(range(count))
    random.Random(digest("opponents", seed, count)).shuffle(circle)
    steps = [(i, (i + step) % count) for step in range(1, opponents // 2 + 1) for i in range(count)]
    if opponents % 2:
        # Everybody meets the one across; in an odd circle the middle one does so twice.
        steps += [(i, i + count // 2) for i in range((count + 1) // 2)]
    return sorted((min(circle[i], circle[j]), max(circle[i], circle[j])) for i, j in steps)


def swiss_round(count: int, games: Sequence[Game], seed: int) -> list[Pair]:
    """Return the pairs of the next round: candidates of like standing meet, nobody meets the same one twice.

    In an odd field one candidate rests, the last in line of those who have rested least. A round has fewer pairs only
    where no more are left that have not met.
    """
    import networkx

    met = {frozenset((game.a, game.b)) for game in games}
    line = list(range(count))
    random.Random(digest("swiss", seed, len(met))).shuffle(line)
    table = standings(count, games)
    line.sort(key=lambda i: -table[i].score.value)  # type: ignore[operator]  # standings always have a score
    if count % 2:
        played = [sum(i in pair for pair in met) for i in range(count)]
        line.remove(max(reversed(line), key=lambda i: played[i]))
    places = networkx.Graph()
    # As many pairs as can be, and of these the choice whose pairs stand closest together.
    places.add_weighted_edges_from(
        (a, b, -abs(line.index(a) - line.index(b))) for a, b in combinations(line, 2) if {a, b} not in met
    )
    matched = networkx.max_weight_matching(places, maxcardinality=True)
    return sorted((min(pair), max(pair)) for pair in matched)


def by_points(points: Sequence[float | None]) -> list[Game]:
    """Return a game of every two candidates that have points: more of them win, equal ones are a tie.

    >>> by_points([0.5, None, 0.7])
    [Game(a=0, b=2, winner=2, tie=False)]
    """
    read = {i: round(value, DECIMALS) for i, value in enumerate(points) if value is not None}
    return [
        Game(a, b, None if read[a] == read[b] else max(a, b, key=lambda i: read[i]), tie=read[a] == read[b])
        for a, b in combinations(read, 2)
    ]


def neighbours(points: Sequence[float | None], line: Sequence[int]) -> list[Pair]:
    """Return who stands next to whom by points, the most first; candidates without points do not stand there.

    >>> neighbours([0.5, None, 0.7, 0.5], line=[3, 2, 1, 0])
    [(2, 3), (0, 3)]

    Args:
        points: of each candidate.
        line: all candidates; among equal points the one that comes first in it stands first.
    """
    read = {i: round(value, DECIMALS) for i in line if (value := points[i]) is not None}
    standing = sorted(read, key=lambda i: -read[i])
    return [(min(pair), max(pair)) for pair in pairwise(standing)]


def swiss_rounds(count: int) -> int:
    """Return how many rounds find the best of `count`: one more than a knock-out needs."""
    return min(math.ceil(math.log2(count)) + 1, count - 1)


def renumbered(games: Sequence[Game], numbers: Sequence[int]) -> list[Game]:
    """Return games under other numbers of the candidates, in the order of these: of the same games, the same list.

    >>> renumbered([Game(0, 2, 2), Game(0, 1, None)], [2, 1, 0])
    [Game(a=0, b=2, winner=0, tie=False), Game(a=1, b=2, winner=None, tie=False)]
    """
    new = []
    for game in games:
        a, b = sorted((numbers[game.a], numbers[game.b]))
        new.append(Game(a, b, None if game.winner is None else numbers[game.winner], game.tie))
    return sorted(new, key=lambda game: (game.a, game.b, game.wins(game.a)))


def standings(count: int, games: Sequence[Game]) -> list[Standing]:
    """Return the standing of each of `count` candidates; games that cannot be read do not count."""
    read = [game for game in games if game.readable]
    scores = bradley_terry(count, read)
    return [
        Standing(sum(game.wins(i) for game in read), sum(i in (game.a, game.b) for game in read), scores[i])
        for i in range(count)
    ]


def bradley_terry(count: int, games: Sequence[Game]) -> list[Estimate]:
    """Return log-strengths with 95% intervals, under a normal prior with standard deviation PRIOR_SD.

    All games of a pair count as one trial with their mean result: the two orders of a pair are two looks at the same
    question, and taking them for independent would make the intervals too narrow. The estimate is the maximum of the
    posterior, the interval that of its curvature (Laplace). The scores add up to 0.
    """
    import numpy as np

    results: dict[Pair, list[float]] = defaultdict(list)
    for game in games:
        low, high = sorted((game.a, game.b))
        results[low, high].append(game.wins(low))
    strength = np.zeros(count)
    precision = np.eye(count) / PRIOR_SD**2
    if results:
        pairs = np.array(list(results))
        share = np.array([sum(outcomes) / len(outcomes) for outcomes in results.values()])
        design = np.zeros((len(pairs), count))
        design[np.arange(len(pairs)), pairs[:, 0]] = 1
        design[np.arange(len(pairs)), pairs[:, 1]] = -1
        for _ in range(100):  # Newton's method; the posterior has one maximum
            expected = 1 / (1 + np.exp(-design @ strength))
            slope = design.T @ (share - expected) - strength / PRIOR_SD**2
            curve = (design.T * (expected * (1 - expected))) @ design + precision
            step = np.linalg.solve(curve, slope)
            longest = float(np.abs(step).max())
            strength = strength + step * min(1.0, 1 / max(longest, 1e-12))  # far from the maximum it could overshoot
            if longest < 1e-9:
                break
        precision = curve
    reach = _Z * np.sqrt(np.diag(np.linalg.inv(precision)))
    spread = zip(strength.tolist(), reach.tolist(), strict=True)
    return [Estimate(value, value - width, value + width) for value, width in spread]
