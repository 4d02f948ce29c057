"""Records in, judgments out: resumable, in a fixed order, one JSON line each.

    python -m unifiedreward_think.evaluation --help       # judges a file of records and reports
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from unifiedreward_think.backends import Backend, Completion, Sampling
from unifiedreward_think.data.rows import prompt_row
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.records import ORDERS, Judgment, Order, PreferenceRecord, digest, order_shown, read_json_lines
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import Style, parse

Key = tuple[str, str, int]  # record id, order, sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How records are judged.

    Attributes:
        prompts: task -> template (`tasks.load_prompts`).
        style: "cot" or "direct"; what the strict parser expects.
        sampling: how completions are drawn.
        samples: completions for each record and order.
        orders: "one" shows each pair once, in the order of `order_seed`; "both" shows it in both.
        order_seed: decides the order shown.
        frames: how videos become frames.
    """

    prompts: Mapping[str, str]
    style: Style
    sampling: Sampling
    frames: FrameSampling
    samples: int = 1
    orders: Literal["one", "both"] = "one"
    order_seed: int = 0


def judge(
    records: Sequence[PreferenceRecord], backend: Backend, protocol: Protocol, output: Path, *, label: str = "judging"
) -> list[Judgment]:
    """Judge records, appending to `output`, and return all judgments in the order of the records.

    What `output` already holds is not judged again, so a killed run loses at most the batch in flight.

    Raises:
        RecordError: `output` holds a broken line that is not its last one.
    """
    done = load_judgments(output)
    work = [(record, order) for record in records for order in _orders(record, protocol)]
    missing = [item for item in work if any(key not in done for key in _keys(*item, protocol))]
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as file, tqdm(
        total=len(work), initial=len(work) - len(missing), desc=label, unit="pair", disable=None
    ) as bar:
        for start in range(0, len(missing), backend.batch_size):
            batch = missing[start : start + backend.batch_size]
            rows = [row for row in _judge_batch(batch, backend, protocol) if _key(row) not in done]
            file.write("".join(json.dumps(row.to_json()) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
            done.update({_key(row): row for row in rows})
            bar.update(len(batch))
    return [done[key] for item in work for key in _keys(*item, protocol)]


def load_judgments(path: Path) -> dict[Key, Judgment]:
    """Read judgments by (record id, order, sample); a last line cut by a kill is removed from the file."""
    if not path.exists():
        return {}
    _drop_cut_line(path)
    rows = (Judgment.from_json(row) for _, row in read_json_lines(path))
    return {_key(row): row for row in rows}


def _judge_batch(
    batch: Sequence[tuple[PreferenceRecord, Order]], backend: Backend, protocol: Protocol
) -> Iterator[Judgment]:
    started = time.perf_counter()
    prompts = [prompt_row(record, order, protocol.prompts, protocol.frames) for record, order in batch]
    seeds = [[digest(protocol.sampling.seed, *key) for key in _keys(record, order, protocol)] for record, order in batch]
    answers = backend.complete(prompts, sampling=protocol.sampling, seeds=seeds)
    seconds = (time.perf_counter() - started) / (len(batch) * protocol.samples)
    for (record, order), completions in zip(batch, answers, strict=True):
        for sample, completion in enumerate(completions):
            yield _judgment(record, order, sample, completion, backend, protocol, seconds)


def _judgment(
    record: PreferenceRecord,
    order: Order,
    sample: int,
    completion: Completion,
    backend: Backend,
    protocol: Protocol,
    seconds: float,
) -> Judgment:
    return Judgment(
        record_id=record.id,
        order=order,
        sample=sample,
        completion=completion.text,
        finish_reason=completion.finish_reason,
        verdict=parse(completion.text, TASKS[record.task].noun, style=protocol.style),
        preferred=record.preferred,
        task=record.task,
        source=record.source,
        group=record.group,
        model=backend.model,
        sampling=asdict(protocol.sampling),
        decoder=protocol.frames.decoder if TASKS[record.task].media_kind == "video" else "",
        seconds=round(seconds, 4),
    )


def _orders(record: PreferenceRecord, protocol: Protocol) -> tuple[Order, ...]:
    if protocol.orders == "both" and record.swappable:
        return ORDERS
    return (order_shown(record, protocol.order_seed),)


def _keys(record: PreferenceRecord, order: Order, protocol: Protocol) -> list[Key]:
    return [(record.id, order, sample) for sample in range(protocol.samples)]


def _key(row: Judgment) -> Key:
    return row.record_id, row.order, row.sample


def _drop_cut_line(path: Path) -> None:
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(data.rfind(b"\n") + 1)
