"""Data files as numbered JSON values, and the report of the rows among them that cannot be used.

>>> print(BadRow("train.jsonl", 3, "kite-1", "preferred is 7"))
train.jsonl:3: record 'kite-1': preferred is 7
>>> print(BadRow("train.json", 2, "", "no object"))
train.json: item 2: no object
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.strict_json import read_json
from unifiedreward_think.terminal import note

LISTED = 20
REASON_LIMIT = 500  # a value quoted in a reason can be of any length
SUFFIXES = (".json", ".jsonl")


class DataError(InputError):
    """Data files that cannot be used; the message names file, line and record, and the fix."""


class LeftOut(RecordError):
    """A sound row that is left out on purpose, such as one with too few votes; the message is the reason."""


class Place(NamedTuple):
    """A row of a data file: the line (from 1) of a JSONL file, the number of the item (from 1) of a JSON list."""

    file: str
    line: int

    def __str__(self) -> str:
        """Return 'train.jsonl:3' or 'train.json: item 3'."""
        return f"{self.file}: item {self.line}" if self.file.lower().endswith(".json") else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why.

    Attributes:
        file: the data file, "" if unknown.
        line: line of a JSONL file or item number of a JSON list, from 1; 0 if unknown.
        record_id: "" if the row has no readable id.
        reason: what is wrong and how to fix it.
    """

    file: str
    line: int
    record_id: str
    reason: str

    @classmethod
    def of(cls, place: Place, value: Any, reason: str) -> BadRow:
        """Return the row at a place, named by its own id, or by that of the record in it."""
        row = value if isinstance(value, dict) else {}
        inner = row.get("record")
        identity = inner.get("id") if isinstance(inner, dict) else row.get("id")
        name = str(identity) if isinstance(identity, str | int) else ""
        return cls(place.file, place.line, name, reason.removeprefix(f"record {name!r}: ")[:REASON_LIMIT])

    def __str__(self) -> str:
        """Return the row as one line of a report."""
        place = str(Place(self.file, self.line)) if self.file else ""
        name = f"record {self.record_id!r}" if self.record_id else ""
        return ": ".join(part for part in (place, name, self.reason) if part)


def report_left_out(bad: Sequence[BadRow]) -> None:
    """Say on stderr how many rows are left out, and which and why of the first LISTED."""
    if bad:
        note(f"{len(bad)} bad rows left out:\n{format_bad_rows(bad)}")


def format_bad_rows(bad: Sequence[BadRow]) -> str:
    """Return one line for each bad row, the first LISTED of them, and the count of the rest."""
    lines = [str(row) for row in bad[:LISTED]]
    return "\n".join(lines + ([f"... and {len(bad) - LISTED} more"] if len(bad) > LISTED else []))


def data_file(name: str) -> Path:
    """Return the path of a data file.

    Raises:
        DataError: there is no such file, or its suffix is not one of SUFFIXES.
    """
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{name}: unknown kind of file {path.suffix!r}; expected {' (list) or '.join(SUFFIXES)} (lines)"
        )
    if not path.is_file():
        raise DataError(f"{name}: no such file; check the path")
    return path


def is_url(medium: str) -> bool:
    """Whether a medium is a URL and no path.

    >>> is_url("https://example.org/a.png"), is_url("data:image/png;base64,AAAA"), is_url("data:1.png")
    (True, True, False)
    """
    return "://" in medium[:12] or (medium.startswith("data:") and "," in medium[:200])


def read_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line or item number, value) of a data file.

    A line that is no JSON comes as its RecordError, so that one broken line does not hide the rows after it. NaN is
    read as a number, and refused where a row uses it.

    Raises:
        DataError: the file holds no row, or a `.json` file is no JSON list.
    """
    count = 0
    for count, value in _read_lines(path) if path.suffix.lower() == ".jsonl" else _read_list(path):
        yield count, value
    if not count:
        raise DataError(f"{path}: holds no row; remove it from the list of files or fill it")


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = _parse(line)
            except (ValueError, RecursionError) as error:
                value = RecordError(f"not valid JSON ({error}); fix or remove the line")
            yield number, value


def _read_list(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        values = _parse(path.read_bytes() or b"[]")
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not valid JSON ({error}); fix it, or name it .jsonl if each line is an object"
        ) from error
    if not isinstance(values, list):
        raise DataError(f"{path}: expected a JSON list of rows, found {type(values).__name__}")
    yield from enumerate(values, start=1)


def parse_yaml(text: str, name: str, *, as_written: bool = False) -> dict[str, Any]:
    """Return the keys and values of a YAML text; `name` is for errors.

    Args:
        text: the YAML.
        name: of its file.
        as_written: a plain word such as `no` is a text (`yaml_loaders.AsWritten`), not the False of YAML 1.1.

    Raises:
        DataError: it is no YAML, or no keys and values.
    """
    import yaml

    from unifiedreward_think.data.formats.yaml_loaders import AsWritten, OnceEach

    try:
        values = yaml.load(text, AsWritten if as_written else OnceEach)
    # The last four: a date that does not exist, a tag whose value does not fit, brackets too deep.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{name}: not valid YAML ({error}); fix it") from error
    if not isinstance(values, dict):
        raise DataError(f"{name}: expected keys and values, found {type(values).__name__}")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise DataError(f"{name}: the key {odd[0]!r} is no text; put it in quotes")
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); check the path") from error
    return parse_yaml(text, str(path))


def _parse(text: bytes) -> Any:
    """Parse JSON; ValueError covers broken syntax, a key written twice, bytes no UTF-8, and numbers too long."""
    return read_json(text.decode("utf-8-sig"))
