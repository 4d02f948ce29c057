"""Rows of a data file, one at a time whatever its size: JSON list, JSONL, CSV, parquet, or a Hugging Face data set.

>>> [suffix for suffix in READERS]
['.json', '.jsonl', '.csv', '.parquet']

A row that cannot be read comes as its RecordError, so that one broken row does not hide those after it.
"""

from __future__ import annotations

import codecs
import csv
import fnmatch
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.errors import RecordError
from unifiedreward_think.strict_json import once_each, read_json

Advance = Callable[[int], object]  # takes the bytes read since its last call
Rows = Iterator[tuple[int, Any]]  # row number from 1, and its value

MAX_ROW_BYTES = 64 * 2**20
_CHUNK = 2**20
_BATCH = 256  # rows of a parquet file held at once: pictures may be inside
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def read_rows(path: Path, *, columns: Sequence[str] | None = None, advance: Advance = lambda size: None) -> Rows:
    """Yield the rows of a file or of a data set saved by `save_to_disk`, numbered from 1.

    Args:
        path: the file, or the folder of the data set.
        columns: those needed of a parquet file; others are not read. Names it lacks are left to the caller.
        advance: told how many bytes were read.

    Raises:
        DataError: there is no such file, its kind is unknown, or it is broken from some row on.
    """
    if (path / "dataset_info.json").is_file():
        return _saved_rows(path)
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; expected one of {', '.join(READERS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    return READERS[path.suffix.lower()](path, columns, advance)


def visible_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files of some kinds in a folder and those below it, in the order of their names.

    Hidden files and folders are no data: macOS leaves a ._name beside files on other disks, Jupyter and the Hub's tools
    keep copies in folders such as .ipynb_checkpoints.
    """
    every = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes)
    return [file for file in every if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def column_names(path: Path) -> list[str]:
    """Return the columns a parquet file names in its schema; those of other files show in their rows only."""
    import pyarrow as pa
    from pyarrow.parquet import read_schema

    if path.suffix.lower() != ".parquet":
        return []
    try:
        names: list[str] = read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: no whole parquet file ({str(error)[:200]}); fetch it again") from error
    return names


def is_hub_name(name: str) -> bool:
    """Whether a name can only be that of a data set on the Hub.

    >>> is_hub_name("ymhao/HPDv2"), is_hub_name("data/train.json"), is_hub_name("train")
    (True, False, False)
    """
    return bool(_HUB_NAME.fullmatch(name)) and Path(name).suffix.lower() not in READERS and not Path(name).exists()


def hub_commit(name: str, revision: str | None) -> str:
    """Return the commit that a revision of a data set on the Hub is now, so that all of an import reads the same one.

    Raises:
        DataError: the Hub is out of reach, or has no such data set.
    """
    from huggingface_hub import HfApi

    with _from_the_hub(name):
        return str(HfApi().dataset_info(name, revision=revision).sha)


def hub_rows(name: str, *, config: str | None, split: str, revision: str) -> Rows:
    """Yield the rows of a data set on the Hub; `split` may be a pattern (`train_*`). Pictures stay bytes.

    Raises:
        DataError: no split fits the pattern, or the Hub is out of reach.
    """
    from datasets import get_dataset_split_names, load_dataset

    with _from_the_hub(name):
        names = [split]
        if "*" in split:
            names = fnmatch.filter(get_dataset_split_names(name, config, revision=revision), split)
        if not names:
            raise DataError(f"{name}: no split fits {split!r}")
        number = 0
        for part in names:
            table = load_dataset(name, config, split=part, revision=revision, streaming=True)
            for row in _arrow_rows(table):
                yield (number := number + 1), row


@contextmanager
def _from_the_hub(name: str) -> Iterator[None]:
    """Turn what the Hub's libraries raise into one error."""
    from huggingface_hub.utils import httpx  # whichever version of it the Hub's library uses

    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise DataError(f"{name}: cannot be read from the Hub ({error}); download it and name its files") from error


def _saved_rows(path: Path) -> Rows:
    from datasets import Dataset, load_from_disk

    table = load_from_disk(path)
    if not isinstance(table, Dataset):
        raise DataError(f"{path}: holds several splits ({', '.join(table)}); name the folder of one")
    yield from enumerate(_arrow_rows(table), start=1)


def _arrow_rows(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.with_format("arrow").iter(batch_size=_BATCH):
        yield from batch.to_pylist()


def _jsonl_rows(path: Path, columns: Sequence[str] | None, advance: Advance) -> Rows:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES):
            number += 1
            advance(len(line))
            if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
                    advance(len(rest))
                yield number, RecordError(f"a line of more than {MAX_ROW_BYTES >> 20} MiB; split or remove it")
                continue
            if not line.isspace():
                yield number, _parse(line)


def _parse(line: bytes) -> Any:
    try:
        return read_json(line)
    except (ValueError, RecursionError) as error:
        if line.startswith(codecs.BOM_UTF8):
            return _parse(line[len(codecs.BOM_UTF8) :])
        return RecordError(f"not valid JSON ({error}); fix or remove the line")


def _json_rows(path: Path, columns: Sequence[str] | None, advance: Advance) -> Rows:
    """Read a JSON list item by item: only the item at hand is in memory."""
    with path.open(encoding="utf-8-sig") as file:
        try:
            yield from enumerate(_items(file, path, advance), start=1)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error}); convert it") from error


