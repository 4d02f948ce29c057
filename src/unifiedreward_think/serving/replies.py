"""From judgments to what the client reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from unifiedreward_think import ranking
from unifiedreward_think.candidate_points import Points
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
    ScoredCandidate,
    Status,
)
from unifiedreward_think.serving.scoring import score_reply
from unifiedreward_think.votes import combine

Judged = tuple[Shown, Judgment | None]  # None: the candidates are equal, and nothing was asked
EQUAL = "the candidates are equal: nothing was asked"


def compare_reply(rows: Sequence[Judged], *, reasoning: bool, model: str) -> CompareReply:
    """Return what the judgments of one pair say together; with both orders each has a vote."""
    shared: dict[str, Any] = {"judgments": [_judged_pair(*row, reasoning) for row in rows], "model": model}
    judged = [row for _, row in rows if row is not None]
    if not judged:
        nothing: dict[str, Any] = {"winner": None, "agreement": None, "margin": None, "scores": []}
        return CompareReply(status="ok", reason=EQUAL, outcome="tie", **nothing, **shared)
    result = combine(judged)
    readable = [row for row in judged if row.choice is not None]
    status, reason = status_of(readable[0] if readable else judged[0])
    split = bool(readable) and result.winner is None
    return CompareReply(
        status=status,
        reason="the two orders disagree" if split else reason,
        outcome="tie" if result.winner == "tie" else "split" if split else "winner" if readable else "unreadable",
        winner=result.winner - 1 if isinstance(result.winner, int) else None,
        agreement=len({row.choice for row in readable}) == 1 if len(readable) == 2 else None,
        margin=result.margin,
        scores=[Dimension(name=name, a=a, b=b) for name, (a, b) in result.dimensions],
        **shared,
    )


def rank_reply(count: int, rows: Sequence[Judged], *, reasoning: bool, model: str) -> RankReply:
    """Return how each of `count` candidates did."""
    table = ranking.standings(count, [game(*row) for row in rows])
    return RankReply(
        candidates=[_ranked(i, standing, rows) for i, standing in enumerate(table)],
        judgments=[_judged_pair(*row, reasoning) for row in rows],
        model=model,
    )


def points_rank_reply(points: Sequence[Points], rows: Sequence[Judged], *, reasoning: bool, model: str) -> RankReply:
    """Return how candidates did by their points, and where some met as pairs by these games.

    Every two candidates with points meet once: what their games say counts, and without any their points do.
    """
    met = {frozenset((pair.a, pair.b)) for pair, _ in rows}
    apart = [each for each in ranking.by_points([each.share for each in points]) if {each.a, each.b} not in met]
    # A pair that was shown in both orders has two games: so has every other, or neighbours would weigh more.
    games = apart * (len(rows) // len(met) if met else 1) + [game(*row) for row in rows]
    scored = score_reply(points, reasoning=reasoning, model=model)
    table = ranking.standings(len(points), games)
    return RankReply(
        candidates=[_ranked_by_points(each, table[each.index], games, rows) for each in scored.candidates],
        judgments=[_judged_pair(*row, reasoning) for row in rows],
        points=scored,
        model=model,
    )


def _candidate(pair: Shown, row: Judgment | None) -> int | None:
    return (pair.a, pair.b)[row.choice - 1] if row is not None and isinstance(row.choice, int) else None


def _is_tie(row: Judgment | None) -> bool:
    return row is None or row.choice == "tie"


def game(pair: Shown, row: Judgment | None) -> ranking.Game:
    """Return a judgment as a game of two candidates."""
    return ranking.Game(pair.a, pair.b, _candidate(pair, row), tie=_is_tie(row))


def _status_of(row: Judgment | None) -> tuple[Status, str]:
    return ("ok", EQUAL) if row is None else status_of(row)


def _dimensions(row: Judgment) -> list[Dimension]:
    """Return the scores by candidate, whichever was shown first."""
    stored = [(dimension.name, as_stored(dimension.scores, row.order)) for dimension in row.verdict.dimensions]
    return [Dimension(name=name, a=a, b=b) for name, (a, b) in stored]


def _judged_pair(pair: Shown, row: Judgment | None, reasoning: bool) -> JudgedPair:
    status, reason = _status_of(row)
    winner = _candidate(pair, row)
    return JudgedPair(
        a=pair.a,
        b=pair.b,
        shown_first=None if row is None else pair.first,
        status=status,
        reason=reason,
        outcome="tie" if _is_tie(row) else "unreadable" if winner is None else "winner",
        winner=winner,
        strict=None if row is None else row.verdict.strict,
        scores=[] if row is None else _dimensions(row),
        reasoning=row.completion if row is not None and reasoning else None,
    )


def _ranked(index: int, standing: ranking.Standing, rows: Sequence[Judged]) -> RankedCandidate:
    games = [row for row in rows if index in (row[0].a, row[0].b)]
    # A swiss round may leave somebody out: that is no failure of the judge, but there is no number either.
    statuses: list[tuple[Status, str]] = sorted((_status_of(row) for _, row in games), key=lambda s: s[0] != "ok")
    status, reason = statuses[0] if statuses else ("error", "the schedule gave it no game")
    # Without a readable game the score would be the prior alone.
    score = standing.score if standing.games else Estimate(None, None, None)
    return RankedCandidate(
        index=index,
        status=status,
        reason="" if status == "ok" else reason,
        win_rate=standing.win_rate,
        wins=standing.wins,
        games=standing.games,
        asked=len(games),
        score=score.value,
        score_low=score.low,
        score_high=score.high,
        dimensions=_mean_dimensions(index, games),
    )


def _ranked_by_points(
    scored: ScoredCandidate, standing: ranking.Standing, games: Sequence[ranking.Game], rows: Sequence[Judged]
) -> RankedCandidate:
    status, reason = scored.status, scored.reason
    if status == "ok" and not standing.games:
        own = [_status_of(row) for pair, row in rows if scored.index in (pair.a, pair.b)]
        status, reason = own[0] if own else ("error", "no other candidate has points")
    return RankedCandidate(
        index=scored.index,
        status=status,
        reason=reason,
        win_rate=standing.win_rate,
        wins=standing.wins,
        games=standing.games,
        asked=sum(scored.index in (each.a, each.b) for each in games),
        score=None,  # comparisons of points are no trials that an interval could be drawn from
        score_low=None,
        score_high=None,
        dimensions=scored.dimensions,
    )


def _mean_dimensions(index: int, rows: Sequence[Judged]) -> dict[str, float]:
    scores: dict[str, list[float]] = defaultdict(list)
    for pair, row in rows:
        for score in _dimensions(row) if row is not None and row.choice is not None else []:
            scores[score.name].append(score.a if pair.a == index else score.b)
    return {name: sum(values) / len(values) for name, values in scores.items()}
