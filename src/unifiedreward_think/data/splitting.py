r"""Split records into train, rejection sampling and held-out, and mix sources.

    python -m unifiedreward_think.data split --input data/clean --output data/split --shares 0.6 0.3 0.1 \
        --mixture mixture.yaml

Rows that share a prompt or a picture, directly or through others, stay together. Every source and task is divided in
the same ratio. The order of the groups comes from a digest, so that new rows move few of the old ones to another part.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from unifiedreward_think.data.cleaning import plain
from unifiedreward_think.data.files import BadRow, DataError
from unifiedreward_think.data.mixture import read_mixture, select, shares
from unifiedreward_think.data.shards import (
    PART_ROWS,
    Part,
    Removal,
    ShardFolder,
    Stored,
    as_json,
    described,
    read_stored,
)
from unifiedreward_think.entry import run_main
from unifiedreward_think.records import digest

PARTS = ("train", "rejection_sampling", "heldout")


def groups(rows: Iterable[Stored]) -> list[int]:
    """Return a number for each row, the same for rows that share a prompt, a picture or a group, also through others.

    The number depends on the rows of the group alone, whatever their order.
    """
    parent: dict[int, int] = {}

    def root(key: int) -> int:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    first: list[int] = []
    for row in rows:
        keys = group_keys(row)
        first.append(keys[0])
        low = min(map(root, keys))  # the smallest digest names the group
        for key in keys:
            parent[root(key)] = low
    return [root(key) for key in first]


def group_keys(row: Stored) -> list[int]:
    """Return what ties a row to others: its prompt (a caption), its media, and the group its source gives."""
    record = row.record
    keys = [digest("media", path) for entry in record.media for path in entry]
    if record.task.endswith("generation"):
        keys.append(digest("prompt", plain(record.prompt)))
    if record.group:
        keys.append(digest("group", record.source, record.group))
    return keys


def assign(groups: Sequence[int], strata: Sequence[str], parts: Sequence[float], seed: int) -> list[int]:
    """Return which part each row goes to, so that each stratum is divided in the ratio of `parts`.

    >>> found = assign([i // 2 for i in range(40)], ["a", "a", "b", "b"] * 10, [0.5, 0.5], seed=0)
    >>> found[0::2] == found[1::2], found.count(0), [found[i] for i in range(40) if i % 4 < 2].count(0)
    (True, 20, 10)
    """
    size = Counter(groups)
    stratum: dict[int, str] = {}
    for group, name in sorted(zip(groups, strata, strict=True)):
        stratum.setdefault(group, name)
    members: defaultdict[str, list[int]] = defaultdict(list)
    for group, name in stratum.items():
        members[name].append(group)
    part: dict[int, int] = {}
    for found in members.values():
        found.sort(key=lambda group: digest("split", seed, group))
        total, before = sum(size[group] for group in found), 0
        for group in found:
            middle = (before + size[group] / 2) / total * sum(parts)
            ends = [sum(parts[: i + 1]) for i in range(len(parts))]
            part[group] = next(i for i, end in enumerate(ends) if middle < end or i == len(ends) - 1)
            before += size[group]
    return [part[group] for group in groups]


def mixed(sources: Sequence[str], ids: Sequence[str], mixture: dict[str, str | float], seed: int) -> set[int]:
    """Return the indices of the rows that a mixture takes.

    Raises:
        DataError: the mixture does not name the sources of the data.
    """
    where: defaultdict[str, list[int]] = defaultdict(list)
    for i, source in enumerate(sources):
        where[source].append(i)
    if missing := set(where) ^ set(mixture):
        raise DataError(f"mixture: {min(missing)!r} is in the mixture or in the data only; name every source once")
    weights = {name: float(value) for name, value in mixture.items() if not isinstance(value, str)}
    wanted: dict[str, str] = {name: value for name, value in mixture.items() if isinstance(value, str)}
    if weights:
        wanted = {
            name: f"random:{n}"
            for name, n in shares({name: len(rows) for name, rows in where.items()}, weights).items()
        }
    used: set[int] = set()
    for name, rows in where.items():
        if wanted[name].startswith("random"):  # by record id: what else is in the data does not matter
            rows = sorted(rows, key=lambda i: digest("mixture", seed, ids[i]))
            used |= {rows[i] for i in select(wanted[name].replace("random", "first"), len(rows))}
        else:
            used |= {rows[i] for i in select(wanted[name], len(rows))}
    return used


def split(
    folders: Sequence[Path],
    output: Path,
    *,
    parts: Sequence[float],
    seed: int = 0,
    mixture: dict[str, str | float] | None = None,
) -> dict[str, Any]:
    """Write the records to the folders train, rejection_sampling and heldout of `output`; return their counts.

    Raises:
        DataError: a folder is not complete, or the mixture does not fit.
    """
    about: dict[str, Any] = {"command": "split", "inputs": [described(folder) for folder in folders]}
    chosen = {"shares": list(parts), "seed": seed, "mixture": mixture}
    seen = [(row.record.source, row.record.task, row.record.id) for row in _rows(folders)]
    found = assign(groups(_rows(folders)), [f"{source} {task}" for source, task, _ in seen], parts, seed)
    used = set(range(len(seen)))
    if mixture is not None:
        used = mixed([source for source, _, _ in seen], [name for _, _, name in seen], mixture, seed)
    counts = {}
    for number, name in enumerate(PARTS):
        settings = {**about, "settings": {**chosen, "part": name}}
        shards = ShardFolder(output / name, settings)
        if not shards.finished:
            shards.done = 0
            mine = ((i, row) for i, row in enumerate(_rows(folders)) if found[i] == number)
            while chunk := list(islice(mine, PART_ROWS)):
                shards.write(_part(chunk, used), len(chunk))
        counts[name] = shards.finish(settings)["counts"]
    return counts


def _rows(folders: Sequence[Path]) -> Iterator[Stored]:
    return (stored for _, _, stored in read_stored(folders))


def _part(chunk: Iterable[tuple[int, Stored]], used: set[int]) -> Part:
    part = Part()
    for i, row in chunk:
        if i in used:
            part.rows.append(row)
        else:
            part.removals.append(Removal(BadRow("", 0, row.record.id, "not taken by the mixture"), broken=False))
    return part


def main(arguments: Sequence[str] | None = None) -> None:
    """Split from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m unifiedreward_think.data split",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, help="folders of records")
    add("--output", type=Path, required=True, help=f"folder for the folders {', '.join(PARTS)}")
    add("--shares", type=float, nargs=3, default=[0.6, 0.3, 0.1], metavar=("TRAIN", "SAMPLING", "HELDOUT"))
    add("--mixture", type=Path, help="YAML of source: weight, or source: all|first:N|end:N|random:N|random:P%%")
    add("--seed", type=int, default=0, help="decides the order of the groups")
    args = parser.parse_args(arguments)
    if min(args.shares) < 0 or not sum(args.shares) > 0:
        parser.error("--shares are at least 0, and one of them above")
    mixture = read_mixture(args.mixture) if args.mixture else None
    print(as_json(split(args.input, args.output, parts=args.shares, seed=args.seed, mixture=mixture)), end="")


if __name__ == "__main__":
    run_main(main)
