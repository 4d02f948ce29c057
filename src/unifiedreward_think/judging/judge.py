"""Records in, judgments out: resumable, in a fixed order, one JSON line each.

Judge a file of records, and report:
    python -m unifiedreward_think.evaluation --help
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.backends import Backend, BackendError, Completion, Failure
from unifiedreward_think.judging.protocol import Item, Prompt, Protocol, cut_batches, look_ahead, open_items
from unifiedreward_think.judging.ranks import ALONE, Ranks
from unifiedreward_think.judging.store import Key, key_of, load_judgments, merge_parts, part_of, resume
from unifiedreward_think.order import ORDERS, Order
from unifiedreward_think.progress import progress
from unifiedreward_think.prompting import build_parts
from unifiedreward_think.records import Judgment, PreferenceRecord, digest, json_lines, order_shown
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import Style, Verdict, parse
from unifiedreward_think.writing import append, open_to_append, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

Batch = Sequence[tuple[Item, Prompt]]


def judge(
    records: Sequence[PreferenceRecord],
    backend: Backend,
    protocol: Protocol,
    output: Path,
    *,
    label: str = "judging",
    ranks: Ranks = ALONE,
    config: str = "",
) -> list[Judgment]:
    """Judge records, appending to `output`, and return all judgments in the order of the records.

    What `output` already holds is not judged again, so a killed run loses at most the batch in flight. An item whose
    media cannot be opened, or for which the backend fails, becomes a judgment with an `error`; the next run tries it
    again. At the end `output` is in the order of the records, too.

    Several ranks share the pairs. Each appends to a file of its own, `output` with the ending .rankN; these become one
    with `output` at the end, or in the next run, which may have another number of ranks. All ranks must see the same
    folder.

    Args:
        records: what to judge.
        backend: where completions come from.
        protocol: how they are asked for.
        output: file of judgments.
        label: of the progress line.
        ranks: which process this is, of how many.
        config: what config.yaml beside `output` says, from the start: a killed run has it, a refused one keeps that
            of the run before.

    Raises:
        RecordError: no prompt fits a record, or `output` holds a broken line or judgments made with other settings.
        BackendError: the backend cannot take videos as the protocol shows them.
        OutputError: `output` cannot be written; what was judged before stays in it. Or other ranks wrote elsewhere.
    """
    if protocol.native_video and not getattr(backend, "native_video", ""):
        name = type(backend).__name__
        raise BackendError(f"{name} with {backend.model} takes no native video; leave --native-video out")
    work = [(record, order) for record in records for order in _orders(record, protocol)]
    for record, order in work:
        build_parts(record, order=order, prompts=protocol.prompts)  # a missing template shows now, not after hours
    settings = _settings(backend, protocol)
    keys = [key for item in work for key in _keys(item, protocol)]
    done = _on_first(ranks, output, lambda: resume(output, set(keys), settings))
    # Cut from all items, also on a resume: a backend that answers batch by batch shows an item the same neighbours.
    batches = ranks.share(cut_batches(work, backend.batch_size, protocol.frames.frames))
    missing = [[item for item in batch if not done.keys() >= set(_keys(item, protocol))] for batch in batches]
    with open_to_append(part_of(output, ranks)) as file, _shown(batches, missing, label, ranks) as advance:
        if config and ranks.rank == 0:
            write_whole(output.with_name("config.yaml"), config)
        pictures: dict[str, Image] = {}  # of the last item
        opened = look_ahead(filter(None, missing), lambda items: open_items(items, protocol, pictures))
        refilled = hasattr(backend, "complete_each")
        for judged in (_judge_refilled if refilled else _judge_batches)(opened, backend, protocol, settings):
            new = {key: row for row in judged if (key := key_of(row)) not in done}
            append(file, json_lines(new.values()))
            done |= new
            advance(len(judged) // protocol.samples)
    ranks.wait()
    done = _on_first(ranks, output, lambda: merge_parts(output, keys, done))
    return [done[key] for key in keys]


def judge_item(record: PreferenceRecord, order: Order, backend: Backend, protocol: Protocol) -> list[Judgment]:
    """Judge one record in one order, without a file: the rows that `judge` would write, a sample each.

    Raises:
        RecordError: no prompt fits the record, or it cannot be shown in this order.
    """
    opened = open_items([(record, order)], protocol, {})
    return _judge_batch(opened, backend, protocol, _settings(backend, protocol))


def _on_first(ranks: Ranks, output: Path, work: Callable[[], dict[Key, Judgment]]) -> dict[Key, Judgment]:
    """Let rank 0 put `output` in order, and return its judgments on all ranks."""
    done = work() if ranks.rank == 0 else {}
    ranks.wait()
    return load_judgments(output) if ranks.rank and output.exists() else done


def _shown(
    batches: Sequence[Sequence[Item]], missing: Sequence[Sequence[Item]], label: str, ranks: Ranks
) -> AbstractContextManager[Callable[[int], object]]:
    """Show progress, on rank 0 alone: the shares are alike."""
    if ranks.rank:
        return nullcontext(lambda _: None)
    total = sum(map(len, batches))
    return progress(total, label, unit="pair", done=total - sum(map(len, missing)))


def _settings(backend: Backend, protocol: Protocol) -> dict[str, Any]:
    """Return everything that decides a judgment besides the record, order and sample number."""
    return {
        "model": backend.model,
        "decoder": protocol.frames.decoder,
        **asdict(protocol.sampling),
        "style": protocol.style,
        "prompts": f"{digest(*sorted(protocol.prompts.items())):016x}",
        "frames": protocol.frames.frames,
        **_native_settings(backend, protocol),
        **backend.settings,
    }


def _native_settings(backend: Backend, protocol: Protocol) -> dict[str, Any]:
    """Return what native video adds to the settings: nothing where it is off, as in files from before it was there."""
    if not protocol.native_video:
        return {}
    samples = getattr(backend, "native_video", "") == "file"
    return {"native_video": True, **({"decoder": "server"} if samples else {})}


def _judge_batches(
    opened: Iterable[Batch], backend: Backend, protocol: Protocol, settings: Mapping[str, Any]
) -> Iterator[list[Judgment]]:
    """Yield the judgments of one batch after another."""
    for batch in opened:
        yield _judge_batch(batch, backend, protocol, settings)


def _judge_refilled(
    opened: Iterable[Batch], backend: Any, protocol: Protocol, settings: Mapping[str, Any]
) -> Iterator[list[Judgment]]:
    """Yield the judgments of items as they are done, from a backend that takes the next item when it has room."""
    asked: list[Item] = []
    failed: list[tuple[Item, list[Failure]]] = []

    def prompts() -> Iterator[tuple[dict[str, Any], list[int]]]:
        for item, prompt in chain.from_iterable(opened):
            if isinstance(prompt, Failure):
                failed.append((item, [prompt] * protocol.samples))
            else:
                asked.append(item)
                yield prompt, _seeds(item, protocol)

    started = time.perf_counter()
    for done in backend.complete_each(prompts(), sampling=protocol.sampling, samples=protocol.samples):
        now = time.perf_counter()
        seconds, started = (now - started) / (len(done) * protocol.samples), now
        answered = [*failed, *((asked[number], answers) for number, answers in done)]
        failed.clear()
        yield _rows(answered, settings, seconds)
    yield _rows(failed, settings, 0.0)


def _judge_batch(batch: Batch, backend: Backend, protocol: Protocol, settings: Mapping[str, Any]) -> list[Judgment]:
    good = [(item, prompt) for item, prompt in batch if not isinstance(prompt, Failure)]
    seeds = [_seeds(item, protocol) for item, _ in good]
    started = time.perf_counter()
    answers = backend.complete([row for _, row in good], sampling=protocol.sampling, seeds=seeds) if good else []
    seconds = (time.perf_counter() - started) / max(1, len(good) * protocol.samples)
    said = iter(answers)
    answered = [(item, [p] * protocol.samples if isinstance(p, Failure) else next(said)) for item, p in batch]
    return _rows(answered, settings, seconds)


def _seeds(item: Item, protocol: Protocol) -> list[int]:
    return [digest(protocol.sampling.seed, *key) for key in _keys(item, protocol)]


def _rows(
    answered: Iterable[tuple[Item, Sequence[Completion | Failure]]], settings: Mapping[str, Any], seconds: float
) -> list[Judgment]:
    return [
        _judgment(item, sample, answer, settings, seconds)
        for item, answers in answered
        for sample, answer in enumerate(answers)
    ]


def judgment(
    record: PreferenceRecord, order: Order, answer: Completion | Failure, *, style: Style, **made: Any
) -> Judgment:
    """Return the judgment that an answer is: parsed, or failed with its reason.

    Args:
        record: what was judged.
        order: the order it was shown in.
        answer: what the backend gave for it.
        style: what the strict parser expects.
        made: how the answer came about; fields of the judgment, such as `model`.
    """
    if isinstance(answer, Failure):
        said: dict[str, Any] = {"completion": None, "error": answer.reason}
        verdict = Verdict(winner=None, strict=False, problems=("not judged",))
    else:
        said = {"completion": answer.text, "finish_reason": answer.finish_reason}
        verdict = parse(answer.text, TASKS[record.task].noun, style=style)
    return Judgment(
        record_id=record.id,
        order=order,
        verdict=verdict,
        preferred=record.preferred,
        task=record.task,
        source=record.source,
        group=record.group,
        **said,
        **made,
    )


def _judgment(
    item: Item, sample: int, answer: Completion | Failure, settings: Mapping[str, Any], seconds: float
) -> Judgment:
    record, order = item
    took = 0.0 if isinstance(answer, Failure) else seconds if answer.seconds is None else answer.seconds
    return judgment(
        record,
        order,
        answer,
        style=settings["style"],
        sample=sample,
        model=settings["model"],
        sampling={key: value for key, value in settings.items() if key not in ("model", "decoder")},
        decoder=settings["decoder"] if TASKS[record.task].media_kind == "video" else "",
        seconds=round(took, 4),
    )


def _orders(record: PreferenceRecord, protocol: Protocol) -> tuple[Order, ...]:
    if protocol.orders == "both" and record.swappable:
        return ORDERS
    return (order_shown(record, protocol.order_seed),)


def _keys(item: Item, protocol: Protocol) -> list[Key]:
    record, order = item
    return [(record.id, order, sample) for sample in range(protocol.samples)]
