"""The rows of all processes of a trainer, inside a reward function: what is rewarded together may lie on several.

TRL calls reward functions on each process with the rows of that process, before it gathers the rewards. A function that
compares rows gathers them itself, and returns the rewards of its own. Every process must come here equally often.

>>> everyone, own = gathered(["a", "b"])
>>> everyone[own]
['a', 'b']
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def gathered(rows: Sequence[T]) -> tuple[list[T], slice]:
    """Return the rows of all processes, by rank, and which of them are those of this process.

    Processes are those of accelerate; without an accelerator there is this one alone.

    Args:
        rows: of this process, to be pickled; processes may bring unequally many.
    """
    if "accelerate" in sys.modules:  # else there is none, and importing it takes seconds
        from accelerate.state import PartialState, is_initialized
        from accelerate.utils import gather_object

        if is_initialized():
            parts = gather_object([list(rows)])
            first = sum(map(len, parts[: PartialState().process_index]))
            return [row for part in parts for row in part], slice(first, first + len(rows))
    return list(rows), slice(0, len(rows))
