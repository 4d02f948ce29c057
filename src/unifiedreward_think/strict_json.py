"""JSON in which an object writes each key once: elsewhere the last one wins, and nobody learns of the others.

>>> read_json('{"id": "kite-1", "preferred": 1, "preferred": 2}')
Traceback (most recent call last):
    ...
ValueError: 'preferred' is written twice in {'id': 'kite-1', 'preferred': 2}; keep one
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


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
