"""One live run in an output folder: a second one is refused by name, and what a killed one leaves does not block.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder, holding(Path(folder, LOCK)):
...     json.loads(Path(folder, LOCK).read_text())["process"] == os.getpid()
True

Whether a process of this machine lives, the system says. One of another machine, or of another container, shows it: its
lock is touched every BEAT seconds, and is taken over when that has not happened for BEATS times as long.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from unifiedreward_think.errors import InputError
from unifiedreward_think.terminal import note
from unifiedreward_think.writing import unwritable

LOCK = ".in_use"
BEAT = 20.0  # seconds
BEATS = 10  # in all less than Slurm needs by default to give a node up (300 seconds), so that its next run goes on


class _Held(NamedTuple):
    """A lock of the process that made it: a forked child has the table, too, and holds nothing."""

    process: int
    text: str
    given_up: threading.Event


_held: dict[Path, _Held] = {}


@contextmanager
def holding(lock: Path) -> Iterator[None]:
    """Hold a lock while the block runs.

    Raises:
        InputError: see `hold`.
    """
    hold(lock)
    try:
        yield
    finally:
        release(lock)


def hold(lock: Path) -> None:
    """Say in a file that this process writes here, until `release` or its end. Held by this process already, it stays.

    Raises:
        InputError: another live process holds it.
        OutputError: the file cannot be written.
    """
    lock = lock.absolute()
    held = _held.get(lock)
    again = held is not None and held.process == os.getpid()
    try:
        text = _take(lock, held.text if held and again else _me())
    except OSError as error:
        raise unwritable(lock, error) from error
    if not again:
        _held[lock] = held = _Held(os.getpid(), text, threading.Event())
        threading.Thread(target=_beat, args=(lock, held), name=f"holds {lock}", daemon=True).start()


def release(lock: Path) -> None:
    """Give up a lock that this process holds; of others, nothing happens."""
    held = _held.pop(lock.absolute(), None)
    if held is not None and held.process == os.getpid():
        held.given_up.set()
        lock.unlink(missing_ok=True)


def _take(lock: Path, text: str) -> str:
    with _alone(lock) as file:
        holder = _read(file)
        if holder and holder != json.loads(text):
            _refuse_if_live(lock, file, holder)
        if holder != json.loads(text):
            file.seek(0)
            file.truncate()
            file.write(text)
    return text


def _refuse_if_live(lock: Path, file: TextIO, holder: dict[str, Any]) -> None:
    """Refuse a lock whose holder may live.

    Raises:
        InputError: it names the holder, and when its lock will be free.
    """
    who = f"process {holder['process']} on {holder['host']} since {holder['since']}"
    if (holder["host"], holder.get("space")) == (socket.gethostname(), _space()):
        if _started(holder["process"]) == holder["started"]:
            raise InputError(f"{lock.parent}: in use by {who}; wait for it, or choose another output")
        return
    silent, limit = _now(lock.parent) - os.fstat(file.fileno()).st_mtime, BEATS * BEAT
    if silent < limit:
        free = datetime.now().astimezone() + timedelta(seconds=limit - silent)
        raise InputError(
            f"{lock.parent}: in use by {who}; wait for it, or choose another output. If it has died, the same command "
            f"goes on from {free:%H:%M:%S}, {limit:.0f} s after its last sign of life, or once you remove {lock}"
        )
    note(f"{lock.parent}: taken over from {who}, which has shown no sign of life for {silent:.0f} s")


def _now(folder: Path) -> float:
    """Return the time by the clock that stamps the files of a folder: that of a file server may differ from ours."""
    with tempfile.TemporaryFile(dir=folder, prefix=LOCK) as file:
        os.utime(file.fileno())
        return os.fstat(file.fileno()).st_mtime


def _beat(lock: Path, held: _Held) -> None:
    """Touch a lock until it is given up. A process that has lost it, halted for a while, ends before it writes."""
    while not held.given_up.wait(BEAT):
        with suppress(OSError):  # removed by hand, or the disk does not answer; the next one may work
            with lock.open(encoding="utf-8") as file:
                holder = _read(file)
            if holder and holder != json.loads(held.text) and not held.given_up.is_set():
                why = f"this one gave no sign of life for {BEATS * BEAT:.0f} s, or its lock was removed"
                note(
                    f"error: {lock.parent}: taken over by process {holder['process']} on {holder['host']}: {why}; "
                    "it ends, so that two do not write"
                )
                os._exit(1)
            os.utime(lock)


def _me() -> str:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    me = {"host": socket.gethostname(), "process": os.getpid(), "started": _started(os.getpid())}
    return json.dumps({**me, "since": since, "space": _space()})


def _space() -> str:
    """Return in which space process numbers count: containers may share the name of their host, and not these."""
    space = Path("/proc/self/ns/pid")
    return str(space.readlink()) if space.is_symlink() else ""


@contextmanager
def _alone(lock: Path) -> Iterator[TextIO]:
    """Yield the file of a lock while no other process takes it; the system's lock ends with the process."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("a+", encoding="utf-8") as file:
            _lock(file)
            if _same(lock, file):  # else its holder has removed it since
                yield file
                return


def _lock(file: TextIO) -> None:
    """Lock an open file. Another process has it for an instant: one that is halted there is not waited for."""
    for _ in range(100):
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.1)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _same(lock: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _read(file: TextIO) -> dict[str, Any]:
    """Return who holds a lock; nobody where a killed process has written half of it."""
    file.seek(0)
    try:
        holder = json.load(file)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) and set(holder) >= {"host", "process", "started", "since"} else {}


def _started(process: int) -> str:
    """Return when a process was started, in the system's ticks: another one may have its number. "" if it is gone."""
    if not Path("/proc").is_dir():  # macOS: whether there is such a process must do
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return ""
        return "unknown"
    try:
        state, *numbers = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else numbers[18]


def _release_all() -> None:
    for lock in list(_held):
        release(lock)


atexit.register(_release_all)
