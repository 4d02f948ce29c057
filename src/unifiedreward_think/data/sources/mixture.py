"""Which rows of a data set take part: the strategies of the released YAML files, and shares of a mixture.

>>> sorted(select("first:2", 5)), sorted(select("end:40%", 5)), len(select("random:3", 5, seed=1))
([0, 1], [3, 4], 3)
>>> shares({"hpd": 100, "oip": 10}, {"hpd": 2, "oip": 1})
{'hpd': 20, 'oip': 10}
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from unifiedreward_think.data.formats.files import DataError, read_yaml
from unifiedreward_think.records import digest

_STRATEGY = re.compile(r"(first|end|random):(\d+)(%?)")


class Entry(NamedTuple):
    """One data set of a released YAML file."""

    file: Path
    root: Path
    strategy: str


def select(strategy: str, total: int, *, seed: int = 0, name: str = "") -> Collection[int]:
    """Return the indices that `all`, `first:N`, `end:N` or `random:N` takes of `total` rows; N may be `P%`, rounded up.

    Random rows are those of the smallest digests: the same on every machine and in every process.

    Raises:
        DataError: no such strategy.
    """
    if strategy == "all":
        return range(total)
    match = _STRATEGY.fullmatch(strategy)
    if match is None:
        raise DataError(f"sampling_strategy {strategy!r}; write all, first:N, end:N or random:N, N a number or P%")
    kind, amount, percent = match.groups()
    count = min(total, math.ceil(int(amount) * total / 100) if percent else int(amount))
    if kind == "first":
        return range(count)
    if kind == "end":
        return range(total - count, total)
    return set(heapq.nsmallest(count, range(total), key=lambda i: digest("mixture", seed, name, i)))


def shares(counts: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """Return how many rows of each source make a mixture in the ratio of `weights`, as large as it can be.

    No row is used twice: the source that is scarcest for its weight is used whole. A weight of 0 leaves a source out.

    Raises:
        DataError: a weight is negative, all are 0, or a source has none or no rows.
    """
    if missing := set(counts) ^ set(weights):
        raise DataError(f"mixture: {min(missing)!r} is in the weights or in the data only; name every source once")
    wanted = {name: weight for name, weight in weights.items() if weight}
    if not wanted or min(wanted.values()) < 0:
        raise DataError("mixture: weights must be at least 0, and one of them above")
    unit = min(counts[name] / weight for name, weight in wanted.items())
    return {name: math.floor(unit * weights[name] + 1e-9) for name in counts}


def read_mixture(path: Path) -> dict[str, str | float]:
    """Read source -> strategy or weight from a YAML file; all strategies or all weights.

    Raises:
        DataError: it is no such file.
    """
    values = read_yaml(path)
    kinds = {type(value) is str for value in values.values()}
    plain = all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values.values())
    if not values or not plain or len(kinds) != 1:
        raise DataError(f"{path}: expected source: strategy (all strings) or source: weight (all numbers)")
    return {str(name): value for name, value in values.items()}


def read_entries(path: Path) -> list[Entry]:
    """Read the data sets of a released YAML file: `datasets`, each with json_path, image_folder, sampling_strategy.

    Paths start from the working directory, as in the published trainer.

    Raises:
        DataError: it is no such file.
    """
    entries = read_yaml(path).get("datasets")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "json_path" in e for e in entries):
        raise DataError(f"{path}: expected a list 'datasets' of objects with json_path")
    return [
        Entry(
            Path(entry["json_path"]),
            Path(entry.get("image_folder") or Path(entry["json_path"]).parent),
            str(entry.get("sampling_strategy", "all")),
        )
        for entry in entries
    ]
