"""The metrics of the benchmarks as their authors compute them, quirks included, so that numbers can be compared.

What is reported as ours is `metrics.summarize`; what is here is for the comparison with published tables. The source of
each rule stands in its docstring: cal.py (vl-rewardbench/VL_RewardBench), inference.py (TIGER-AI-Lab/GenAI-Bench),
calc_accuracy.py (KwaiVGI/VideoAlign), 2_get_accuracy.py (facebookresearch/multimodal_rewardbench), compute_accuracy.py
(facebookresearch/MMRB2), and the published scripts of UnifiedReward-Think ("the paper's scripts").

>>> videoalign_with_ties([0, 1], [1, 1]), videoalign_with_ties([1, 0], [1, 1])    # the order of rows matters there
(1.0, 0.5)
>>> share(Rate(3, 4))
{'value': 0.75, 'count': 3, 'total': 4}
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from unifiedreward_think.intervals import Rate
from unifiedreward_think.order import candidate_at, place_shown
from unifiedreward_think.records import Judgment, Preferred, digest
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import answer_text

Choice = Preferred | None  # what a judge says, in the record's own order; None: nothing can be read
Grouping = Literal["official", "paper"]
VL_GROUPS = ("general", "hallucination", "reasoning")
VL_VOTES = (1, 3, 5, 7, 9)


def share(rate: Rate) -> dict[str, Any]:
    """Return a rate for JSON, without an interval: the authors state none."""
    return {"value": rate.value, **rate._asdict()}


def samples(judgments: Iterable[Judgment], *, order: Literal["stored", "drawn"]) -> dict[str, list[Judgment]]:
    """Return record id -> its samples by number, one order each, for protocols that show a sample in one order.

    Where both orders were judged, "stored" takes the order of the benchmark's own file and "drawn" a random one for
    every sample, from (sample, record id) alone: of sample 0 the order that `--orders one` shows. Where one was judged,
    it is taken.
    """
    by_sample: dict[tuple[str, int], dict[str, Judgment]] = defaultdict(dict)
    for row in judgments:
        by_sample[row.record_id, row.sample][row.order] = row
    rows: dict[str, list[Judgment]] = defaultdict(list)
    for (name, sample), judged in sorted(by_sample.items(), key=lambda item: item[0][1]):
        swapped = order == "drawn" and digest("order", sample, name) % 2
        wanted = "ba" if swapped else "ab"
        rows[name].append(judged[wanted] if wanted in judged else next(iter(judged.values())))
    return dict(rows)


# --- readings of the paper's scripts: substrings of the whole output, the thinking included ---


def gold_anywhere(row: Judgment) -> bool | None:
    """Whether the gold sentence occurs anywhere in the output; None without a winner in the label.

    The paper's scripts for VL-RewardBench and GenAI-Bench image (`answer in output`). An output that names both
    candidates, such as one that thinks aloud, counts as right.
    """
    if row.preferred not in (1, 2):
        return None
    shown = place_shown(row.preferred, row.order)
    return answer_text(shown, TASKS[row.task].noun) in (row.completion or "")


def first_named(row: Judgment) -> Preferred:
    """What the paper's scripts for videos read: the sentence for the first candidate comes first; "tie" without any.

    An output that names both counts for the one shown first; one that was cut or cannot be read counts as a tie.
    """
    noun = TASKS[row.task].noun
    for shown, candidate in ((place, candidate_at(place, row.order)) for place in (1, 2)):
        if answer_text(shown, noun) in (row.completion or ""):
            return candidate
    return "tie"


def exact_match(choices: Sequence[Choice], gold: Sequence[Preferred]) -> dict[str, Any]:
    """Return "Acc." (all pairs, a tie must be called) and "Acc. w/o tie" (pairs with a winner) of the paper's scripts.

    The paper prints the second as "diff". What cannot be read is wrong in both.

    >>> [block["value"] for block in exact_match([1, "tie", None, 1], [1, "tie", 2, 2]).values()]
    [0.5, 0.3333333333333333]
    """
    right = [a is not None and a == b for a, b in zip(choices, gold, strict=True)]
    decided = [ok for ok, label in zip(right, gold, strict=True) if label != "tie"]
    return {
        "accuracy": share(Rate(sum(right), len(right))),
        "accuracy_without_ties": share(Rate(sum(decided), len(decided))),
    }


# --- VL-RewardBench ---


def vl_group(name: str, grouping: Grouping = "official") -> str:
    """Return the group of an item by the prefix of its id: sizes 183/749/318 officially, 631/301/318 in the paper.

    The paper's scripts lack the rule for `hallucination_pair-*` (POVID, 448 items), which they count as general. The
    official script had that bug too; the benchmark's own table has 749.

    >>> vl_group("hallucination_pair-1003"), vl_group("hallucination_pair-1003", "paper"), vl_group("mmmu_pro_test_1")
    ('hallucination', 'general', 'reasoning')
    """
    prefix = re.split("[_-]", name, maxsplit=1)[0]
    if prefix in ("mathverse", "mmmu"):
        return "reasoning"
    if prefix in ("RLAIF", "RLHF") or (prefix == "hallucination" and grouping == "official"):
        return "hallucination"
    return "general"


def vl_rewardbench(votes: Mapping[str, Sequence[bool | None]], *, k: int) -> dict[str, Any]:
    """Return the official table of VL-RewardBench (cal.py) for the first k samples of each item.

    Args:
        votes: item id -> for each sample whether it agrees with the label, None if it cannot be read.
        k: 1, 3, 5, 7 or 9 in cal.py.

    An item with any sample that cannot be read leaves all denominators (`filter_out_doesntMatch`), and so does one
    whose vote is split. cal.py draws the k samples by shuffling; here they are the first k.
    """
    rates = {group: Rate(0, 0) for group in VL_GROUPS}
    dropped = Counter(unparsed=0, split=0)
    for name, choices in votes.items():
        cast = list(choices)[:k]
        agree = cast.count(True)
        if None in cast:
            dropped["unparsed"] += 1
        elif 2 * agree == len(cast):
            dropped["split"] += 1
        else:
            count, total = rates[vl_group(name)]
            rates[vl_group(name)] = Rate(count + (2 * agree > len(cast)), total + 1)
    return {**_vl_table(rates), "dropped": dict(dropped)}


def vl_rewardbench_paper(right: Mapping[str, bool]) -> dict[str, Any]:
    """Return the table of the paper's scripts: their groups, every item in the denominator."""
    flags: dict[str, list[bool]] = {group: [] for group in VL_GROUPS}
    for name, ok in right.items():
        flags[vl_group(name, "paper")].append(ok)
    return _vl_table({group: Rate(sum(part), len(part)) for group, part in flags.items()})


