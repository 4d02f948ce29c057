"""Whether stored files are still what was written: scratch file systems purge files, and disks cut and spoil them.

>>> row = summed({"winner": 1})
>>> row, checked(row)
({'winner': 1, 'sum': '663fa74d'}, {'winner': 1})
>>> checked({**row, "winner": 2})
Traceback (most recent call last):
    ...
ValueError: it has changed since it was written: its sum is '4d12f48e', not '663fa74d'; take `sum` out if you changed it
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def file_sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Return which files of a folder are not there, or not as they were.

    Args:
        folder: of the files.
        digests: theirs by name, "" where none is known.
    """
    return [name for name, sha256 in digests.items() if not sha256 or sha256_if_there(folder / name) != sha256]


def sha256_if_there(path: Path) -> str:
    """Return the digest of a file, "" where it is missing or can no longer be read."""
    try:
        return file_sha256(path)
    except OSError:
        return ""


def summed(row: Mapping[str, Any], *, without: str = "") -> dict[str, Any]:
    """Return a JSON object with the sum of what it holds, but for the key `without`, which may differ."""
    return {**row, "sum": _sum(row, without)}


def checked(row: Mapping[str, Any], *, without: str = "") -> dict[str, Any]:
    """Return a JSON object without its sum; one that never had any, of an older version, is taken as it is.

    Raises:
        ValueError: it does not hold what it held when it was summed.
    """
    held = {key: value for key, value in row.items() if key != "sum"}
    if (stored := row.get("sum", now := _sum(held, without))) != now:
        raise ValueError(
            f"it has changed since it was written: its sum is {now!r}, not {stored!r}; take `sum` out if you changed it"
        )
    return held


def read_checked(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a file; None where it is missing, cut or changed."""
    try:
        row = json.loads(path.read_bytes())
        return checked(row) if isinstance(row, dict) else None
    except (OSError, ValueError):
        return None


def _sum(row: Mapping[str, Any], without: str) -> str:
    held = {key: value for key, value in row.items() if key != without}
    return f"{zlib.crc32(json.dumps(held, sort_keys=True).encode()):08x}"
