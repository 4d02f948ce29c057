"""The order in which candidates are shown: a string of letters, "ab", "ba", "a", "cab"; a is the first one stored.

The one place that knows how stored and shown candidates correspond. Places and candidates count from 1.

>>> candidate_at(1, "ba"), place_shown(1, "ba"), in_order(["first", "second"], "ba")
(2, 2, ('second', 'first'))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

Order = str
Orders = Literal["one", "both"]
ORDERS: tuple[Order, Order] = ("ab", "ba")
STORED_ORDER: Order = "ab"
T = TypeVar("T")


def in_order(stored: Sequence[T], order: str) -> tuple[T, ...]:
    """Return what is stored for each candidate in the order shown: its letters name the candidates from a on.

    >>> in_order(["x", "y"], "ba"), in_order(["x", "y", "z"], "cab")
    (('y', 'x'), ('z', 'x', 'y'))
    """
    return tuple(stored[ord(letter) - ord("a")] for letter in order)


def as_stored(shown: Sequence[T], order: str) -> tuple[T, ...]:
    """Return what is shown for each candidate in the order stored, the inverse of `in_order` for those that are shown.

    >>> as_stored(in_order(["x", "y", "z"], "cab"), "cab"), as_stored(["y"], "b")
    (('x', 'y', 'z'), ('y',))
    """
    return tuple(shown[order.index(letter)] for letter in sorted(order))


def candidate_at(place: int, order: str) -> int:
    """Return which candidate stands at a place of the order shown; both count from 1.

    >>> candidate_at(1, "ba"), candidate_at(1, "cab")
    (2, 3)
    """
    return ord(order[place - 1]) - ord("a") + 1


def winner_as_stored(winner: int | Literal["tie"] | None, order: str) -> int | Literal["tie"] | None:
    """Return who won in the order shown, as stored: a candidate, a tie, or nobody.

    >>> winner_as_stored(1, "ba"), winner_as_stored("tie", "ba"), winner_as_stored(None, "ab")
    (2, 'tie', None)
    """
    return candidate_at(winner, order) if isinstance(winner, int) else winner


def place_shown(candidate: int, order: str) -> int:
    """Return at which place a candidate is shown, the inverse of `candidate_at`.

    >>> place_shown(2, "ba"), place_shown(3, "cab")
    (1, 1)
    """
    return order.index(chr(ord("a") + candidate - 1)) + 1


def is_order(order: object, count: int) -> bool:
    """Return whether a text names some of `count` candidates, each once.

    >>> is_order("ba", 2), is_order("a", 2), is_order("aa", 2), is_order("c", 2), is_order("", 2)
    (True, True, False, False, False)
    """
    return isinstance(order, str) and 0 < len(order) == len(set(order) & set(letters(count)))


def letters(count: int) -> str:
    """Return the stored order of `count` candidates.

    >>> letters(3)
    'abc'
    """
    return "".join(chr(ord("a") + candidate) for candidate in range(count))
