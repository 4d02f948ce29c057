"""Progress of long work, with the time left: a bar on a terminal, plain lines where the output is no terminal.

>>> [item.upper() for item in track("ab", "shouting")]
['A', 'B']
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, TypeVar

Item = TypeVar("Item")

LINE_EVERY = 15.0  # seconds between plain lines; work that takes less shows none


@contextmanager
def progress(
    total: int, label: str, *, unit: str = "item", done: int = 0, file: TextIO | None = None
) -> Iterator[Callable[[int], object]]:
    """Yield a function that takes how many items were finished since its last call.

    Args:
        total: of all items, those that were done before included.
        label: what is being done.
        unit: one item, in the singular.
        done: items that an earlier run has finished; they do not count for the speed.
        file: where to show it; stderr by default.
    """
    out = file or sys.stderr
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


def clock(seconds: float) -> str:
    """Return a duration as a clock shows it.

    >>> clock(75.2), clock(3675)
    ('01:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
