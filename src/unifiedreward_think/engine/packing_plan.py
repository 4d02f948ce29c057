"""Which rows share a forward: see `packing` for what a packed sequence is."""

from __future__ import annotations

from collections.abc import Sequence


def plan_packing(
    owners: Sequence[int],
    lengths: Sequence[int],
    prompt_lengths: Sequence[int],
    *,
    most_tokens: int | None,
    most_rows: int,
) -> list[dict[int, list[int]]]:
    """Divide rows over packed sequences.

    Args:
        owners: number of the prompt of each row.
        lengths: completion tokens of each row; a row of length 0 is left out.
        prompt_lengths: of each prompt.
        most_tokens: in a packed sequence, unless a single completion with its prompt is longer.
        most_rows: completions in a packed sequence.

    Returns:
        For each packed sequence, the rows of each prompt in it.
    """
    packed: list[dict[int, list[int]]] = []
    tokens = rows = 0
    for row in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: owners[i]):
        owner = owners[row]
        cost = lengths[row] + (prompt_lengths[owner] if not packed or owner not in packed[-1] else 0)
        full = rows == most_rows or (most_tokens is not None and tokens + cost > most_tokens)
        if not packed or full:
            packed.append({})
            tokens, rows, cost = 0, 0, lengths[row] + prompt_lengths[owner]
        packed[-1].setdefault(owner, []).append(row)
        tokens, rows = tokens + cost, rows + 1
    return packed
