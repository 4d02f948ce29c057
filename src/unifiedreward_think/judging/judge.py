"""Records in, judgments out: resumable, in a fixed order, one JSON line each.

Judge a file of records, and report:
    python -m unifiedreward_think.evaluation --help
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.backends import Backend, Completion, Failure, RefillingBackend, VideoBackend
from unifiedreward_think.data.rows import shown_orders
from unifiedreward_think.expectation import expect
from unifiedreward_think.in_use import LOCK, holding
from unifiedreward_think.interrupts import kept
from unifiedreward_think.judging.content import content_of
from unifiedreward_think.judging.prepare import Item, Prompt, cut_batches, look_ahead, open_items
from unifiedreward_think.judging.ranks import ALONE, Ranks
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.judging.store import Key, key_of, load_judgments, merge_parts, part_of, resume
from unifiedreward_think.order import Order
from unifiedreward_think.progress import progress
from unifiedreward_think.records import Judgment, PreferenceRecord, digest
from unifiedreward_think.reply_formats.formats import OWN
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import Verdict
from unifiedreward_think.writing import append, open_to_append, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

Batch = Sequence[tuple[Item, Prompt]]


def judge(
    records: Sequence[PreferenceRecord],
    backend: Backend,
    config: JudgingConfig,
    output: Path,
    *,
    label: str = "judging",
    ranks: Ranks = ALONE,
    config_yaml: str = "",
) -> list[Judgment]:
    """Judge records, appending to `output`, and return all judgments in the order of the records.

    What `output` already holds is not judged again unless the record has changed; labels are today's. A killed run
    loses at most the batch in flight. An item whose media cannot be opened, or for which the backend fails, becomes a
    judgment with an `error`; the next run tries it again. At the end `output` is in the order of the records, too.

    Several ranks, which must see the same folder, share the pairs. Each appends to a file of its own, `output` with the
    ending .rankN; these become one with it at the end, or in the next run, which may have another number of ranks.

    Args:
        records: what to judge.
        backend: where completions come from.
        config: how they are asked for.
        output: file of judgments.
        label: of the progress line.
        ranks: which process this is, of how many.
        config_yaml: what config.yaml beside `output` says, from the start: a killed run has it, a refused one keeps
            that of the run before.

    Raises:
        RecordError: no prompt fits a record, or `output` holds a broken line or judgments made with other settings.
        BackendError: the backend cannot take videos as the config shows them.
        InputError: another live run writes into `output`.
        OutputError: `output` cannot be written; what was judged before stays in it. Or other ranks wrote elsewhere.
    """
    work = [(record, order) for record in records for order in orders_of(record, config)]
    _check(work, backend, config)
    settings = _settings(backend, config)
    keys = [key for item in work for key in _keys(item, config)]
    with kept(lambda: f"what was judged is in {output}; the same command goes on after it"), ExitStack() as held:

        def begin() -> dict[Key, Judgment]:
            held.enter_context(holding(output.with_name(f"{output.name}{LOCK}")))
            return resume(output, set(keys), settings, records)

        done = _on_first(ranks, output, begin)
        # Cut from all items, also on a resume: a backend that answers batch by batch shows an item the same neighbours.
        batches = ranks.share(cut_batches(work, backend.batch_size, config.frames.frames))
        missing = [[item for item in batch if not done.keys() >= set(_keys(item, config))] for batch in batches]
        with open_to_append(part_of(output, ranks)) as file, _shown(batches, missing, label, ranks) as advance:
            if config_yaml and ranks.rank == 0:
                write_whole(output.with_name("config.yaml"), config_yaml)
            for judged in _judge_all(missing, backend, config, settings):
                new = {key: row for row in judged if (key := key_of(row)) not in done}
                append(file, json_lines(new.values()))
                done |= new
                advance(len(judged) // config.samples)
        ranks.wait()
        done = _on_first(ranks, output, lambda: merge_parts(output, keys, done))
    return [done[key] for key in keys]


def judge_item(
    record: PreferenceRecord,
    order: Order,
    backend: Backend,
    config: JudgingConfig,
    opener: Callable[[str], Image] | None = None,
) -> list[Judgment]:
    """Judge one record in one order, without a file: the rows that `judge` would write, a sample each.

    Args:
        record: what is judged.
        order: in which it is shown.
        backend: where completions come from.
        config: how they are asked for.
        opener: opens its pictures: `bounded.open_bounded` those of strangers.

    Raises:
        RecordError: no prompt fits the record, or it cannot be shown in this order.
    """
    opened = open_items([(record, order)], config, {}, opener)
    return _judge_batch(opened, backend, config, _settings(backend, config))


def orders_of(record: PreferenceRecord, config: JudgingConfig) -> tuple[Order, ...]:
    """Return the orders in which a record is judged."""
    return shown_orders(record, config.orders, config.order_seed, config.form)


def _check(work: Iterable[Item], backend: Backend, config: JudgingConfig) -> None:
    """Refuse now what would fail after hours: what the backend does not take or tell, a missing template."""
    config.check(backend)
    for record, order in work:
        config.check_task(record)
        config.form.render(record, order=order, prompts=config.prompts)


def _on_first(ranks: Ranks, output: Path, work: Callable[[], dict[Key, Judgment]]) -> dict[Key, Judgment]:
    """Let rank 0 put `output` in order, and return its judgments on all ranks; where it cannot, all end."""
    with ranks.together():
        done = work() if ranks.rank == 0 else {}
    return load_judgments(output) if ranks.rank and output.exists() else done


def _shown(
    batches: Sequence[Sequence[Item]], missing: Sequence[Sequence[Item]], label: str, ranks: Ranks
) -> AbstractContextManager[Callable[[int], object]]:
    """Show progress, on rank 0 alone: the shares are alike."""
    if ranks.rank:
        return nullcontext(lambda _: None)
    total = sum(map(len, batches))
    return progress(total, label, unit="pair", done=total - sum(map(len, missing)))


def _settings(backend: Backend, config: JudgingConfig) -> dict[str, Any]:
    """Return everything that decides a judgment besides the record, order and sample number."""
    native = backend.native_video if config.native_video and isinstance(backend, VideoBackend) else ""
    return {
        "model": backend.model,
        "decoder": config.frames.decoder,
        **asdict(config.sampling),
        "form": config.form.name,
        "style": config.style,
        "prompts": f"{digest(*sorted(config.prompts.items())):016x}",
        "frames": config.frames.frames,
        # Nothing where it is off, as in files from before it was there.
        **({"native_video": True} if native else {}),
        **({"reply_format": config.reply_format} if config.reply_format != OWN else {}),
        **({"decoder": "server"} if native == "file" else {}),
        **({"expectation": True} if config.expectation else {}),
        **backend.settings,
    }


def _judge_all(
    batches: Iterable[Sequence[Item]], backend: Backend, config: JudgingConfig, settings: Mapping[str, Any]
) -> Iterator[list[Judgment]]:
    """Yield the judgments of all items as they come; the pictures of what is next are opened meanwhile."""
    pictures: dict[str, Image] = {}  # of the last item
    opened = look_ahead(filter(None, batches), lambda items: open_items(items, config, pictures))
    if isinstance(backend, RefillingBackend):
        yield from _judge_refilled(opened, backend, config, settings)
    for batch in opened:
        yield _judge_batch(batch, backend, config, settings)


def _judge_refilled(
    opened: Iterable[Batch], backend: Any, config: JudgingConfig, settings: Mapping[str, Any]
) -> Iterator[list[Judgment]]:
    """Yield the judgments of items as they are done, from a backend that takes the next item when it has room."""
    sent: list[Item] = []
    failed: list[tuple[Item, list[Failure]]] = []

    def prompts() -> Iterator[tuple[dict[str, Any], list[int]]]:
        for item, prompt in chain.from_iterable(opened):
            if isinstance(prompt, Failure):
                failed.append((item, [prompt] * config.samples))
            else:
                sent.append(item)
                yield prompt, _seeds(item, config)

    started = time.perf_counter()
    for done in backend.complete_each(prompts(), sampling=config.sampling, samples=config.samples):
        now = time.perf_counter()
        seconds, started = (now - started) / (len(done) * config.samples), now
        answered = [*failed, *((sent[number], answers) for number, answers in done)]
        failed.clear()
        yield _rows(answered, config, settings, seconds)
    yield _rows(failed, config, settings, 0.0)


def _judge_batch(batch: Batch, backend: Backend, config: JudgingConfig, settings: Mapping[str, Any]) -> list[Judgment]:
    good = [(item, prompt) for item, prompt in batch if not isinstance(prompt, Failure)]
    seeds = [_seeds(item, config) for item, _ in good]
    started = time.perf_counter()
    answers = backend.complete([row for _, row in good], sampling=config.sampling, seeds=seeds) if good else []
    seconds = (time.perf_counter() - started) / max(1, len(good) * config.samples)
    answers_left = iter(answers)
    answered = [(item, [p] * config.samples if isinstance(p, Failure) else next(answers_left)) for item, p in batch]
    return _rows(answered, config, settings, seconds)


def _seeds(item: Item, config: JudgingConfig) -> list[int]:
    return [digest(config.sampling.seed, *key) for key in _keys(item, config)]


def _rows(
    answered: Iterable[tuple[Item, Sequence[Completion | Failure]]],
    config: JudgingConfig,
    settings: Mapping[str, Any],
    seconds: float,
) -> list[Judgment]:
    return [
        _judgment(item, sample, answer, config, settings, seconds)
        for item, answers in answered
        for sample, answer in enumerate(answers)
    ]


def judgment(
    record: PreferenceRecord, order: Order, answer: Completion | Failure, config: JudgingConfig, **made: Any
) -> Judgment:
    """Return the judgment that an answer is: parsed, or failed with its reason.

    Args:
        record: what was judged.
        order: the order it was shown in.
        answer: what the backend gave for it.
        config: how it was asked; its form reads the answer.
        made: how the answer came about; fields of the judgment, such as `model`.
    """
    if isinstance(answer, Failure):
        outcome: dict[str, Any] = {"completion": None, "error": answer.reason}
        verdict = Verdict(winner=None, strict=False, problems=("not judged",))
    else:
        outcome = {"completion": answer.text, "finish_reason": answer.finish_reason}
        if config.expectation:
            outcome["expectation"] = expect(answer.numbers)
        verdict = config.read(answer.text, record.task)
    return Judgment(
        record_id=record.id,
        order=order,
        form=config.form.name,
        verdict=verdict,
        task=record.task,
        **outcome,
        **made,
    ).labelled(record)


def _judgment(
    item: Item,
    sample: int,
    answer: Completion | Failure,
    config: JudgingConfig,
    settings: Mapping[str, Any],
    seconds: float,
) -> Judgment:
    record, order = item
    took = 0.0 if isinstance(answer, Failure) else seconds if answer.seconds is None else answer.seconds
    return judgment(
        record,
        order,
        answer,
        config,
        sample=sample,
        model=settings["model"],
        settings={key: value for key, value in settings.items() if key not in ("model", "decoder", "form")},
        decoder=settings["decoder"] if TASKS[record.task].media_kind == "video" else "",
        seconds=round(took, 4),
        content="" if isinstance(answer, Failure) else content_of(record),
    )


def _keys(item: Item, config: JudgingConfig) -> list[Key]:
    record, order = item
    return [(record.id, order, sample) for sample in range(config.samples)]
