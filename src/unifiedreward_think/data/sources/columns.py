r"""Where a value stands in a row of a source, found once by the columns that are there.

>>> finder = Finder("demo", ["prompt", "image1", "votes_image1"], {})
>>> finder.column("prompt", where="prompt").get({"prompt": "a kite"})
'a kite'
>>> finder.column({"match": "votes_?(image)?_?1"}, where="label.first").get({"votes_image1": 7})
7
>>> spec = {"column": "prompt", "pattern": r"a (\w+)"}
>>> finder.column(spec, where="prompt").get({"prompt": "a kite"})
'kite'
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.errors import RecordError

Spec = Any  # a name, a dotted path, or {column | any | match, pattern, once}: what YAML holds
SPEC_KEYS = {"column", "any", "match", "pattern", "once"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a source; `get` returns its value in a row.

    Attributes:
        name: of the top-level column.
        get: row -> value.

    `get` raises RecordError for a row without the column, without what the path leads to, or without a match.
    """

    name: str
    get: Callable[[Mapping[str, Any]], Any]


class Finder:
    """Turns what a declaration says of columns into columns that exist.

    Args:
        source: name of the declaration, for errors.
        found: the columns of the data.
        renamed: expected name -> the name found, as given on the command line.
    """

    def __init__(self, source: str, columns: Sequence[str], renamed: Mapping[str, str]) -> None:
        self._source, self._found, self._renamed = source, list(columns), renamed

    def column(self, spec: Spec, *, where: str) -> Column:
        """Return the column a specification means.

        Raises:
            DataError: no such column; the message names those found, those expected, and the closest.
        """
        parts = spec if isinstance(spec, Mapping) else {"column": str(spec)}
        if set(parts) - SPEC_KEYS or len(set(parts) & {"column", "any", "match"}) != 1:
            raise DataError(f"source {self._source}: {where}: expected one of column, any, match, found {spec!r}")
        places = self._find(parts, where)
        name, get = places[0][0], _first_that_fits([_getter(*place) for place in places])
        return Column(name, _searcher(get, parts, where) if "pattern" in parts else get)

    def _find(self, parts: Mapping[str, Any], where: str) -> list[tuple[str, list[str]]]:
        """Return the columns that exist of those a specification names, each with the path into its values."""
        if "match" in parts:
            names = [name for name in self._found if re.fullmatch(parts["match"], name, re.IGNORECASE)]
            if len(names) == 1:
                return [(names[0], [])]
            raise self._error([f"one that matches {parts['match']!r}"], where, names)
        wanted = list(parts["any"]) if "any" in parts else [parts["column"]]
        places = []
        for full in wanted:
            head, *path = [full] if full in self._found else str(full).split(".")
            head = self._renamed.get(head, head)
            if head in self._found:
                places.append((head, path))
        if not places:
            raise self._error([str(name).split(".")[0] for name in wanted], where, [])
        return places

    def _error(self, wanted: Sequence[str], where: str, several: Sequence[str]) -> DataError:
        columns = ", ".join(map(repr, self._found)) or "none"
        text = f"source {self._source}: {where} needs the column {' or '.join(wanted)}; found {columns}"
        if several:
            return DataError(f"{text}; several match ({', '.join(several)}): write its name in the declaration")
        near = closest(wanted[0], self._found)
        hint = f"the closest is {near!r}: if it is the same, add --map {wanted[0]}={near}" if near else "none is close"
        return DataError(f"{text}; {hint}; or write the right name in the declaration")


def closest(wanted: str, names: Sequence[str]) -> str | None:
    """Return the name among `names` that is most like `wanted`, case and punctuation apart.

    >>> closest("votes_image1", ["prompt", "VotesImage_1", "votes_image_2"]), closest("prompt", ["x"])
    ('VotesImage_1', None)
    """
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    near = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", wanted.lower()), plain, n=1, cutoff=0.6)
    return plain[near[0]] if near else None


def _getter(name: str, path: Sequence[str]) -> Callable[[Mapping[str, Any]], Any]:
    def get(row: Mapping[str, Any]) -> Any:
        if name not in row:
            raise RecordError(f"no column {name!r}; found {', '.join(map(repr, row))}")
        value = row[name]
        for step in path:
            try:
                value = value[int(step) if isinstance(value, list) else step]
            except (LookupError, TypeError, ValueError) as error:
                raise RecordError(f"{name!r} holds no {'.'.join(path)!r}: {str(row[name])[:80]!r}") from error
        return value

    return get


def _first_that_fits(getters: Sequence[Callable[[Mapping[str, Any]], Any]]) -> Callable[[Mapping[str, Any]], Any]:
    """Return a getter of the first value that a row has; what the last one misses is the error."""

    def get(row: Mapping[str, Any]) -> Any:
        for getter in getters[:-1]:
            try:
                return getter(row)
            except RecordError:  # this row is not laid out so; another place may fit
                continue
        return getters[-1](row)

    return get if len(getters) > 1 else getters[0]


def _searcher(
    get: Callable[[Mapping[str, Any]], Any], parts: Mapping[str, Any], where: str
) -> Callable[[Mapping[str, Any]], Any]:
    """Return a getter of group 1 of the first pattern that fits a text: its last match, or with `once` its only one."""
    patterns = [parts["pattern"]] if isinstance(parts["pattern"], str) else parts["pattern"]
    compiled = [re.compile(pattern, re.DOTALL | re.IGNORECASE) for pattern in patterns]

    def search(row: Mapping[str, Any]) -> Any:
        text = get(row)
        if not isinstance(text, str):
            raise RecordError(f"{where}: expected a text, found {str(text)[:80]!r} ({type(text).__name__})")
        for pattern in compiled:
            if matches := pattern.findall(text):
                if parts.get("once") and len(matches) > 1:
                    raise RecordError(f"{where}: the pattern fits {len(matches)} times, expected once: {text[-120:]!r}")
                return matches[-1]
        raise RecordError(f"{where}: none of the patterns fits {text[-120:]!r}")

    return search
