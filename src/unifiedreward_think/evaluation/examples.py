"""The judgments of a report that can be browsed: media as thumbnails, verdicts of both orders, why right or wrong.

examples({"GRPO": judgments}, records, FrameSampling(frames=4, cache=Path("outputs/frames")), limit=40)
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.plots import COLOURS, Runs
from unifiedreward_think.media import FrameSampling, MediaError, image_paths, open_image
from unifiedreward_think.order import as_stored
from unifiedreward_think.records import Judgment, PreferenceRecord, digest
from unifiedreward_think.tasks import TASKS

THUMBNAIL = 320  # pixels on the longer side
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
    pairs: dict[tuple[str, str, int], list[Judgment]] = defaultdict(list)
    for stage, rows in judgments.items():
        for row in rows:
            pairs[stage, row.record_id, row.sample].append(row)
    kinds: dict[tuple[str, str, str], list[tuple[int, tuple[str, str, int]]]] = defaultdict(list)
    for key, rows in pairs.items():
        kinds[key[0], rows[0].task, status(rows)].append((digest("example", key[1], key[2]), key))
    ranked = sorted((rank, *item) for kind in kinds.values() for rank, item in enumerate(sorted(kind)))
    stages = list(judgments)
    chosen = sorted(ranked[:limit], key=lambda item: (item[1], stages.index(item[2][0])))
    shown: dict[str, list[dict[str, Any]]] = {}
    cards = []
    for _, _, key in chosen:
        stage, name, _ = key
        if name not in records:
            raise RecordError(f"record {name!r} is judged in {stage!r} but not among the records; add it")
        if name not in shown:
            shown[name] = _shown_media(records[name], sampling)
        cards.append(_example(stage, stages.index(stage), records[name], shown[name], pairs[key]))
    return cards


def status(rows: Sequence[Judgment]) -> str:
    """Return the key of STATUSES for the judgments of one pair."""
    rights = {row.correct for row in rows}
    return "unlabelled" if None in rights else "mixed" if len(rights) > 1 else "right" if True in rights else "wrong"


def pair_card(record: PreferenceRecord, rows: Sequence[Judgment], sampling: FrameSampling) -> dict[str, Any]:
    """Return a pair with its media and the given verdicts in their order, as the macros of parts.html take it."""
    return _card(record, _shown_media(record, sampling), rows)


def _example(
    stage: str, index: int, record: PreferenceRecord, media: list[dict[str, Any]], rows: Sequence[Judgment]
) -> dict[str, Any]:
    card = _card(record, media, sorted(rows, key=lambda row: row.order))
    return {"stage": stage, "colour": index % COLOURS, "status": status(rows), **card}


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
        "winner": {1: "A", 2: "B", None: None}[row.candidate],
        "right": row.correct,
        "think": think + closed,
        "answer": answer.strip() if closed else text,
        "scores": [(each.name, *as_stored(each.scores, row.order)) for each in row.verdict.dimensions],
        "totals": row.verdict.totals and as_stored(row.verdict.totals, row.order),
        "problems": row.verdict.problems,
        "error": row.error,
        "cut": row.finish_reason == "length",
    }


def _shown_media(record: PreferenceRecord, sampling: FrameSampling) -> list[dict[str, Any]]:
    """Return the thumbnails of each media entry; an entry that cannot be opened says why in their place."""
    kind = TASKS[record.task].media_kind
    entries: list[dict[str, Any]] = []
    for paths in record.media:
        try:
            entries.append({"images": [_thumbnail(file) for file in image_paths(paths, kind, sampling)], "error": ""})
        except MediaError as error:
            entries.append({"images": [], "error": str(error)})
    return entries


def _thumbnail(file: Path) -> dict[str, Any]:
    image = open_image(file)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    small = max(image.size) <= 96  # drawings keep their pixels, photographs become JPEG
    buffer = io.BytesIO()
    image.save(buffer, format="PNG" if small else "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"uri": f"data:image/{'png' if small else 'jpeg'};base64,{data}", "small": small}
