"""The judgments of a report that can be browsed: media as thumbnails, verdicts of both orders, why right or wrong.

examples({"GRPO": judgments}, records, FrameSampling(frames=4, cache=Path("outputs/frames")), limit=40)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.plots import COLOURS, Runs
from unifiedreward_think.forms import POINTWISE
from unifiedreward_think.media import FrameSampling, thumbnails
from unifiedreward_think.order import as_stored
from unifiedreward_think.pages import in_turn
from unifiedreward_think.point_metrics import rightly_ordered
from unifiedreward_think.records import Judgment, PreferenceRecord, digest
from unifiedreward_think.tasks import TASKS

STATUSES = {
    "right": "Right",
    "wrong": "Wrong",
    "mixed": "Depends on the order",
    "unlabelled": "No winner labelled",
}


def examples(
    judgments: Runs, records: Mapping[str, PreferenceRecord], sampling: FrameSampling, limit: int
) -> list[dict[str, Any]]:
    """Choose pairs in turn from every stage, task and status, the same ones in all stages where possible."""
    pairs = judged_pairs(judgments)
    stages = list(judgments)
    drawn = sorted(pairs, key=lambda key: (digest("example", *key[1:]), key))
    chosen = in_turn(drawn, lambda key: (key[0], pairs[key][0].task, status(pairs[key])))[:limit]
    shown: dict[str, list[dict[str, Any]]] = {}
    cards = []
    for key in sorted(chosen, key=lambda key: (digest("example", *key[1:]), stages.index(key[0]))):
        stage, name, _ = key
        if name not in records:
            raise RecordError(f"record {name!r} is judged in {stage!r} but not among the records; add it")
        if name not in shown:
            shown[name] = _media(records[name], sampling)
        card = _card(records[name], shown[name], sorted(pairs[key], key=lambda row: row.order))
        colour = stages.index(stage) % COLOURS
        cards.append({"stage": stage, "colour": colour, "status": status(pairs[key]), **card})
    return cards


def judged_pairs(judgments: Runs) -> dict[tuple[str, str, int], list[Judgment]]:
    """Return (stage, record id, sample) -> its judgments in all orders: what an example is chosen from."""
    pairs: defaultdict[tuple[str, str, int], list[Judgment]] = defaultdict(list)
    for stage, rows in judgments.items():
        for row in rows:
            pairs[stage, row.record_id, row.sample].append(row)
    return pairs


def status(rows: Sequence[Judgment]) -> str:
    """Return the key of STATUSES for the judgments of one pair; of scores: whether they order it as its label does."""
    if rows[0].form == POINTWISE.name:
        ordered = rightly_ordered(rows)
        return "unlabelled" if not ordered else "right" if min(ordered) == 1 else "wrong"
    rights = {row.correct for row in rows}
    return "unlabelled" if None in rights else "mixed" if len(rights) > 1 else "right" if True in rights else "wrong"


def pair_card(record: PreferenceRecord, rows: Sequence[Judgment], sampling: FrameSampling) -> dict[str, Any]:
    """Return a pair with its media and the given verdicts in their order, as the macros of parts.html take it."""
    return _card(record, _media(record, sampling), rows)


def _media(record: PreferenceRecord, sampling: FrameSampling) -> list[dict[str, Any]]:
    return thumbnails(record.media, TASKS[record.task].media_kind, sampling)


def _card(record: PreferenceRecord, media: list[dict[str, Any]], rows: Sequence[Judgment]) -> dict[str, Any]:
    return {
        "task": record.task,
        "compares_media": TASKS[record.task].compares_media,
        "record": record,
        "noun": TASKS[record.task].noun,
        "film": TASKS[record.task].media_kind == "video",
        "media": media,
        "verdicts": [shown_verdict(row) for row in rows],
    }


def shown_verdict(row: Judgment) -> dict[str, Any]:
    """Turn a verdict back to the record's own order: A is candidate 1 as stored, wherever it was shown."""
    text = row.completion or ""
    think, closed, answer = text.rpartition("</think>")
    return {
        "order": row.order.upper(),
        "winner": {1: "A", 2: "B", "tie": "tie", None: None}[row.choice],
        "score": row.verdict.score,
        "right": row.correct,
        "think": think + closed,
        "answer": answer.strip() if closed else text,
        "scores": [(each.name, *as_stored(each.scores, row.order)) for each in row.verdict.dimensions],
        "totals": row.verdict.totals and as_stored(row.verdict.totals, row.order),
        "problems": row.verdict.problems,
        "error": row.error,
        "cut": row.finish_reason == "length",
    }
