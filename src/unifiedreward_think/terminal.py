"""Who speaks on the terminal while a stage runs: this project. What libraries print is kept in the log file of the run.

    with libraries_to_log():                        # UNIFIEDREWARD_VERBOSE=1 leaves all on the terminal
        log_to(Path("outputs/toy/grpo/run.log"))    # what was printed before goes there too
        say("grpo: step 1/160")

Of several ranks, rank 0 speaks; the others write to their logs. An exception ends the block, so errors reach the
terminal from each rank, and so does what C code writes to standard error, such as why a process was aborted.

>>> say("outside of the block, this is print")
outside of the block, this is print
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


class Log(io.TextIOBase):
    """A file in the place of standard output and error; of a line that a bar draws again and again, the last."""

    def __init__(self) -> None:
        self._file: TextIO = tempfile.TemporaryFile("w+", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._line = ""

    def write(self, text: str) -> int:
        """Take text; a line is written when it ends."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._file.write(line.rstrip("\r").rpartition("\r")[2] + "\n")
        if "\r" in self._line.rstrip("\r"):
            self._line = self._line.rstrip("\r").rpartition("\r")[2]
        return len(text)

    def fileno(self) -> int:
        """Return the descriptor of the file, for what C code writes to standard output."""
        return self._file.fileno()

    def move(self, path: Path) -> None:
        """Append to a file from here on, beginning with what was taken so far."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", buffering=1, encoding="utf-8", errors="replace")
        file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(sys.argv)}\n")
        self._file.seek(0)
        file.write(self._file.read())
        self._file, before = file, self._file
        before.close()


_log: Log | None = None
_terminal: tuple[TextIO, TextIO] | None = None  # standard output and error, for rank 0 within the block


@contextmanager
def libraries_to_log() -> Iterator[None]:
    """Keep what is printed within the block in a log, but for what goes through this module."""
    global _log, _terminal
    if os.environ.get("UNIFIEDREWARD_VERBOSE"):
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings of C++ code go past Python; read when torch loads
    sys.stdout.flush()
    before = sys.stdout, sys.stderr
    _log, out = Log(), os.fdopen(os.dup(1), "w", buffering=1)
    _terminal = (out, sys.stderr) if os.environ.get("RANK", "0") == "0" else None
    os.dup2(_log.fileno(), 1)
    sys.stdout = sys.stderr = _log
    try:
        yield
    finally:
        _log = _terminal = None  # not closed: handlers of libraries go on writing to it
        sys.stdout, sys.stderr = before
        os.dup2(out.fileno(), 1)
        out.close()


def log_to(path: Path) -> None:
    """Keep the log in a file from here on; a rank above 0 in one of its own."""
    rank = os.environ.get("RANK", "0")
    if _log is not None:
        _log.move(path if rank == "0" else path.with_suffix(f".rank{rank}{path.suffix}"))
        os.dup2(_log.fileno(), 1)


def say(text: str) -> None:
    """Print progress or a result."""
    _print(text, 0)


def note(text: str) -> None:
    """Print a warning or a remark, on standard error."""
    _print(text, 1)


def error_stream() -> TextIO:
    """Return where progress is shown."""
    return sys.stderr if _terminal is None else _terminal[1]


def _print(text: str, stream: int) -> None:
    streams = _terminal
    if _log is not None:
        _log.write(f"\r{text}\n")  # over a bar that is being drawn
    else:
        streams = sys.stdout, sys.stderr
    if streams is not None:
        print(text, file=streams[stream], flush=True)
