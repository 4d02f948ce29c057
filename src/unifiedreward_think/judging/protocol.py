"""How records are judged: the protocol, and what of it a backend is asked, batch by batch, with the pictures open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from unifiedreward_think.backends import Failure, Video
from unifiedreward_think.data.rows import prompt_row
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.media import Clip, FrameSampling, MediaError, native_clip, open_image
from unifiedreward_think.order import Order
from unifiedreward_think.prompting import build_parts
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import Style

if TYPE_CHECKING:
    from PIL.Image import Image

Item = tuple[PreferenceRecord, Order]
Prompt = dict[str, Any] | Failure
T = TypeVar("T")
U = TypeVar("U")
WINDOW = 16  # batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How records are judged.

    Attributes:
        prompts: task -> template (`prompting.load_prompts`).
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


def cut_batches(work: Sequence[Item], size: int, frames: int) -> list[list[Item]]:
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


def look_ahead(batches: Iterable[T], prepare: Callable[[T], U]) -> Iterator[U]:
    """Yield what `prepare` makes of each batch, preparing the next one in a thread meanwhile: the model never waits.

    >>> list(look_ahead([[1, 2], [3]], sum))
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


def open_items(items: Sequence[Item], protocol: Protocol, pictures: dict[str, Image]) -> list[tuple[Item, Prompt]]:
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
