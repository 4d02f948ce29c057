"""Records in, judgments out: resumable, in a fixed order, one JSON line each.

    python -m unifiedreward_think.evaluation --help       # judges a file of records and reports

A judgment holds everything that decided it (model, sampling, prompts, frames). A file of judgments made with other
settings is refused, so that two experiments are never mixed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import FileIO
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from unifiedreward_think.backends import Backend, BackendError, Completion, Failure, Sampling, Video
from unifiedreward_think.data.rows import prompt_row
from unifiedreward_think.media import Clip, FrameSampling, MediaError, native_clip, open_image
from unifiedreward_think.progress import progress
from unifiedreward_think.records import (
    ORDERS,
    InputError,
    Judgment,
    Order,
    PreferenceRecord,
    RecordError,
    digest,
    order_shown,
    read_json_lines,
)
from unifiedreward_think.tasks import TASKS, build_parts
from unifiedreward_think.verdict import Style, Verdict, parse

if TYPE_CHECKING:
    from PIL.Image import Image

Key = tuple[str, str, int]  # record id, order, sample
Item = tuple[PreferenceRecord, Order]
Prompt = dict[str, Any] | Failure
Batch = Sequence[tuple[Item, Prompt]]
T = TypeVar("T")
U = TypeVar("U")
WINDOW = 16  # batches
_MEND = "what was judged before stays stored: mend that, and the same command goes on from there"


class OutputError(InputError):
    """A result that cannot be written, on a full disk for example."""


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
        native_video: show a video as a video, for released checkpoints that were trained so; by default its frames
            are shown as pictures, as in training here.
    """

    prompts: Mapping[str, str]
    style: Style
    sampling: Sampling
    frames: FrameSampling
    samples: int = 1
    orders: Literal["one", "both"] = "one"
    order_seed: int = 0
    native_video: bool = False


