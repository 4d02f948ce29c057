"""Load and check preference data: every unusable row is found, named and counted before any training starts.

    python -m unifiedreward_think.data.formats.loading train.json --media-root pictures    # check files by hand

>>> try:
...     load_records(["missing.jsonl"])
... except DataError as error:
...     print(error)
missing.jsonl: no such file; check the path

The shape of a row is told by its keys: our own records and traces (`PreferenceRecord.to_json`, `Trace.to_json`) or the
two released ones (`released.py`). Files are JSONL (`.jsonl`) or a JSON list (`.json`).
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from unifiedreward_think.data.arguments import FRAMES, ShownArguments, frame_sampling
from unifiedreward_think.data.formats.files import (
    REASON_LIMIT,
    BadRow,
    DataError,
    Place,
    data_file,
    format_bad_rows,
    read_values,
)
from unifiedreward_think.data.formats.opening import media_problems
from unifiedreward_think.data.formats.shapes import Origin, read_record, read_trace
from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import RecordError
from unifiedreward_think.flags import Parser
from unifiedreward_think.forms import PAIRWISE, Form
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.plain_text import holds_control
from unifiedreward_think.records import PreferenceRecord, Trace
from unifiedreward_think.terminal import note

Row = TypeVar("Row", PreferenceRecord, Trace)
FIX = "fix these rows, or leave them out on purpose with skip_bad"


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Row]):
    """What a set of files holds.

    Attributes:
        rows: the usable rows in the order of the files.
        bad: the others; empty unless bad rows are skipped.
        places: where each of `rows` stands.
    """

    rows: list[Row] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def only(self, wanted: Callable[[Row], bool] = lambda row: True, *, limit: int | None = None) -> Loaded[Row]:
        """Return the first `limit` of the usable rows that are wanted, with their places, and the bad ones."""
        return self._chosen([i for i, row in enumerate(self.rows) if wanted(row)][:limit], self.bad)

    def without(self, reasons: Sequence[str]) -> Loaded[Row]:
        """Return the rows whose reason is "", with their places; the others are among the bad ones, with theirs."""
        bad = [
            BadRow(*place, record_of(row).id, reason[:REASON_LIMIT])
            for row, place, reason in zip(self.rows, self.places, reasons, strict=True)
            if reason
        ]
        return self._chosen([i for i, reason in enumerate(reasons) if not reason], self.bad + bad)

    def _chosen(self, numbers: Sequence[int], bad: list[BadRow]) -> Loaded[Row]:
        return Loaded([self.rows[i] for i in numbers], bad, [self.places[i] for i in numbers])


def load_records(
    files: Sequence[str],
    *,
    media_root: str | None = None,
    skip_bad: bool = False,
    need_label: bool = True,
    form: Form = PAIRWISE,
) -> Loaded[PreferenceRecord]:
    """Read records from records, traces (their record is taken) and released rows of both kinds.

    Ties are labels and are returned. Media are not opened: see `load_checked_records`.

    Args:
        files: `.jsonl` or `.json` files. A released row without an id is called "<file stem>-<line or item number>",
            with the folder's name in front where two of the files have the same stem.
        media_root: folder that relative media paths start from; by default the folder of their data file.
        skip_bad: return unusable rows in `bad` in place of raising.
        need_label: a record without a label is unusable.
        form: what will be asked; a record that cannot be asked so is unusable.

    Raises:
        DataError: a file is missing, empty, of unknown kind or no JSON list; or, after all files were read, a row is
            unusable and `skip_bad` is off; or no usable row is left.
    """

    def read(row: Mapping[str, Any], origin: Origin) -> PreferenceRecord:
        record = read_record(row, origin)
        if misfit := form.misfit(record):
            raise RecordError(misfit)
        if need_label and record.preferred is None and not form.decides(record):
            raise RecordError('preferred is missing; write 1, 2 or "tie" (or scores and their scale)')
        return record

    return settle(_load(files, read, media_root), skip_bad=skip_bad)


def undecided(records: Iterable[PreferenceRecord]) -> dict[str, int]:
    """Return how many records have no winner, which stages that need one leave out."""
    labels = [record.preferred for record in records]
    return {"ties left out": labels.count("tie"), "unlabelled pairs left out": labels.count(None)}


def load_traces(
    files: Sequence[str], *, media_root: str | None = None, skip_bad: bool = False, form: Form = PAIRWISE
) -> Loaded[Trace]:
    """Read traces from our own trace files and the released SFT files.

    A record may have one trace in each order. `form` reads the completions; the other arguments and the errors are
    those of `load_records`.
    """
    return settle(_load(files, partial(read_trace, form=form), media_root), skip_bad=skip_bad)


def load_checked_records(
    files: Sequence[str],
    *,
    sampling: FrameSampling,
    media_root: str | None = None,
    skip_bad: bool = False,
    need_label: bool = True,
    limit: int | None = None,
    form: Form = PAIRWISE,
) -> Loaded[PreferenceRecord]:
    """Load records, then open all of their media once; errors as in `load_records`, unreadable media included.

    With a `limit`, only so many usable rows are taken, and no media of others are opened.
    """
    read = partial(load_records, media_root=media_root, skip_bad=skip_bad, need_label=need_label, form=form)
    loaded = read(files).only(limit=limit)
    _note_control_tokens(loaded.rows)
    return settle(_without_bad_media(loaded, sampling), skip_bad=skip_bad)


def load_checked_traces(
    files: Sequence[str],
    *,
    sampling: FrameSampling,
    media_root: str | None = None,
    skip_bad: bool = False,
    form: Form = PAIRWISE,
) -> Loaded[Trace]:
    """Load traces, then open all of their media once; errors as in `load_records`, unreadable media included."""
    loaded = load_traces(files, media_root=media_root, skip_bad=skip_bad, form=form)
    _note_control_tokens(loaded.rows)
    return settle(_without_bad_media(loaded, sampling), skip_bad=skip_bad)


def settle(loaded: Loaded[Row], *, skip_bad: bool) -> Loaded[Row]:
    """Return `loaded` if it can be trained on.

    Raises:
        DataError: there are bad rows and `skip_bad` is off, or no usable row is left.
    """
    if loaded.bad and not skip_bad:
        total = len(loaded.rows) + len(loaded.bad)
        report = format_bad_rows(loaded.bad)
        raise DataError(f"{len(loaded.bad)} of {total} rows cannot be used:\n{report}\n{FIX}")
    if not loaded.rows:
        raise DataError(f"no usable row is left:\n{format_bad_rows(loaded.bad)}")
    return loaded


def _load(
    files: Sequence[str], read: Callable[[Mapping[str, Any], Origin], Row], media_root: str | None
) -> Loaded[Row]:
    """Read every row of all files, sorting out those that `read` refuses and those whose id was seen before."""
    loaded: Loaded[Row] = Loaded()
    paths = [data_file(name) for name in files]
    if not paths:
        raise DataError("no data file is given; name at least one")
    seen: dict[tuple[str, ...], Place] = {}
    stems = Counter(path.stem for path in paths)
    for path in paths:
        root = (path.parent if media_root is None else Path(media_root)).absolute()
        stem = path.stem if stems[path.stem] == 1 else f"{path.absolute().parent.name}/{path.stem}"
        for number, value in read_values(path):
            place = Place(str(path), number)
            try:
                item = read(_as_object(value), Origin(f"{stem}-{number}", stem, root))
                _check_first(_key(item), place, seen)
            except RecordError as error:
                loaded.bad.append(BadRow.of(place, value, str(error)))
                continue
            loaded.rows.append(item)
            loaded.places.append(place)
    return loaded


def _as_object(value: Any) -> dict[str, Any]:
    if isinstance(value, RecordError):
        raise value
    if not isinstance(value, dict):
        raise RecordError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _check_first(key: tuple[str, ...], place: Place, seen: dict[tuple[str, ...], Place]) -> None:
    name, order, *_ = key
    first = seen.setdefault(key, place)
    if first is not place:
        what = f"the same trace in order {order!r} of record {name!r} again" if order else f"duplicate id {name!r}"
        raise RecordError(f"{what}; the first is at {first}")


def _key(item: PreferenceRecord | Trace) -> tuple[str, ...]:
    """Return what may come once: a record; a trace, of which a record may have several (`keep: all`)."""
    return (item.record.id, item.order, item.completion) if isinstance(item, Trace) else (item.id, "")


def record_of(item: PreferenceRecord | Trace) -> PreferenceRecord:
    """Return a record, or that of a trace."""
    return item.record if isinstance(item, Trace) else item


def _note_control_tokens(rows: Sequence[PreferenceRecord | Trace]) -> None:
    completions = [row.completion if isinstance(row, Trace) else "" for row in rows]
    if count := sum(map(holds_control, map(record_of, rows), completions)):
        subject = "1 row holds" if count == 1 else f"{count} rows hold"
        note(f"{subject} control tokens of a model in its texts, such as <|im_end|>: shown as text")


def _without_bad_media(loaded: Loaded[Row], sampling: FrameSampling) -> Loaded[Row]:
    return loaded.without(media_problems([record_of(row) for row in loaded.rows], sampling))


def _count(records: Sequence[PreferenceRecord]) -> str:
    """Return a table of the records by task and label."""
    counts = Counter((record.task, str(record.preferred)) for record in records)
    labels = ("1", "2", "tie", "None")
    lines = [f"{'task':<22}" + "".join(f"{name:>8}" for name in [*labels, "total"])]
    for task in sorted({record.task for record in records}):
        cells = [counts[task, label] for label in labels]
        lines.append(f"{task:<22}" + "".join(f"{n:>8}" for n in [*cells, sum(cells)]))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check data files from the command line; return 1 if a row cannot be used."""
    parser = Parser("Check preference data and count it by task and label.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="data files, .jsonl or .json")
    parser.add_argument("--kind", choices=["records", "traces"], default="records", help="what the rows must be")
    parser.add_argument("--media-root", help="folder of the media (default: that of each data file)")
    parser.add(ShownArguments, *FRAMES)
    args = parser.parse_args(arguments)
    load = load_checked_traces if args.kind == "traces" else load_checked_records
    with tempfile.TemporaryDirectory() as folder:
        sampling = frame_sampling(args, Path(folder))
        try:
            loaded = load(args.files, sampling=sampling, media_root=args.media_root, skip_bad=True)
        except DataError as error:
            print(error, file=sys.stderr)
            return 1
    print(_count([record_of(row) for row in loaded.rows]))
    if loaded.bad:
        print(f"{len(loaded.bad)} rows cannot be used:\n{format_bad_rows(loaded.bad)}", file=sys.stderr)
    return 1 if loaded.bad else 0


if __name__ == "__main__":
    run_main(lambda: sys.exit(main()))
