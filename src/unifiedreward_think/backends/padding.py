"""Which prompts go through a model together: they are padded to the longest, so that one long prompt would cost all.

>>> together([300, 300, 9000, 300], [], limit=100_000)
[0, 1, 3]
>>> together([9000, 300], [300, 300], limit=100_000), together([9000], [], limit=100)
([1], [0])
"""

from __future__ import annotations

from collections.abc import Sequence

BATCH_TOKENS = 262_144  # 64 prompts of 4096 tokens
SMALL = 4096  # padded tokens that are not worth a batch of their own
CELLS = 2**28  # of the mask of a prefill, prompts x longest x longest: 1 GiB where attention keeps it in float32


def together(lengths: Sequence[int], held: Sequence[int], *, limit: int) -> list[int]:
    """Return the places of the prompts that join a batch, the shortest first: they wait for nobody.

    Filled up to the longest, the prompts of a batch have at most `limit` tokens, and at most half of these are padding.
    An empty batch takes the shortest prompt however long it is.

    Args:
        lengths: tokens of the prompts that wait.
        held: tokens of those that the batch holds.
        limit: of the batch.
    """
    taken: list[int] = []
    rows, total, longest = len(held), sum(held), max(held, default=0)
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        rows, total, longest = rows + 1, total + lengths[place], max(longest, lengths[place])
        if rows > 1 and rows * longest > min(limit, max(SMALL, 2 * total)):
            break
        taken.append(place)
    return sorted(taken)


def prefills(lengths: Sequence[int]) -> list[list[int]]:
    """Cut prompts that join a batch, by their places, into those that are read at once: each a mask of CELLS at most.

    >>> prefills([300, 300]), prefills([12_000, 300, 12_000])
    ([[0, 1]], [[0], [1], [2]])
    """
    groups: list[list[int]] = []
    longest = 0
    for place, length in enumerate(lengths):
        longest = max(longest, length)
        if not groups or (len(groups[-1]) + 1) * longest**2 > CELLS:
            groups.append([])
            longest = length
        groups[-1].append(place)
    return groups
