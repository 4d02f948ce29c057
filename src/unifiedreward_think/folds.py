"""What is fitted on labels is scored on others: rows fall into folds by a digest of their cluster.

>>> rows = ["kite", "kite", "boat", "dog", "cat", "owl"]
>>> parts = list(split(rows, str))
>>> sorted(row for part, _ in parts for row in part) == sorted(rows), all(not set(a) & set(b) for a, b in parts)
(True, True)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from unifiedreward_think.records import digest

T = TypeVar("T")
FOLDS = 5


def fold_of(cluster: str) -> int:
    """Return the fold of a cluster, from 0; it depends on its name alone."""
    return digest("fold", cluster) % FOLDS


def split(rows: Iterable[T], cluster: Callable[[T], str]) -> Iterator[tuple[list[T], list[T]]]:
    """Yield the rows of each fold that has some, with those of all other folds."""
    folds: defaultdict[int, list[T]] = defaultdict(list)
    for row in rows:
        folds[fold_of(cluster(row))].append(row)
    for fold, part in sorted(folds.items()):
        yield part, [row for other, rest in sorted(folds.items()) if other != fold for row in rest]
