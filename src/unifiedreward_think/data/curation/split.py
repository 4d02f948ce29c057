r"""Split records into train, rejection sampling and held-out, and mix sources.

    python -m unifiedreward_think.data split --input data/clean --output data/split --shares 0.6 0.3 0.1 \
        --mixture mixture.yaml

Rows that share a prompt or a picture, directly or through others, stay together. Every source and task is divided in
the same ratio. The order of the groups comes from a digest, so that new rows move few of the old ones to another part.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.data.arguments import command
from unifiedreward_think.data.curation.cleaning import plain
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.shards import ShardFolder, as_json, described, read_tracked
from unifiedreward_think.data.sources.mixture import read_mixture, select, shares
from unifiedreward_think.flags import Amount, Seed, ranged
from unifiedreward_think.records import Trace, digest
from unifiedreward_think.tasks import TASKS

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray

UNUSED = "not taken by the mixture"
PARTS = ("train", "rejection_sampling", "heldout")


@dataclass(slots=True)
class Seen:
    """What a split has to know of all rows: numbers alone, some 50 bytes a row.

    Attributes:
        keys: what ties rows to others, those of all rows one after the other.
        ends: where the keys of each row end.
        strata: the number of each row's (source, task), and the pairs by number.
        draws: a digest of each record id, which decides what a mixture takes.
    """

    keys: array[int] = field(default_factory=lambda: array("Q"))
    ends: array[int] = field(default_factory=lambda: array("Q"))
    strata: array[int] = field(default_factory=lambda: array("I"))
    names: dict[tuple[str, str], int] = field(default_factory=dict)
    draws: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, row: Trace, seed: int) -> None:
        """Remember a row."""
        record = row.record
        self.keys.extend(group_keys(row))
        self.ends.append(len(self.keys))
        self.strata.append(self.names.setdefault((record.source, record.task), len(self.names)))
        self.draws.append(digest("mixture", seed, record.id))


def group_keys(row: Trace) -> list[int]:
    """Return what ties a row to others: its prompt (a caption), its media, and the group its source gives."""
    record = row.record
    keys = [digest("media", path) for entry in record.media for path in entry]
    if TASKS[record.task].compares_media:
        keys.append(digest("prompt", plain(record.prompt)))
    if record.group:
        keys.append(digest("group", record.source, record.group))
    return keys


def groups(keys: Sequence[int], ends: Sequence[int]) -> Numbers:
    """Return a number for each row, the same for rows that share a key, also through others.

    The number is the smallest key of the group: it depends on the rows of the group alone, whatever their order.

    >>> groups([7, 3, 9, 3, 8], [1, 2, 4, 5]).tolist()  # the second and the third row share key 3
    [7, 3, 3, 8]
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unique_keys, column = np.unique(np.asarray(keys, np.uint64), return_inverse=True)
    row: Numbers = np.repeat(np.arange(len(ends), dtype=np.int32), np.diff(np.asarray(ends, np.int64), prepend=0))
    nodes = len(ends) + len(unique_keys)  # rows and keys; an edge ties a row to each of its keys
    edges = (row, (column + len(ends)).astype(np.int32))
    del column
    links = coo_array((np.ones(len(row), bool), edges), shape=(nodes, nodes))
    count, part = connected_components(links, directed=False)
    smallest = np.full(count, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, part[len(ends) :], unique_keys)
    names: Numbers = smallest[part[: len(ends)]]
    return names


def assign(
    groups: Sequence[int] | Numbers, strata: Sequence[int] | Numbers, parts: Sequence[float], seed: int
) -> Numbers:
    """Return which part each row goes to, so that each stratum is divided in the ratio of `parts`.

    A group counts for the smallest of its strata.

    >>> found = assign([i // 2 for i in range(40)], [0, 0, 1, 1] * 10, [0.5, 0.5], seed=0).tolist()
    >>> found[0::2] == found[1::2], found.count(0), [found[i] for i in range(40) if i % 4 < 2].count(0)
    (True, 20, 10)
    """
    import numpy as np

    names, member, size = np.unique(np.asarray(groups, np.uint64), return_inverse=True, return_counts=True)
    stratum: Numbers = np.full(len(names), np.iinfo(np.int64).max, np.int64)
    np.minimum.at(stratum, member, np.asarray(strata, np.int64))
    draws = np.fromiter((digest("split", seed, int(name)) for name in names), np.uint64, len(names))
    order = np.lexsort((draws, stratum))  # stratum by stratum, the groups of each as they are drawn
    _, first, each = np.unique(stratum[order], return_index=True, return_counts=True)
    before = np.cumsum(size[order]) - size[order]
    total = np.add.reduceat(size[order], first)
    middle = before - np.repeat(before[first], each) + size[order] / 2
    part: Numbers = np.empty(len(names), np.int8)
    part[order] = np.searchsorted(np.cumsum(parts)[:-1], middle / np.repeat(total, each) * sum(parts), side="right")
    chosen: Numbers = part[member]
    return chosen


