"""Which GRPO rows are rewarded together, and an order in which they are never in two generation batches.

Scores of a pair are held against each other, and so are both orders of a pair where `swap_agreement_reward` is asked.
A generation batch of an even number of prompts cuts no two, where rows that stand alone come in twos, too.

>>> rows = [{"id": name, "order": order, "solution": said} for name, order, said in
...         [("k", "a", "better"), ("k", "b", "worse"), ("m", "ba", "Image 1 is better"), ("s", "a", "0.5")]]
>>> units_of(rows)
[(0, 1), (2,), (3,)]
>>> list(in_twos([(2,), (0, 1), (3,)]))
[0, 1, 2, 3]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from unifiedreward_think.standings import STANDINGS

Unit = tuple[int, ...]


def units_of(rows: Sequence[Mapping[str, Any]], *, orders: bool = False) -> list[Unit]:
    """Return the numbers of rows that are rewarded together, those of each unit in the order of the rows.

    Args:
        rows: with `id`, `order` and `solution`.
        orders: whether both orders of a pair are one unit.
    """
    units: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        together = row["solution"] in STANDINGS or (orders and len(row["order"]) == 2)
        units.setdefault((row["id"], len(row["order"])) if together else number, []).append(number)
    return [tuple(unit) for unit in units.values()]


def in_twos(units: Iterable[Unit]) -> Iterator[int]:
    """Yield the rows of units of one and two, a row that stands alone when the next such row comes.

    So rows of one unit are those numbered 2n and 2n + 1; with units of one alone nothing changes.
    """
    held: Unit = ()
    for unit in units:
        if len(unit) > 1:
            yield from unit
        elif held:
            yield from (*held, *unit)
            held = ()
        else:
            held = unit
    yield from held
