"""Who meets whom in a ranking by pairs, and which settings of a ranking fit together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from unifiedreward_think import ranking
from unifiedreward_think.serving.limits import Refused
from unifiedreward_think.serving.replies import Judged, game
from unifiedreward_think.serving.schemas import RankRequest


def check_rank(body: RankRequest) -> None:
    """Refuse settings of a ranking that would decide nothing.

    Raises:
        Refused: they do not fit together.
    """
    given = body.model_fields_set
    if body.by == "pairs" and (unused := given & {"samples", "temperature"}):
        raise Refused(f"{min(unused)}: only points have samples; pairs are judged once in each order")
    if body.by != "pairs" and (unused := given & {"schedule", "opponents", "rounds", "seed"}):
        raise Refused(f"{min(unused)}: only a ranking by pairs has a schedule")
    if body.by == "points" and body.orders == "both":
        raise Refused("orders: by points each candidate is shown alone; there is one order")
    if (body.opponents is None) == (body.schedule == "k_opponents"):
        raise Refused("opponents: give it with the schedule 'k_opponents', and only there")
    if body.rounds is not None and body.schedule != "swiss":
        raise Refused("rounds: only the schedule 'swiss' has rounds")


async def scheduled(
    body: RankRequest, line: Sequence[int], play: Callable[[Sequence[ranking.Pair], bool], Awaitable[list[Judged]]]
) -> list[Judged]:
    """Return the games of a schedule. It is drawn over places in `line`, so that a permuted request plays the same."""
    count = len(line)

    def candidates(pairs: Sequence[ranking.Pair]) -> list[ranking.Pair]:
        return [(min(line[i], line[j]), max(line[i], line[j])) for i, j in pairs]

    if body.schedule == "k_opponents":
        return await play(candidates(ranking.k_opponents(count, body.opponents or 1, body.seed)), False)
    if body.schedule == "round_robin":
        return await play(candidates(ranking.round_robin(count)), False)
    rows: list[Judged] = []
    places = [line.index(candidate) for candidate in range(count)]
    for _ in range(body.rounds or ranking.swiss_rounds(count)):
        games = ranking.renumbered([game(*row) for row in rows], places)
        if not (pairs := await asyncio.to_thread(ranking.swiss_round, count, games, body.seed)):
            break
        rows += await play(candidates(pairs), bool(rows))
    return rows
