r"""Judge a benchmark and report: its authors' metric, the one the paper printed, and ours with intervals.

    python benchmark_evaluation/vl_rewardbench.py --model outputs/grpo --output outputs/vl_rewardbench
    python benchmark_evaluation/vl_rewardbench.py --replay outputs/vl_rewardbench/judgments.jsonl \
        --output outputs/vl_rewardbench                            # every number again, without model and data

Writes config.yaml, records.jsonl, judgments.jsonl (a rerun goes on from it), results.json and report.html into the
output folder. A benchmark is two functions, from a row to a record and from judgments to the metrics of its authors.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unifiedreward_think.backends import Backend
from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.evaluation.rescore import rescore
from unifiedreward_think.evaluation.sources import Row, media_file, read_rows
from unifiedreward_think.evaluation.sureness import summarize_run
from unifiedreward_think.evaluation.tables import headline, numbers
from unifiedreward_think.flags import Count, Parser, Whole, ranged, read
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.settings import JudgingArguments, set_up
from unifiedreward_think.judging.store import load_judgments, write_evaluation
from unifiedreward_think.metrics import by_record, group_accuracy
from unifiedreward_think.provenance import config_yaml, data_files
from unifiedreward_think.records import Judgment, PreferenceRecord
from unifiedreward_think.strict_json import json_lines, read_json_lines
from unifiedreward_think.writing import write_whole

Media = Callable[[Any], str]
ToRecord = Callable[[Row, Media], PreferenceRecord | None]
Aggregate = Callable[[Sequence[Judgment], float | None], dict[str, Any]]


def run_benchmark(
    name: str,
    *,
    to_record: ToRecord,
    aggregate: Aggregate,
    group: Callable[[PreferenceRecord], str] | None = None,
    data: str | None,
    split: str = "test",
    subset: str | None = None,
    about: str | None = None,
    arguments: Sequence[str] | None = None,
    backend: Backend | None = None,
) -> dict[str, Any]:
    """Run a benchmark from the command line and return what results.json says.

    Args:
        name: of the benchmark, and of the output folder by default.
        to_record: makes a record of a row, with a function from what the row holds as media to a path; None for a pair
            that none of the four tasks can show, which is counted. Raises RecordError for a row it cannot read.
        aggregate: makes the "official", "paper" and "ties" parts of the results, from judgments in the order of
            the records and the `--tie-margin`.
        group: names the group of a record for our own accuracy by group and its macro average.
        data: Hub name by default; None where it must be given.
        split: of the Hub's data set by default.
        subset: configuration of the Hub's data set by default.
        about: description of the command; the report quotes what it says of the metrics.
        arguments: the command line; that of the process by default.
        backend: judges in place of the model that the arguments name.
    """
    parser = _parser(name, data, split, subset, about)
    args = parser.parse_args(arguments)
    if args.model is None and args.replay is None and backend is None:
        parser.error("name a --model, or stored judgments with --replay")
    if args.input is None and args.replay is None:
        args.input = data
        if data is None:
            parser.error("name the rows with --input: this benchmark is not on the Hub in a form that can be loaded")
    try:
        judging = read(args, JudgingArguments)
        records, left_out = _load(args, to_record)
        rows_from = str(args.input or _beside(args.replay))
        about_run = config_yaml(vars(args), data=data_files([rows_from], {rows_from: len(records)}), benchmark=name)
        if args.replay:
            judgments = _replayed(args, records, about_run)
        else:
            config, backend = set_up(judging, backend or read(args, BackendArguments))
            judgments = judge(records, backend, config, args.output / "judgments.jsonl", config_yaml=about_run)
        results = {
            "benchmark": name,
            "records": len(records),
            "left_out": left_out,
            **aggregate(judgments, args.tie_margin),
            "strict": summarize_run(judgments),
        }
        if group is not None:
            results["strict"] |= group_accuracy(judgments, {record.id: group(record) for record in records})
        _write(args, judging, name, records, judgments, results, about)
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    return results


def _parser(name: str, data: str | None, split: str, subset: str | None, about: str | None) -> Parser:
    parser = Parser(about)
    add = parser.add_argument
    source = f"Hub name, file or folder with the rows (default: {data})" if data else "file or folder with the rows"
    add("--input", help=source)
    add("--split", default=split, help=f"of a Hub data set (default: {split})")
    add("--config", default=subset, help=f"configuration of a Hub data set (default: {subset})")
    add("--media-root", type=Path, help="folder that media paths start from (default: that of the rows)")
    stored = "score stored judgments again, without a model; the records.jsonl beside them stands for --input"
    add("--replay", type=Path, metavar="JUDGMENTS", help=stored)
    add("--output", type=Path, default=Path("outputs", name), help=f"folder to write (default: outputs/{name})")
    add("--limit", type=ranged(Count), help="only the first N pairs")
    add("--media-cache", type=Path, default=Path("outputs/media"), help="keeps media that rows hold or link to")
    add("--max-examples", type=ranged(Whole), default=40, help="pairs shown in the report")
    parser.add(JudgingArguments, without=["form", "expectation"], orders="both")  # their metrics are of pairs
    parser.add(BackendArguments)
    return parser


def _load(args: argparse.Namespace, to_record: ToRecord) -> tuple[list[PreferenceRecord], dict[str, int] | None]:
    """Return the records, and by part how many rows fit no task (None: unknown, the rows were not read)."""
    if args.input is None:
        path = _beside(args.replay)
        if not path.is_file():
            raise RecordError(f"{path}: no such file; name the rows with --input")
        return _stored_records(path)[: args.limit], None
    records: dict[str, PreferenceRecord] = {}
    left_out = Counter[str]()
    for row, record in _records(args, to_record):
        if record is None:
            left_out[row.part] += 1
        elif records.setdefault(record.id, record) is not record:
            raise RecordError(f"{args.input}: row {row.number} ({row.part}): duplicate id {record.id!r}; remove one")
        if len(records) == args.limit:
            break
    if not records:
        raise RecordError(f"{args.input}: holds no pair that one of the four tasks can show")
    return list(records.values()), dict(left_out)


def _beside(judgments: Path) -> Path:
    return judgments.parent / "records.jsonl"


def _stored_records(path: Path) -> list[PreferenceRecord]:
    return [PreferenceRecord.from_json(row) for _, row in read_json_lines(path)]


def _records(args: argparse.Namespace, to_record: ToRecord) -> Iterator[tuple[Row, PreferenceRecord | None]]:
    path = Path(args.input)
    root = args.media_root or (path if path.is_dir() else path.parent if path.is_file() else None)
    media = partial(media_file, root=root and root.absolute(), cache=args.media_cache.absolute())
    for row in read_rows(args.input, split=args.split, config=args.config):
        try:
            yield row, to_record(row, media)
        except RecordError as error:
            raise RecordError(f"{args.input}: row {row.number} ({row.part}): {error}") from error


def _replayed(args: argparse.Namespace, records: Sequence[PreferenceRecord], about_run: str) -> list[Judgment]:
    """Return stored judgments in the order of the records, read by the parser of today, labelled by the records."""
    stored = by_record(rescore(load_judgments(args.replay).values(), style=args.style)[0])
    if missing := [record.id for record in records if record.id not in stored]:
        text = f"{len(missing)} of {len(records)} pairs are not judged, the first is {missing[0]!r}"
        raise RecordError(f"{args.replay}: {text}; finish the run, or use --limit")
    rows = [
        row.labelled(record)
        for record in records
        for row in sorted(stored[record.id], key=lambda row: (row.order, row.sample))
    ]
    target = args.output / "judgments.jsonl"
    if not (target.exists() and target.samefile(args.replay)):
        text = json_lines(rows)
        if target.exists() and target.read_text(encoding="utf-8") != text:
            raise RecordError(f"{target}: holds other judgments; choose another output folder")
        args.output.mkdir(parents=True, exist_ok=True)
        write_whole(target, text)
    write_whole(args.output / "config.yaml", about_run)
    return rows


def _write(
    args: argparse.Namespace,
    judging: JudgingArguments,
    name: str,
    records: Sequence[PreferenceRecord],
    judgments: Sequence[Judgment],
    results: Mapping[str, Any],
    about: str | None,
) -> None:
    from unifiedreward_think.evaluation.report import PROTOCOLS, write_html

    known = {record.id: record for record in records}
    path = args.output / "records.jsonl"
    # What an earlier run without --limit judged is still among the judgments, so its records stay, too.
    kept = [record for record in (_stored_records(path) if path.exists() else ()) if record.id not in known]
    write_evaluation(args.output, (*records, *kept), results)
    published = {key: results[key] for key in PROTOCOLS if key in results}
    write_html(
        args.output / "report.html",
        results={name: results["strict"]},
        judgments={name: judgments},
        records=known,
        title=name,
        sampling=judging.frame_sampling,
        folders={name: args.output},
        published=published,
        about=_prose(about or ""),
        max_examples=args.max_examples,
    )
    print("\n".join(map(str, numbers(published))))
    print(f"ours: {headline(results['strict'])} -> {args.output / 'results.json'}")


def _prose(about: str) -> str:
    r"""Return what a script's docstring says of its metrics, without title and commands.

    >>> _prose("MMRB2: pairs.\n\n    python mmrb2.py\n\nOfficial: both\norders count.")
    'Official: both orders count.'
    """
    parts = about.strip().split("\n\n")[1:]
    return " ".join(" ".join(part.split()) for part in parts if not part.startswith(" "))