def _items(file: Any, path: Path, advance: Advance) -> Iterator[Any]:
    decoder = json.JSONDecoder(object_pairs_hook=once_each)
    text, at, count = "", 0, 0
    opened = False
    reach = _CHUNK
    while True:
        more = file.read(reach)
        advance(len(more))
        text, at = text[at:] + more, 0
        if not opened:
            text = text.lstrip()
            if text[:1] != "[":
                raise DataError(f"{path}: expected a JSON list of rows; name it .jsonl if each line is an object")
            opened, at = True, 1
        while True:
            start = _skip(text, at)
            if text[start : start + 1] == "]":
                return
            try:
                value, end = decoder.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                problem: object = error
                break
            after = _skip(text, end)
            if after >= len(text) or text[after] not in ",]":
                problem = f"neither ',' nor ']' after item {count + 1}"
                break
            yield value
            count += 1
            at = after + (text[after] == ",")
            reach = _CHUNK
        if not more or len(text) - at > MAX_ROW_BYTES:
            raise DataError(f"{path}: item {count + 1}: not valid JSON ({problem}); fix it or fetch the file again")
        reach *= 2  # an item longer than a chunk is not parsed again for every chunk


def _skip(text: str, at: int) -> int:
    """Return where the next character that is no white space stands."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _csv_rows(path: Path, columns: Sequence[str] | None, advance: Advance) -> Rows:
    csv.field_size_limit(MAX_ROW_BYTES)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(_counted(file, advance), strict=True)
        try:
            _each_once(reader.fieldnames or [], path)
            for number, row in enumerate(reader, start=1):
                whole = None not in row and None not in row.values()
                yield number, row if whole else RecordError("more or fewer cells than the header names; fix the row")
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}:{reader.line_num}: not readable as CSV ({error}); fix the line") from error


def _each_once(columns: Sequence[str], path: Path) -> None:
    if twice := [name for name, times in Counter(columns).items() if times > 1]:
        raise DataError(f"{path}: holds the column {twice[0]!r} twice; rename or remove one")


def _counted(lines: Any, advance: Advance) -> Iterator[str]:
    for line in lines:
        advance(len(line))
        yield line


def _parquet_rows(path: Path, columns: Sequence[str] | None, advance: Advance) -> Rows:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path, pre_buffer=False) as table:
            names = table.schema_arrow.names
            _each_once(names, path)
            wanted = names if columns is None else [name for name in names if name in columns] or names
            size = path.stat().st_size / max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=_BATCH, columns=wanted):
                advance(round(size * batch.num_rows))
                for row in batch.to_pylist():
                    yield (number := number + 1), row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: broken after row {number} ({str(error)[:200]}); the file is cut short or damaged: fetch it again"
        ) from error


READERS: dict[str, Callable[[Path, Sequence[str] | None, Advance], Rows]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