def judge(
    records: Sequence[PreferenceRecord],
    backend: Backend,
    protocol: Protocol,
    output: Path,
    *,
    label: str = "judging",
    config: str = "",
) -> list[Judgment]:
    """Judge records, appending to `output`, and return all judgments in the order of the records.

    What `output` already holds is not judged again, so a killed run loses at most the batch in flight. An item whose
    media cannot be opened, or for which the backend fails, becomes a judgment with an `error`; the next run tries it
    again. At the end `output` is in the order of the records, too.

    Args:
        records: what to judge.
        backend: where completions come from.
        protocol: how they are asked for.
        output: file of judgments.
        label: of the progress line.
        config: what config.yaml beside `output` says, from the start: a killed run has it, a refused one keeps that
            of the run before.

    Raises:
        RecordError: no prompt fits a record, or `output` holds a broken line or judgments made with other settings.
        BackendError: the backend cannot take videos as the protocol shows them.
        OutputError: `output` cannot be written; what was judged before stays in it.
    """
    if protocol.native_video and not getattr(backend, "native_video", ""):
        name = type(backend).__name__
        raise BackendError(f"{name} with {backend.model} takes no native video; leave --native-video out")
    work = [(record, order) for record in records for order in _orders(record, protocol)]
    for record, order in work:
        build_parts(record, order=order, prompts=protocol.prompts)  # a missing template shows now, not after hours
    settings = _settings(backend, protocol)
    done = _resume(output, {key for item in work for key in _keys(item, protocol)}, settings)
    # Batches are cut from all items, also on a resume: the neighbours of an item do not depend on what was done before.
    batches = _batches(work, backend.batch_size, protocol.frames.frames)
    missing = [[item for item in batch if not done.keys() >= set(_keys(item, protocol))] for batch in batches]
    with (
        _opened(output) as file,
        progress(len(work), label, unit="pair", done=len(work) - sum(map(len, missing))) as advance,
    ):
        if config:
            write_whole(output.with_name("config.yaml"), config)
        pictures: dict[str, Image] = {}  # of the last item
        opened = _look_ahead(filter(None, missing), lambda items: _open(items, protocol, pictures))
        refilled = hasattr(backend, "complete_each")
        for judged in (_judge_refilled if refilled else _judge_batches)(opened, backend, protocol, settings):
            new = {key: row for row in judged if (key := _key(row)) not in done}
            _append(file, new.values())
            done |= new
            advance(len(judged) // protocol.samples)
    keys = [key for item in work for key in _keys(item, protocol)]
    if (sorted_keys := list(dict.fromkeys([*keys, *done]))) != list(done):
        write_whole(output, "".join(_line(done[key]) for key in sorted_keys))
    return [done[key] for key in keys]


def judge_item(record: PreferenceRecord, order: Order, backend: Backend, protocol: Protocol) -> list[Judgment]:
    """Judge one record in one order, without a file: the rows that `judge` would write, a sample each.

    Raises:
        RecordError: no prompt fits the record, or it cannot be shown in this order.
    """
    opened = _open([(record, order)], protocol, {})
    return _judge_batch(opened, backend, protocol, _settings(backend, protocol))


def load_judgments(path: Path) -> dict[Key, Judgment]:
    """Read judgments by (record id, order, sample).

    The file is only read. A last line without its line break was cut by a kill, or is just being written: it is left
    out. Of two judgments of the same item the later one counts.

    Raises:
        RecordError: a line is no judgment; the message names file and line.
    """
    whole = path.read_bytes().count(b"\n")
    rows = {}
    for number, row in islice(read_json_lines(path), whole):
        try:
            judgment = Judgment.from_json(row)
        except RecordError as error:
            raise RecordError(f"{path}:{number}: {error}") from error
        rows[_key(judgment)] = judgment
    return rows


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, whenever the run is killed.

    Raises:
        OutputError: it cannot be written; what was there before stays.
    """
    scratch = path.with_name(f"{path.name}.new")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error}); {_MEND}") from error


def _opened(output: Path) -> FileIO:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return output.open("ab", buffering=0)  # a buffer would try to write its rest once more where a write failed
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error}); {_MEND}") from error


def _append(file: FileIO, rows: Iterable[Judgment]) -> None:
    """Add rows to the file, and return when they are on the disk."""
    data = "".join(map(_line, rows)).encode()
    try:
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{file.name}: cannot be written ({error}); {_MEND}") from error


def _resume(path: Path, wanted: set[Key], settings: Mapping[str, Any]) -> dict[Key, Judgment]:
    """Return what is done, and leave just that in the file: no cut line, and no failed item that is tried again."""
    if not path.exists():
        return {}
    rows = load_judgments(path)
    for row in rows.values():
        found = {"model": row.model, "decoder": row.decoder or settings["decoder"], **row.sampling}
        if different := sorted(key for key in found.keys() | settings if found.get(key) != settings.get(key)):
            key = different[0]
            raise RecordError(
                f"{path}: holds judgments made with {key} = {found.get(key)!r}, now it is {settings.get(key)!r}; "
                "choose another output folder, or remove this file to judge again"
            )
    done = {key: row for key, row in rows.items() if not (row.error and key in wanted)}
    text = "".join(map(_line, done.values()))
    if text.encode() != path.read_bytes():
        write_whole(path, text)
    return done


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


def _batches(work: Sequence[Item], size: int, frames: int) -> list[list[Item]]:
    """Cut the work into batches of items of about the same length, as a batch is padded to its longest prompt.

    Lengths are told by the number of pictures, then of letters. Only WINDOW batches are sorted at a time, so that the
    file grows about in the order of the records.
    """

    def length(item: Item) -> tuple[int, int]:
        record, _ = item
        film = TASKS[record.task].media_kind == "video"
        pictures = sum(min(frames, len(entry)) if len(entry) > 1 else frames if film else 1 for entry in record.media)
        return pictures, len(record.prompt) + len(record.instruction) + sum(map(len, record.answers))

    step = WINDOW * size
    windows = (sorted(work[start : start + step], key=length, reverse=True) for start in range(0, len(work), step))
    return [window[start : start + size] for window in windows for start in range(0, len(window), size)]


def _look_ahead(batches: Iterable[T], prepare: Callable[[T], U]) -> Iterator[U]:
    """Yield what `prepare` makes of each batch, preparing the next one in a thread meanwhile: the model never waits.

    >>> list(_look_ahead([[1, 2], [3]], sum))
    [3, 3]
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting: list[Future[U]] = []
        for batch in batches:
            waiting.append(thread.submit(prepare, batch))
            if len(waiting) == 2:
                yield waiting.pop(0).result()
        for last in waiting:
            yield last.result()


def _open(items: Sequence[Item], protocol: Protocol, pictures: dict[str, Image]) -> list[tuple[Item, Prompt]]:
    """Return each item with its prompt, pictures opened, or with the reason why they cannot be.

    `pictures` holds those of the item before: both orders of a pair share them, and so may its neighbours.
    """
    opened: list[tuple[Item, Prompt]] = []
    for item in items:
        try:
            row = _native_row(*item, protocol) if protocol.native_video else None
            row = row or prompt_row(*item, protocol.prompts, protocol.frames)
            clips: list[Clip] = row.pop("clips", [])
            names = [*row["images"], *(str(path) for clip in clips for path in clip.frames)]
            found = {path: pictures.get(path) or open_image(path) for path in dict.fromkeys(names)}
        except MediaError as error:
            opened.append((item, Failure(str(error))))
            continue
        pictures.clear()
        pictures.update(found)
        row["images"] = [found[path] for path in row["images"]]
        videos = [Video(clip, [found[str(path)] for path in clip.frames]) for clip in clips]
        opened.append((item, {**row, "order": item[1], **({"videos": videos} if videos else {})}))
    return opened


def _native_row(record: PreferenceRecord, order: Order, protocol: Protocol) -> dict[str, Any] | None:
    """Return what `prompt_row` does, with a placeholder for each video; None where the record is about pictures."""
    if TASKS[record.task].media_kind != "video":
        return None
    content: list[dict[str, Any]] = []
    clips = []
    for part in build_parts(record, order=order, prompts=protocol.prompts):
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            content.append({"type": "video", "text": None})
            clips.append(native_clip(part.paths, protocol.frames))
    return {"id": record.id, "prompt": [{"role": "user", "content": content}], "images": [], "clips": clips}


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


def _key(row: Judgment) -> Key:
    return row.record_id, row.order, row.sample


def _line(row: Judgment) -> str:
    return json.dumps(row.to_json()) + "\n"
