"""Batch preparation: bucket records by length, build their prompts, open their pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from unifiedreward_think.backends import Failure, Video
from unifiedreward_think.data.rows import prompt_row
from unifiedreward_think.errors import MediaError
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.media import Clip, open_image
from unifiedreward_think.order import Order
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.tasks import TASKS

if TYPE_CHECKING:
    from PIL.Image import Image

Item = tuple[PreferenceRecord, Order]
Prompt = dict[str, Any] | Failure
T = TypeVar("T")
U = TypeVar("U")
WINDOW = 16  # batches


def cut_batches(work: Sequence[Item], size: int, frames: int) -> list[list[Item]]:
    """Cut the work into batches of items of about the same length, as a batch is padded to its longest prompt.

    Items are sorted by estimated length, pictures first, then characters, WINDOW batches at a time, so that the file
    grows about in the order of the records.
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


def open_items(
    items: Sequence[Item],
    config: JudgingConfig,
    pictures: dict[str, Image],
    opener: Callable[[str], Image] | None = None,
) -> list[tuple[Item, Prompt]]:
    """Return each item with its prompt, pictures opened, or with the reason why they cannot be.

    Args:
        items: what is judged.
        config: how.
        pictures: those of the item before: both orders of a pair share them, and so may its neighbours.
        opener: opens a picture; `media.open_image` where there is none.
    """
    opened: list[tuple[Item, Prompt]] = []
    for item in items:
        try:
            row = prompt_row(*item, config.prompts, config.frames, form=config.form, native_video=config.native_video)
            clips: list[Clip] = row.pop("clips", [])
            names = [*row["images"], *(str(path) for clip in clips for path in clip.frames)]
            images = {path: pictures.get(path) or (opener or open_image)(path) for path in dict.fromkeys(names)}
        except MediaError as error:
            opened.append((item, Failure(str(error))))
            continue
        pictures.clear()
        pictures.update(images)
        row["images"] = [images[path] for path in row["images"]]
        videos = [Video(clip, [images[str(path)] for path in clip.frames]) for clip in clips]
        opened.append((item, {**row, "order": item[1], **({"videos": videos} if videos else {})}))
    return opened
