"""Ctrl-C ends a command in one line that says what is kept and how to go on, with status 130 and no traceback.

    with one_line(note):                                   # around a command: `entry.run_main`
        with kept(lambda: "3 judgments are in j.jsonl"):   # around work that is not lost
            ...

>>> try:
...     with one_line(print), kept(lambda: "3 judgments are in j.jsonl"):
...         raise KeyboardInterrupt
... except SystemExit as stop:
...     stop.code
interrupted: 3 judgments are in j.jsonl
130
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

INTERRUPTED = 130  # what shells report of a command that SIGINT has ended
GO_ON = "run the same command again; it goes on from what is kept, or starts over"
SCRIPTS = ("inference", "benchmark_evaluation", "gradio")  # folders of a checkout whose programs are commands


def is_command() -> bool:
    """Return whether this process is a command of ours, by `python -m` or as a script; not one that imports us."""
    if sys.argv[:1] == ["-m"]:  # while the module is looked for
        return re.search(r" -m ?unifiedreward_think\b", " ".join(sys.orig_argv)) is not None
    folder = Path(*sys.argv[:1]).absolute().parent
    return folder.name in SCRIPTS and folder.parent == Path(__file__).parents[2]


def end_at_once() -> None:
    """Let Ctrl-C end the process while it only imports modules, which may turn a KeyboardInterrupt into anything."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # shells have jobs in the background ignore it
        signal.signal(signal.SIGINT, _end)


def _end(_: int, __: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"interrupted: {GO_ON}\n".encode())
    os._exit(INTERRUPTED)


@contextmanager
def one_line(say: Callable[[str], object]) -> Iterator[None]:
    """End the block in one line at Ctrl-C, whatever a library makes of the KeyboardInterrupt; a second one just ends.

    Raises:
        SystemExit: it was interrupted; with status 130.
    """
    interrupted = False

    def ask(_: int, __: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, ask)
    stop: BaseException | None = None
    try:
        yield
    except BaseException as error:  # an import of C++ code makes it an ImportError
        if not (interrupted or isinstance(error, KeyboardInterrupt)):
            raise
        stop = error
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if interrupted else before)
    if interrupted or stop:  # a server takes the signal and ends well
        say(f"interrupted: {'; '.join(getattr(stop, '__notes__', [GO_ON]))}")
        raise SystemExit(INTERRUPTED)


@contextmanager
def kept(message: Callable[[], str]) -> Iterator[None]:
    """Say what is kept, and how to go on, where Ctrl-C ends the block."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(message())
        raise
