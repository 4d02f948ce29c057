"""The rows of a benchmark, from the Hub, a file or a folder, and their media as files.

>>> Row({"id": "kite", "label": 1}, part="test", number=1).pick("id", "image")
Traceback (most recent call last):
    ...
unifiedreward_think.errors.RecordError: no column 'image'; found 'id', 'label'; expected 'id', 'image'
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlparse

from unifiedreward_think.checksums import differing, read_checked, summed
from unifiedreward_think.data.sources import readers
from unifiedreward_think.errors import RecordError
from unifiedreward_think.records import digest
from unifiedreward_think.strict_json import read_json, read_json_lines
from unifiedreward_think.writing import keep, write_whole

SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TIMEOUT = 60  # seconds a server may take to answer


class Row(NamedTuple):
    """One row of a benchmark.

    Attributes:
        values: its columns, as they are.
        part: the Hub configuration or the file (without suffix) it comes from.
        number: its place among all rows read, from 1.
    """

    values: Mapping[str, Any]
    part: str
    number: int

    def pick(self, *columns: str) -> list[Any]:
        """Return the values of columns.

        Raises:
            RecordError: a column is absent; the message names those found and those expected.
        """
        for column in columns:
            if column not in self.values:
                present, expected = (", ".join(map(repr, names)) for names in (self.values, columns))
                raise RecordError(f"no column {column!r}; found {present}; expected {expected}")
        return [self.values[column] for column in columns]


def read_rows(source: str, *, split: str, config: str | None) -> Iterator[Row]:
    """Yield the rows of a benchmark in order.

    Args:
        source: a file, a folder with files of one kind (SUFFIXES), or a Hub name.
        split: of the Hub's data set.
        config: configuration of the Hub's data set.

    Raises:
        RecordError: there is nothing to read, or a file cannot be read.
    """
    path = Path(source)
    if path.exists():
        values = ((file.stem, row) for file in _files(path) for row in _read(file))
    elif _HUB_NAME.fullmatch(source) and path.suffix.lower() not in SUFFIXES:
        values = ((config or split, row) for row in _read_hub(source, split, config))
    else:
        raise RecordError(f"{source}: no such file or folder, and no Hub name (owner/name); check the path")
    number = 0
    for number, (part, row) in enumerate(values, start=1):
        yield Row(row, part, number)
    if not number:
        raise RecordError(f"{source}: holds no row")


def unique_id(name: str, *content: str) -> str:
    """Return an id for rows whose own ids repeat: the name and a hash of the content.

    >>> unique_id("mmmu-7", "What?", "a", "b")
    'mmmu-7:5335eddf'
    """
    return f"{name}:{digest(*content) % 16**8:08x}"


def media_file(value: Any, *, root: Path | None, cache: Path) -> str:
    """Return the path of an image, a video or a folder of frames that a row names or holds.

    A path starts from `root`. A URL stands for the file of its name in `root`; without `root` it is fetched once. Bytes
    are stored as they are in `cache`, named by their content. Whether a file exists is seen when it is judged.

    Raises:
        RecordError: the value is none of these, or a relative path without a root.
    """
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        name = value.get("path") or ""
        if value.get("bytes") is None:
            return media_file(name, root=root, cache=cache)
        return _stored(value["bytes"], Path(name).suffix, cache)
    if isinstance(value, bytes):
        return _stored(value, "", cache)
    if not isinstance(value, str) or not value:
        raise RecordError(f"media is {str(value)[:60]!r}; expected a path, a URL or an image with its bytes")
    if value.startswith(("http://", "https://")):
        name = PurePosixPath(urlparse(value).path).name
        return str(root / name) if root else _fetched(value, name, cache)
    if root is None and not Path(value).is_absolute():
        raise RecordError(f"media {value!r} is a relative path; name its folder with --media-root")
    return str((root or Path()) / value)


def _files(path: Path) -> list[Path]:
    """Return a file, or the files of a folder, of one kind and in the order of their names."""
    files = [path] if path.is_file() else readers.visible_files(path, SUFFIXES)
    kinds = sorted({file.suffix.lower() for file in files})
    if not files or not set(kinds) <= set(SUFFIXES):
        raise RecordError(f"{path}: no file of a known kind; expected one of {', '.join(SUFFIXES)}")
    if len(kinds) > 1:
        raise RecordError(f"{path}: holds files of several kinds ({', '.join(kinds)}); name one file or folder")
    return files


def _read(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a file; MMRB2 keeps its list under "pairs"."""
    kind = path.suffix.lower()
    if kind == ".jsonl":
        yield from (row for _, row in read_json_lines(path))
    elif kind == ".json":
        yield from _read_json(path)
    else:
        for number, row in readers.read_rows(path):
            if isinstance(row, RecordError):
                raise RecordError(f"{path}: row {number}: {row}")
            yield row


def _read_json(path: Path) -> list[Mapping[str, Any]]:
    try:
        value = read_json(path.read_bytes())
    except ValueError as error:
        raise RecordError(f"{path}: not valid JSON ({error}); name it .jsonl if each line is an object") from error
    rows = value.get("pairs") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RecordError(f"{path}: expected a JSON list of objects, or one under 'pairs'")
    return rows


def _read_hub(name: str, split: str, config: str | None) -> Iterator[Mapping[str, Any]]:
    """Yield rows with pictures as their original bytes: decoding and saving them again would change pixels."""
    from datasets import load_dataset

    for table in load_dataset(name, config, split=split).with_format("arrow").iter(batch_size=64):
        yield from table.to_pylist()


def _stored(data: bytes, suffix: str, cache: Path) -> str:
    file = cache / f"{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
    keep(file, data)
    return str(file)


def _fetched(url: str, name: str, cache: Path) -> str:
    """Return the file of a URL, fetched if it is not there; one that cannot be had becomes an error row when judged.

    Beside its folder stands the digest of what was fetched. A file that is another is set aside and fetched again.
    """
    folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
    file, digest = folder / name, folder.with_suffix(".json")
    if differing(folder, read_checked(digest) or {name: ""}):
        with suppress(FileNotFoundError):
            file.rename(f"{file}.damaged")
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
                data = answer.read()
        except (OSError, HTTPException) as error:  # the second one is a connection that ends too early
            print(f"{url}: cannot be fetched ({error})", file=sys.stderr)
        else:
            write_whole(file, data, cache=True)
            write_whole(digest, json.dumps(summed({name: hashlib.sha256(data).hexdigest()})), cache=True)
    return str(file)