def weighted(accuracies: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the overall accuracy that groups add up to: which grouping a published row was made with.

    >>> round(weighted([78.1, 72.7, 66.0], [631, 301, 318]), 1), round(weighted([78.1, 72.7, 66.0], [183, 749, 318]), 1)
    (73.7, 71.8)
    """
    return sum(a * n for a, n in zip(accuracies, sizes, strict=True)) / sum(sizes)


def _vl_table(rates: Mapping[str, Rate]) -> dict[str, Any]:
    values = [rate.value for rate in rates.values()]
    known = [value for value in values if value is not None]
    total = Rate(sum(rate.count for rate in rates.values()), sum(rate.total for rate in rates.values()))
    return {
        **{group: share(rate) for group, rate in rates.items()},
        "overall": share(total),
        "macro": {"value": sum(known) / len(known) if known and len(known) == len(values) else None},
    }


# --- GenAI-Bench ---

GENAI_RIGHT = {
    "leftvote": ("[[A>>B]]", "[[A>B]]"),
    "rightvote": ("[[B>>A]]", "[[B>A]]"),
    "tievote": ("[[A=B]]", "[[A=B=Good]]"),
    "bothbad_vote": ("[[A=B]]", "[[A=B=Bad]]"),
}
_CALLED: dict[Preferred, str] = {1: "[[A>B]]", 2: "[[B>A]]", "tie": "[[A=B]]"}


def genai_vote(output: str) -> str | None:
    """Return the verdict that inference.py finds in prose: from the first "[[" to the last "]]" of its line.

    >>> genai_vote("Final verdict: [[A=B=Bad]]."), genai_vote("no verdict")
    ('[[A=B=Bad]]', None)
    """
    match = re.search(r"\[\[.*\]\]", output)
    return match.group() if match else None


def genai_bench(votes: Iterable[tuple[str | None, str]]) -> dict[str, Any]:
    """Return the official accuracy of (verdict, human vote) pairs: four labels, what cannot be read is wrong.

    >>> genai_bench([("[[A>B]]", "leftvote"), ("[[A=B]]", "bothbad_vote"), (None, "tievote")])["accuracy"]["count"]
    2
    """
    right: dict[str, list[bool]] = {human: [] for human in GENAI_RIGHT}
    for vote, human in votes:
        right[human].append(vote in GENAI_RIGHT[human])
    every = [ok for part in right.values() for ok in part]
    return {
        "accuracy": share(Rate(sum(every), len(every))),
        "by_human_vote": {human: share(Rate(sum(part), len(part))) for human, part in right.items()},
    }


def genai_verdict(choice: Choice) -> str | None:
    """Write a choice as a verdict of GenAI-Bench.

    A margin of scores can call a tie, not whether both are good or bad: "[[A=B]]", which inference.py takes as right
    for either vote.
    """
    return None if choice is None else _CALLED[choice]


# --- VideoGen-RewardBench ---


def videoalign_with_ties(human: Sequence[int], margins: Sequence[float | None]) -> float | None:
    """Return VideoAlign's "accuracy with ties" (calc_accuracy.py), its treatment of equal margins included.

    Pairs move below the threshold one by one in the order of |margin|; after each move the tau is a candidate. So it
    splits pairs of equal margin by their place in the file, which no threshold can, and never tries to call no tie at
    all. Harmless for real-valued scores, but whole-number sums of a chain of thought are hit.
    `tie_threshold.tie_calibration` is the exact optimum.

    Args:
        human: 1, -1, or 0 for a tie.
        margins: score of A minus score of B; None (unknown to calc_accuracy.py) is always wrong.
    """
    known = [(h, m) for h, m in zip(human, margins, strict=True) if m is not None]
    right, best = sum(h * m > 0 for h, m in known), 0
    for h, m in sorted(known, key=lambda pair: abs(pair[1])):
        right += (h == 0) - (h * m > 0)
        best = max(best, right)
    return best / len(human) if human else None


def videoalign_without_ties(human: Sequence[int], margins: Sequence[float | None]) -> Rate:
    """Return VideoAlign's "accuracy without ties": of the pairs with a winner; a margin of 0 is wrong.

    >>> videoalign_without_ties([1, -1, 1, 0], [3, 2, 0, 5])
    Rate(count=1, total=3)
    """
    decided = [(h, m) for h, m in zip(human, margins, strict=True) if h != 0]
    return Rate(sum(m is not None and h * m > 0 for h, m in decided), len(decided))


# --- Multimodal RewardBench ---


def multimodal_rewardbench(rows: Iterable[tuple[str, str, Choice, Choice]]) -> dict[str, Any]:
    """Return the table of 2_get_accuracy.py for (ID, category, what the judge says, label), in the order of the file.

    What cannot be read is a coin flip: one draw a row from Python's generator with seed 123, so the result depends on
    the order of rows. Safety is split into bias (IDs that start with "pairs") and toxicity, reasoning into math (IDs
    that start with "math") and coding.
    """
    coin = random.Random(123)
    right: dict[str, list[bool]] = defaultdict(list)
    flips = 0
    for name, category, choice, label in rows:
        if choice is None:
            flips += 1
            choice = 1 if coin.random() < 0.5 else 2
        for group in ("all", _subcategory(name.lower(), category)):
            right[group].append(choice == label)
    table = {group: share(Rate(sum(part), len(part))) for group, part in right.items()}
    return {**table, "coin_flips": flips}


def _subcategory(name: str, category: str) -> str:
    if category == "safety":
        return "safety/bias" if name.startswith("pairs") else "safety/toxicity"
    if category == "reasoning":
        return "reasoning/math" if name.startswith("math") else "reasoning/coding"
    return category


# --- MMRB2 ---


def mmrb2(judgments: Iterable[Judgment]) -> Rate:
    """Return the accuracy of compute_accuracy.py: forward and reverse count once each, what is missing does not count.

    Only the first sample is looked at, and a verdict that cannot be read leaves the denominator.
    """
    readable = [row for row in judgments if row.sample == 0 and row.choice is not None and row.preferred is not None]
    return Rate(sum(bool(row.correct) for row in readable), len(readable))