def mixed(
    sources: Sequence[int] | Numbers,
    names: Sequence[str],
    draws: Sequence[int] | Numbers,
    mixture: Mapping[str, str | float],
) -> Numbers:
    """Return for each row whether a mixture takes it.

    Args:
        sources: the number of each row's source.
        names: the sources by number.
        draws: what decides between the rows of a source: those of the smallest numbers are drawn first.
        mixture: source -> strategy, or source -> weight.

    Raises:
        DataError: the mixture does not name the sources of the data.
    """
    import numpy as np

    if missing := set(names) ^ set(mixture):
        raise DataError(f"mixture: {min(missing)!r} is in the mixture or in the data only; name every source once")
    code, draw = np.asarray(sources, np.int64), np.asarray(draws, np.uint64)
    weights = {name: float(value) for name, value in mixture.items() if not isinstance(value, str)}
    wanted: dict[str, str] = {name: value for name, value in mixture.items() if isinstance(value, str)}
    if weights:
        counts = {name: int(np.count_nonzero(code == number)) for number, name in enumerate(names)}
        wanted = {name: f"random:{n}" for name, n in shares(counts, weights).items()}
    used: Numbers = np.zeros(len(code), bool)
    for number, name in enumerate(names):
        rows = np.flatnonzero(code == number)
        if wanted[name].startswith("random"):  # by record id: what else is in the data does not matter
            rows = rows[np.argsort(draw[rows], kind="stable")]
        taken = select(wanted[name].replace("random", "first"), len(rows))
        used[rows[np.fromiter(taken, np.int64, len(taken))]] = True
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
    settings = {name: {**about, "settings": {**chosen, "part": name}} for name in PARTS}
    shards = {name: ShardFolder(output / name, settings[name]) for name in PARTS}
    if not all(folder.finished for folder in shards.values()):
        part_of_row, used = _decided(folders, parts, seed, mixture)
        for number, name in enumerate(PARTS):
            rows = enumerate(read_tracked(folders, f"writing {name}"))
            rows_of_part = (
                ("", 0, row, "" if used[i] else UNUSED) for i, (_, _, row) in rows if part_of_row[i] == number
            )
            shards[name].write_decided(rows_of_part)
    return {name: shards[name].finish(settings[name])["counts"] for name in PARTS}


def _decided(
    folders: Sequence[Path], parts: Sequence[float], seed: int, mixture: Mapping[str, str | float] | None
) -> tuple[Numbers, Numbers]:
    """Return the part of each row, and whether the mixture takes it."""
    import numpy as np

    seen = Seen()
    for _, _, row in read_tracked(folders, "reading"):
        seen.add(row, seed)
    order = {name: rank for rank, name in enumerate(sorted(seen.names))}  # whichever row comes first
    strata = np.array([order[name] for name in seen.names], np.int64)[np.asarray(seen.strata, np.int64)]
    part_of_row = assign(groups(seen.keys, seen.ends), strata, parts, seed)
    if mixture is None:
        return part_of_row, np.ones(len(part_of_row), bool)
    sources = sorted({source for source, _ in order})
    source_of = np.array([sources.index(source) for source, _ in order], np.int64)
    return part_of_row, mixed(source_of[strata], sources, seen.draws, mixture)


def main(arguments: Sequence[str] | None = None) -> None:
    """Split from the command line."""
    parser = command("split", __doc__, output=f"folder for the folders {', '.join(PARTS)}")
    add = parser.add_argument
    shown = ("TRAIN", "SAMPLING", "HELDOUT")
    add("--shares", type=ranged(Amount), nargs=3, default=[0.6, 0.3, 0.1], metavar=shown)
    add("--mixture", type=Path, help="YAML of source: weight, or source: all|first:N|end:N|random:N|random:P%%")
    add("--seed", type=ranged(Seed), default=0, help="decides the order of the groups")
    args = parser.parse_args(arguments)
    if not sum(args.shares) > 0:
        parser.error("--shares: one of them must be above 0")
    mixture = read_mixture(args.mixture) if args.mixture else None
    print(as_json(split(args.input, args.output, parts=args.shares, seed=args.seed, mixture=mixture)), end="")
