"""From the rows of a source to rows of one pair each, where the source is not laid out like that.

>>> rows = [(7, {"prompt": "an owl", "files": ["a", "b", "c"], "rank": [2, 1, 2]})]
>>> for row in ranked(rows, Finder("demo", ["prompt", "files", "rank"], {}), {"media": "files", "rank": "rank"}):
...     print(row.number, row.part, row.values["first"], row.values["second"], row.values["first_rank"])
7 1 a b 2.0
7 2 b c 1.0

What a pairing adds to a row: `ranked` and `best_and_worst` add `first`, `second` and `first_rank`, `second_rank` or
`first_score`, `second_score`; `halves` and `clips` add `first` and `second`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from unifiedreward_think.data.formats.files import DataError, LeftOut
from unifiedreward_think.data.sources.columns import Finder
from unifiedreward_think.errors import RecordError
from unifiedreward_think.strict_json import read_json


class PairRow(NamedTuple):
    """One pair: the row it comes from, which pair of that row (0: the only one), its values or what is wrong."""

    number: int
    part: int
    values: Mapping[str, Any] | RecordError


Rows = Iterable[tuple[int, Any]]
Pairing = Callable[[Rows, Finder, Mapping[str, Any]], Iterator[PairRow]]


def plain(rows: Rows, finder: Finder, declared: Mapping[str, Any]) -> Iterator[PairRow]:
    """Yield each row as a pair."""
    return _of_each(rows, lambda values: [{}])


def ranked(rows: Rows, finder: Finder, declared: Mapping[str, Any]) -> Iterator[PairRow]:
    """Yield every pair of candidates of different rank in rows that rank several (a smaller rank is better)."""
    media = finder.column(declared["media"], where="pairs.media")
    rank = finder.column(declared["rank"], where="pairs.rank")

    def pairs(values: Mapping[str, Any]) -> list[dict[str, Any]]:
        files, ranks = media.get(values), rank.get(values)
        if not isinstance(files, list) or not isinstance(ranks, list) or len(files) != len(ranks):
            raise RecordError(f"{media.name} and {rank.name} must be lists of equal length")
        places = [_mean(value, rank.name) for value in ranks]
        if len(set(places)) < 2:
            raise LeftOut("no two candidates of different rank")
        return [
            {"first": files[i], "second": files[j], "first_rank": places[i], "second_rank": places[j]}
            for i, j in combinations(range(len(files)), 2)
            if places[i] != places[j]
        ]

    return _of_each(rows, pairs, first=1)


def best_and_worst(rows: Rows, finder: Finder, declared: Mapping[str, Any]) -> Iterator[PairRow]:
    """Yield the best and the worst picture of each prompt, in rows of one scored picture each (arXiv 2503.05236).

    Keeps two rows a prompt in memory. A prompt that most annotators of its pictures call meaningless is left out, as
    are prompts whose pictures all score the same: they have no best.
    """
    media, score, group, prompt = (
        finder.column(declared[key], where=f"pairs.{key}") for key in ("media", "score", "group", "prompt")
    )
    flag = finder.column(declared["meaningless"], where="pairs.meaningless") if "meaningless" in declared else None
    extremes: dict[tuple[str, str], list[tuple[float, int, Mapping[str, Any]]]] = {}
    flags: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0])  # sum and number
    for number, row in rows:
        try:
            values = _as_row(row)
            mean = _mean(score.get(values), score.name)
            key = (str(group.get(values)), str(prompt.get(values)))
            meaningless = 0.0 if flag is None else _mean(flag.get(values), flag.name)
        except RecordError as error:
            yield PairRow(number, 0, error)
            continue
        flags[key][0] += meaningless
        flags[key][1] += 1
        rated = [*extremes.get(key, []), (mean, number, values)]
        rated.sort(key=lambda item: (-item[0], item[1]))
        extremes[key] = [rated[0], rated[-1]] if len(rated) > 1 else rated
    for key, rated in extremes.items():
        (high, number, best), (low, _, worst) = rated[0], rated[-1]
        if flags[key][0] > 0.5 * flags[key][1]:
            yield PairRow(number, 0, LeftOut("most annotators call the prompt meaningless"))
        elif high == low:
            yield PairRow(number, 0, LeftOut("all pictures of the prompt score the same"))
        else:
            pair = {"first": media.get(best), "second": media.get(worst), "first_score": high, "second_score": low}
            yield PairRow(number, 0, {**best, **pair})


def clips(rows: Rows, finder: Finder, declared: Mapping[str, Any]) -> Iterator[PairRow]:
    """Yield pairs whose clips are indices into `metadata.json`, less its clips under `min_seconds` (VideoDPO).

    The indices count the entries that are left, so a filter other than the authors' would shift every one of them.
    """
    file = Path(declared["folder"]) / declared["metadata"]
    try:
        entries = read_json(file.read_bytes())
        basics = [entry["basic"] for entry in entries]
        paths = [basic["clip_path"] for basic in basics if basic["clip_duration"] >= declared["min_seconds"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file}: expected a list of {{basic: {{clip_path, clip_duration}}}} ({error!r})") from error
    columns = [finder.column(declared[side], where=f"pairs.{side}") for side in ("first", "second")]

    def pairs(values: Mapping[str, Any]) -> list[dict[str, Any]]:
        indices = [column.get(values) for column in columns]
        if not all(type(index) is int and 0 <= index < len(paths) for index in indices):
            raise RecordError(f"clips {indices} are not in {file.name}, which holds {len(paths)}")
        return [{"first": paths[indices[0]], "second": paths[indices[1]]}]

    return _of_each(rows, pairs)


def halves(rows: Rows, finder: Finder, declared: Mapping[str, Any]) -> Iterator[PairRow]:
    """Yield pairs whose media are one flat list: its first half is candidate 1, its second half candidate 2."""
    media = finder.column(declared["media"], where="pairs.media")

    def pairs(values: Mapping[str, Any]) -> list[dict[str, Any]]:
        files = media.get(values)
        if not isinstance(files, list) or not files or len(files) % 2:
            raise RecordError(f"{media.name} is {str(files)[:60]}; expected a list of even length")
        return [{"first": files[: len(files) // 2], "second": files[len(files) // 2 :]}]

    return _of_each(rows, pairs)


# Pairing -> its function, the keys it needs and those it may have, and the columns it adds to a row.
PAIRINGS: dict[str, tuple[Pairing, set[str], set[str], tuple[str, ...]]] = {
    "plain": (plain, set(), set(), ()),
    "ranked": (ranked, {"media", "rank"}, set(), ("first", "second", "first_rank", "second_rank")),
    "best_and_worst": (
        best_and_worst,
        {"media", "score", "group", "prompt"},
        {"meaningless"},
        ("first", "second", "first_score", "second_score"),
    ),
    "halves": (halves, {"media"}, set(), ("first", "second")),
    "clips": (clips, {"first", "second", "metadata", "min_seconds"}, set(), ("first", "second")),
}


def _of_each(
    rows: Rows, pairs: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]], *, first: int = 0
) -> Iterator[PairRow]:
    """Yield each row with what each of its pairs adds, numbered from `first`; or what is wrong with the row."""
    for number, row in rows:
        try:
            values = _as_row(row)
            added = pairs(values)
        except RecordError as error:
            yield PairRow(number, 0, error)
            continue
        for part, pair in enumerate(added, start=first):
            yield PairRow(number, part, {**values, **pair})


def _as_row(value: Any) -> Mapping[str, Any]:
    if isinstance(value, RecordError):
        raise value
    if not isinstance(value, Mapping):
        raise RecordError(f"expected an object, found {type(value).__name__}")
    return value


def _mean(value: Any, name: str) -> float:
    """Return the mean of a list of numbers, or a number as it is."""
    numbers = value if isinstance(value, list) else [value]
    good = [n for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)]
    if not numbers or len(good) < len(numbers):
        raise RecordError(f"{name} is {str(value)[:60]}; expected finite numbers")
    return math.fsum(good) / len(good)
