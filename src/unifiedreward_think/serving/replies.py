"""From judgments to what the client reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from unifiedreward_think import ranking
from unifiedreward_think.intervals import Estimate
from unifiedreward_think.order import as_stored
from unifiedreward_think.records import Judgment
from unifiedreward_think.serving.questions import Shown, status_of
from unifiedreward_think.serving.schemas import (
    CompareReply,
    Dimension,
    JudgedPair,
    RankedCandidate,
    RankReply,
    Status,
)
from unifiedreward_think.votes import combine

Judged = tuple[Shown, Judgment]


def compare_reply(rows: Sequence[Judged], *, reasoning: bool, model: str) -> CompareReply:
    """Return what the judgments of one pair say together; with both orders each has a vote."""
    result = combine([row for _, row in rows])
    readable = [row for _, row in rows if row.candidate is not None]
    status, reason = status_of(readable[0] if readable else rows[0][1])
    if readable and result.winner is None:
        reason = "the two orders disagree"
    return CompareReply(
        status=status,
        reason=reason,
        winner=None if result.winner is None else int(result.winner) - 1,
        agreement=len({row.candidate for row in readable}) == 1 if len(readable) == 2 else None,
        margin=result.margin,
        scores=[Dimension(name=name, a=a, b=b) for name, (a, b) in result.dimensions],
        judgments=[_judged_pair(*row, reasoning) for row in rows],
        model=model,
    )


def rank_reply(count: int, rows: Sequence[Judged], *, reasoning: bool, model: str) -> RankReply:
    """Return how each of `count` candidates did."""
    table = ranking.standings(count, [game(*row) for row in rows])
    return RankReply(
        candidates=[_ranked(i, standing, rows) for i, standing in enumerate(table)],
        judgments=[_judged_pair(*row, reasoning) for row in rows],
        model=model,
    )


def _candidate(pair: Shown, row: Judgment) -> int | None:
    return None if row.candidate is None else (pair.a, pair.b)[row.candidate - 1]


def game(pair: Shown, row: Judgment) -> ranking.Game:
    """Return a judgment as a game of two candidates."""
    return ranking.Game(pair.a, pair.b, _candidate(pair, row))


def _dimensions(row: Judgment) -> list[Dimension]:
    """Return the scores by candidate, whichever was shown first."""
    stored = [(dimension.name, as_stored(dimension.scores, row.order)) for dimension in row.verdict.dimensions]
    return [Dimension(name=name, a=a, b=b) for name, (a, b) in stored]


def _judged_pair(pair: Shown, row: Judgment, reasoning: bool) -> JudgedPair:
    status, reason = status_of(row)
    return JudgedPair(
        a=pair.a,
        b=pair.b,
        shown_first=pair.first,
        status=status,
        reason=reason,
        winner=_candidate(pair, row),
        strict=row.verdict.strict,
        scores=_dimensions(row),
        reasoning=row.completion if reasoning else None,
    )


def _ranked(index: int, standing: ranking.Standing, rows: Sequence[Judged]) -> RankedCandidate:
    mine = [row for row in rows if index in (row[0].a, row[0].b)]
    # A swiss round may leave somebody out: that is no failure of the judge, but there is no number either.
    said: list[tuple[Status, str]] = sorted((status_of(row) for _, row in mine), key=lambda s: s[0] != "ok")
    status, reason = said[0] if said else ("error", "the schedule gave it no game")
    # Without a readable game the score would be the prior alone.
    score = standing.score if standing.games else Estimate(None, None, None)
    return RankedCandidate(
        index=index,
        status=status,
        reason=reason,
        win_rate=standing.win_rate,
        wins=standing.wins,
        games=standing.games,
        asked=len(mine),
        score=score.value,
        score_low=score.low,
        score_high=score.high,
        dimensions=_mean_dimensions(index, mine),
    )


def _mean_dimensions(index: int, rows: Sequence[Judged]) -> dict[str, float]:
    said: dict[str, list[float]] = defaultdict(list)
    for pair, row in rows:
        for score in _dimensions(row) if row.candidate is not None else []:
            said[score.name].append(score.a if pair.a == index else score.b)
    return {name: sum(values) / len(values) for name, values in said.items()}
