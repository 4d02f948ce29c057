"""Records and traces as rows of a parquet table, and back.

>>> from tempfile import TemporaryDirectory
>>> from pyarrow import parquet
>>> record = PreferenceRecord(id="kite", task="image_generation", prompt="a kite", media=(("a.png",), ("b.png",)))
>>> with TemporaryDirectory() as folder:
...     digest = write(Path(folder, "part.parquet"), [Trace(record=record, order="ab", completion="")])
...     (row,) = parquet.read_table(Path(folder, "part.parquet")).to_pylist()
>>> read_row(row, Path("/data"), "part.parquet: row 1").record.media
(('/data/a.png',), ('/data/b.png',))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unifiedreward_think.checksums import file_sha256
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.records import PreferenceRecord, Preferred, Trace
from unifiedreward_think.writing import whole

TEXTS = ("id", "task", "prompt", "source", "group", "instruction", "judged_by")
LISTS = ("ranks", "scores", "scale", "places")
RECORD_COLUMNS = (*TEXTS[:3], "media", "answers", "preferred", *TEXTS[3:6], "margin", "votes", "judged_by", *LISTS)
TRACE_COLUMNS = ("completion", "order")


def write(path: Path, rows: Sequence[Trace]) -> str:
    """Write traces as a parquet file, whole or not at all, and return its sha256."""
    import pyarrow as pa
    from pyarrow import parquet

    texts = pa.list_(pa.string())
    numbers = pa.list_(pa.float64())
    kinds = {"media": pa.list_(texts), "answers": texts, "margin": pa.float64(), "votes": pa.int64()}
    kinds |= {"ranks": pa.list_(pa.int64()), "places": pa.list_(pa.int64()), "scores": numbers, "scale": numbers}
    values = {name: [getattr(row.record, name) for row in rows] for name in RECORD_COLUMNS}
    values["preferred"] = [None if label is None else str(label) for label in values["preferred"]]
    values |= {name: [getattr(row, name) for row in rows] for name in TRACE_COLUMNS}
    columns = {name: pa.array(column, kinds.get(name, pa.string())) for name, column in values.items()}
    with whole(path) as scratch:
        parquet.write_table(pa.table(columns), scratch, compression="zstd")
        return file_sha256(scratch)


def read_row(row: Mapping[str, Any], root: Path, place: str) -> Trace:
    """Return a row of a part, its relative media paths starting from `root`.

    Raises:
        DataError: the row was not written by `write`.
    """
    row = {"ranks": [], "scores": [], "scale": None, "places": [], **row}  # not in folders from before records had them
    if set(row) != {*RECORD_COLUMNS, *TRACE_COLUMNS}:
        raise DataError(f"{place}: no record of an import; found the columns {', '.join(row)}")
    labels: dict[str, Any] = {key: tuple(row[key]) for key in LISTS if row[key]}
    record = PreferenceRecord(
        **{key: row[key] for key in (*TEXTS, "margin", "votes")},
        **labels,
        media=tuple(tuple(path if path[0] == "/" else f"{root}/{path}" for path in entry) for entry in row["media"]),
        answers=tuple(row["answers"]),
        preferred=_preferred(row["preferred"]),
    )
    return Trace(record=record, **{key: row[key] for key in TRACE_COLUMNS})


def _preferred(text: str | None) -> Preferred | None:
    return text if text is None or text == "tie" else int(text)  # type: ignore[return-value]
