"""Progress of long work, with the time left: a bar on a terminal, plain lines where the output is no terminal.

>>> [item.upper() for item in track("ab", "shouting")]
['A', 'B']
>>> list(in_threads(str.upper, ["a", "b"], "shouting"))
['A', 'B']
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from unifiedreward_think.terminal import error_stream

Item = TypeVar("Item")
Made = TypeVar("Made")

LINE_EVERY = 15.0  # seconds between plain lines; work that takes less shows none
MOST_THREADS = 16
WINDOW = 4096  # items


@contextmanager
def progress(total: int, label: str, *, unit: str = "item", done: int = 0) -> Iterator[Callable[[int], object]]:
    """Yield a function that takes how many items were finished since its last call; it shows them on stderr.

    Args:
        total: of all items, those that were done before included.
        label: what is being done.
        unit: one item, in the singular.
        done: items that an earlier run has finished; they do not count for the speed.
    """
    out = error_stream()
    if out.isatty():
        from tqdm import tqdm

        with tqdm(total=total, initial=done, desc=label, unit=unit, file=out) as bar:
            yield bar.update
        return
    count, started = done, time.monotonic()
    shown = started

    def advance(items: int) -> None:
        nonlocal count, shown
        count += items
        now = time.monotonic()
        if now - shown >= LINE_EVERY and done < count < total:
            left = (now - started) / (count - done) * (total - count)
            print(f"{label}: {count}/{total} {unit}s, {clock(left)} left", file=out, flush=True)
            shown = now

    yield advance
    if (took := time.monotonic() - started) >= LINE_EVERY:
        print(f"{label}: {count}/{total} {unit}s, took {clock(took)}", file=out, flush=True)


def track(items: Sequence[Item], label: str, *, unit: str = "item") -> Iterator[Item]:
    """Yield the items, showing how far the caller has come."""
    with progress(len(items), label, unit=unit) as advance:
        for item in items:
            yield item
            advance(1)


def in_threads(
    work: Callable[[Item], Made], items: Sequence[Item], label: str, *, unit: str = "item"
) -> Iterator[Made]:
    """Yield what `work` makes of each item, in their order, several at a time; for work that releases Python's lock."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = ThreadPoolExecutor(max(1, min(MOST_THREADS, (os.cpu_count() or 1) // ranks)))
    try:
        with progress(len(items), label, unit=unit) as advance:
            for start in range(0, len(items), WINDOW):  # a million tasks at once would take a gigabyte
                for made in threads.map(work, items[start : start + WINDOW]):
                    advance(1)
                    yield made
    finally:
        threads.shutdown(cancel_futures=True)


def clock(seconds: float) -> str:
    """Return a duration as a clock shows it.

    >>> clock(75.2), clock(3675)
    ('01:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
