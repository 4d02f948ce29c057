"""Rewards of rows that lie on two processes, for test_gathering; not a test file.

torchrun --nproc_per_node 2 tests/helpers/gathered_rewards.py OUTPUT
"""

import json
import sys
from pathlib import Path

from unifiedreward_think.points import render_points
from unifiedreward_think.rewards import accuracy_reward, swap_agreement_reward
from unifiedreward_think.serving.client import RewardError
from unifiedreward_think.serving.reward_fns import trl_reward
from unifiedreward_think.verdict import render

ONE, TWO = (render(place, [("Aesthetics", 9, 4)], noun="Image") for place in (1, 2))


def score(value):
    return render_points([("Light", value)])


# pair, order, solution, form, completion: the first process holds three rows, the second the rest.
POINTS = [
    ("k", "a", "better", "pointwise", score(8)),
    ("k", "a", "better", "pointwise", score(3)),
    ("p", "ab", "Image 1 is better", "pairwise", ONE),
    ("k", "b", "worse", "pointwise", score(3)),
    ("k", "b", "worse", "pointwise", "no idea"),
    ("k", "b", "worse", "pointwise", score(5)),
    ("t", "b", "equal", "pointwise", score(5)),  # whose other candidate is nowhere
]
SWAPPED = [("k", "ab", ONE), ("k", "ab", TWO), ("m", "ab", ONE), ("k", "ba", TWO), ("m", "ba", ""), ("k", "ba", TWO)]
ANSWERS = [("kite?", "aa"), ("kite?", "bbbb"), ("boat?", "cc"), ("kite?", "cccccc"), ("boat?", "dddd")]
CUT = 3


class Longest:
    """Stands in for a reward server: the longer an answer is, the more games it wins; one word is refused."""

    def __init__(self):
        self.asked = []

    def rank_all(self, groups):
        self.asked += [(group["prompt"], list(group["candidates"])) for group in groups]
        if any("refused" in group["candidates"] for group in groups):
            raise RewardError("the server refuses an answer")
        return [
            {"candidates": [self._row(one, group["candidates"]) for one in group["candidates"]]} for group in groups
        ]

    def _row(self, one, everyone):
        others = len(everyone) - 1
        return {"win_rate": sum(len(one) > len(other) for other in everyone) / others, "reason": ""}


def columns(rows, names):
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def points(rows, logged):
    given = columns(rows, ("id", "order", "solution", "form", "completions"))
    return accuracy_reward(
        task=["image_generation"] * len(rows), log_metric=lambda name, value: logged.append((name, value)), **given
    )


def swapped(rows):
    return swap_agreement_reward(task=["image_generation"] * len(rows), **columns(rows, ("id", "order", "completions")))


def ranked(rows, client):
    return trl_reward(client)(images=[[] for _ in rows], **columns(rows, ("prompts", "completions")))


def all_rewards(part):
    """What each reward function returns of the rows that `part` chooses."""
    client, logged = Longest(), []
    found = {
        "points": points(part(POINTS), logged),
        "swapped": swapped(part(SWAPPED)),
        "ranked": ranked(part(ANSWERS), client),
        "asked": client.asked,
        "logged": logged,
    }
    try:
        ranked(part([*ANSWERS, ("boat?", "refused")]), client)
    except RewardError as error:
        found["refused"] = str(error)
    return found


def main():
    from accelerate import Accelerator

    rank = Accelerator(cpu=True).process_index
    found = all_rewards(lambda rows: rows[CUT:] if rank else rows[:CUT])
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
