"""Files that are whole or not there, whenever the run is killed or the disk is full.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     path = Path(folder, "results.json")
...     write_whole(path, "first")  # the old file, or the new one; never half of it
...     with whole(path) as scratch:  # the same, for what another library writes
...         size = scratch.write_bytes(b"second")
...     with open_to_append(path) as file:  # line by line: at most the last one is cut
...         append(file, ", third")
...     path.read_text()
'second, third'
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TextIO

from unifiedreward_think.errors import InputError

FIXES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file would be larger than the limit (ulimit -f): raise it",
    errno.EROFS: "the disk is read-only: choose another folder",
    errno.ENOSYS: "the file system knows no locks: mount it with flock, or choose another folder",
    errno.ENOTSUP: "the file system knows no locks: mount it with flock, or choose another folder",
    errno.EAGAIN: "another run holds it open and does not go on: end that one",
    errno.EACCES: "change the permissions, or choose another folder",
}


class OutputError(InputError):
    """A result that cannot be written, on a full disk for example; the message names the file and the fix."""


def write_whole(path: Path, content: str | bytes, *, cache: bool = False) -> None:
    """Write a file whole or not at all, its folder made if needed.

    Args:
        path: of the file.
        content: text is written as UTF-8.
        cache: see `whole`.

    Raises:
        OutputError: it cannot be written; what was there before stays.
    """
    with whole(path, cache=cache) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def keep(path: Path, content: bytes) -> None:
    """Write a file of a cache, unless it is there and holds this.

    Raises:
        OutputError: it cannot be written.
    """
    with suppress(OSError):  # not there, or no longer to be read
        if path.read_bytes() == content:
            return
    write_whole(path, content, cache=True)


@contextmanager
def whole(path: Path, *, cache: bool = False) -> Iterator[Path]:
    """Yield a path to write to; the file takes its place at `path` when the block ends well, and is removed otherwise.

    A killed run can leave it behind, its name ending in ".new"; the next write takes its place.

    Args:
        path: where the file ends up. One process at a time writes it, and it is on the disk when the block has ended.
        cache: it is one of many small files that can be made again: nobody waits for the disk, and other processes may
            be making the same file.

    Raises:
        OutputError: it cannot be written; what was there before stays.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.new" if cache else f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        if not cache:
            _sync(scratch)
        scratch.replace(path)
    except OSError as error:
        if error.filename not in (None, str(scratch), str(path.parent)):
            raise  # the block read another file
        raise unwritable(path, error) from error
    finally:
        if scratch.is_file():
            scratch.unlink()


@contextmanager
def open_whole(path: Path) -> Iterator[TextIO]:
    """Yield a text file to write to piece by piece, which takes its place at `path` as that of `whole` does."""
    with whole(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        yield file


def open_to_append(path: Path) -> FileIO:
    """Open a file for `append`, its folder made if needed.

    Raises:
        OutputError: it cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)  # a buffer would try to write its rest once more where a write failed
    except OSError as error:
        raise unwritable(path, error) from error


def append(file: FileIO, text: str) -> None:
    """Add text to a file of `open_to_append`, and return when it is on the disk.

    Raises:
        OutputError: it cannot be written, or not all of it.
    """
    data = text.encode()
    try:
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(Path(str(file.name)), error) from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def unwritable(path: Path, error: OSError) -> OutputError:
    """Return the error that names a file which cannot be written, and the fix."""
    fix = FIXES.get(error.errno or 0, "fix that")
    return OutputError(
        f"{path}: cannot be written ({error}); {fix}. What was stored before stays, and the same command goes on from "
        "there"
    )
