"""JSON in which an object writes each key once: elsewhere the last one wins, and nobody learns of the others.

>>> read_json('{"id": "kite-1", "preferred": 1, "preferred": 2}')
Traceback (most recent call last):
    ...
ValueError: 'preferred' is written twice in {'id': 'kite-1', 'preferred': 2}; keep one
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from unifiedreward_think.errors import RecordError


class Row(Protocol):
    """What a line of a file is made of."""

    def to_json(self) -> dict[str, Any]:
        """Return the object of its line."""


def read_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is no JSON, or an object holds a key twice.
    """
    return json.loads(text, object_pairs_hook=once_each)


def once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of its keys and values; the `object_pairs_hook` of readers that parse by themselves.

    Raises:
        ValueError: a key occurs twice.
    """
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is written twice in {str(unique)[:100]}; keep one")
    return unique


def json_lines(rows: Iterable[Row]) -> str:
    """Return rows as the lines of a file that `read_json_lines` reads."""
    return "".join(json.dumps(row.to_json()) + "\n" for row in rows)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSONL file.

    Raises:
        RecordError: a line is no JSON object; the message names file and line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = read_json(line)
            except (ValueError, RecursionError) as error:  # syntax, keys, bytes, length of a number, depth
                raise RecordError(f"{path}:{number}: not valid JSON ({error}); fix or remove the line") from error
            if not isinstance(row, dict):
                raise RecordError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
            yield number, row
