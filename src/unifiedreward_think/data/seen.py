"""What was found good before, so that it is not looked at again: a digest for each thing, in a file of lines.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     with remembering(Path(folder, "seen.txt")) as seen:
...         seen.add("5f0c")
...     with remembering(Path(folder, "seen.txt")) as seen:
...         print("5f0c" in seen, "77aa" in seen)
True False

A digest is of all that the finding rests on, this package and its libraries included. Files count by path, size and
time of change, as they do for `make`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from unifiedreward_think.provenance import versions
from unifiedreward_think.writing import write_whole


@contextmanager
def remembering(file: Path) -> Iterator[set[str]]:
    """Yield the digests in a file, and write those that were added, also where the block ends with an error."""
    before = frozenset(file.read_text(encoding="ascii", errors="replace").split()) if file.exists() else frozenset()
    seen = set(before)
    try:
        yield seen
    finally:
        if seen > before:
            write_whole(file, "".join(f"{one}\n" for one in sorted(seen)), cache=True)


def digest_of(*about: object, files: Iterable[str | Path]) -> str:
    """Return a digest of values and of files, with all files of a folder; "" where one cannot be found."""
    try:
        stamps = [_version(Path(file)) for file in files]
    except (OSError, ValueError):  # the latter for a path that holds a zero byte
        return ""
    return hashlib.sha256(repr((_rules(), about, stamps)).encode()).hexdigest()[:32]


@cache
def _rules() -> str:
    """Return a digest of the code that finds: other versions may refuse more."""
    code = hashlib.sha256(repr(sorted(versions().items())).encode())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


def _version(path: Path) -> list[tuple[str, int, int]]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
