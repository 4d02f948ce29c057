r"""Judge a benchmark and report: its authors' metric, the one the paper printed, and ours with intervals.

    python benchmark_evaluation/vl_rewardbench.py --model outputs/grpo --output outputs/vl_rewardbench
    python benchmark_evaluation/vl_rewardbench.py --replay outputs/vl_rewardbench/judgments.jsonl \
        --output outputs/vl_rewardbench                            # every number again, without model and data

Writes config.yaml, records.jsonl, judgments.jsonl (a rerun goes on from it), results.json and report.html into the
output folder. A benchmark is two functions, from a row to a record and from judgments to the metrics of its authors.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from unifiedreward_think.backends import Backend
from unifiedreward_think.backends.choose import add_arguments, make_backend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.evaluation.rescore import rescore
from unifiedreward_think.evaluation.sources import Row, media_file, read_rows
from unifiedreward_think.evaluation.tables import headline, numbers
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.protocol import Protocol
from unifiedreward_think.judging.store import load_judgments, write_evaluation
from unifiedreward_think.media import DECODERS, FrameSampling
from unifiedreward_think.metrics import group_accuracy, summarize
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.provenance import config_yaml
from unifiedreward_think.records import Judgment, PreferenceRecord, json_lines, read_json_lines
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
    config: str | None = None,
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
        config: configuration of the Hub's data set by default.
        about: description of the command; the report quotes what it says of the metrics.
        arguments: the command line; that of the process by default.
        backend: judges in place of the model that the arguments name.
    """
    parser = _parser(name, data, split, config, about)
    args = parser.parse_args(arguments)
    if args.model is None and args.replay is None and backend is None:
        parser.error("name a --model, or stored judgments with --replay")
    if args.data is None and args.replay is None:
        args.data = data
        if data is None:
            parser.error("name the rows with --data: this benchmark is not on the Hub in a form that can be loaded")
    if args.votes > 1 and args.temperature == 0:
        parser.error("--votes needs a --temperature above 0: greedy answers are all the same")
    try:
        records, left_out = _load(args, to_record)
        judgments = _replayed(args, name, records) if args.replay else _judged(args, name, records, backend)
        results = {
            "benchmark": name,
            "records": len(records),
            "left_out": left_out,
            **aggregate(judgments, args.tie_margin),
            "strict": summarize(judgments),
        }
        if group is not None:
            results["strict"] |= group_accuracy(judgments, {record.id: group(record) for record in records})
        _write(args, name, records, judgments, results, about)
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    return results


def _parser(name: str, data: str | None, split: str, config: str | None, about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_arguments(parser)
    source = f"Hub name, file or folder with the rows (default: {data})" if data else "file or folder with the rows"
    add("--data", help=source)
    add("--split", default=split, help=f"of a Hub data set (default: {split})")
    add("--config", default=config, help=f"configuration of a Hub data set (default: {config})")
    add("--media-root", type=Path, help="folder that media paths start from (default: that of the rows)")
    stored = "score stored judgments again, without a model; the records.jsonl beside them stands for --data"
    add("--replay", type=Path, metavar="JUDGMENTS", help=stored)
    add("--output", type=Path, default=Path("outputs", name), help=f"folder to write (default: outputs/{name})")
    add("--limit", type=int, help="only the first N pairs")
    add("--orders", choices=["one", "both"], default="both", help="orders each pair is shown in")
    add("--order-seed", type=int, default=0, help="decides the order shown, where it is one")
    add("--votes", type=int, default=1, help="samples of each pair and order")
    add("--temperature", type=float, default=0.0, help="of sampling; 0 is greedy")
    add("--top-p", type=float, default=1.0, help="nucleus of sampling")
    add("--seed", type=int, default=0, help="of sampling")
    add(
        "--tie-margin",
        type=float,
        help="call a tie where the score sums differ by this at most in the mean over votes (default: never)",
    )
    add("--style", choices=["cot", "direct"], default="cot", help="chain of thought or answer alone")
    add("--layout", choices=["one_line", "three_line"], default="one_line", help="how the prompt asks for a dimension")
    add("--prompt-dir", help="folder of prompt templates of your own")
    add("--max-new-tokens", type=int, default=2048, help="limit of an answer")
    add("--frames", type=int, default=8, help="frames of each video")
    add("--decoder", choices=DECODERS, default="decord", help="reads the videos")
    add("--frame-cache", type=Path, default=Path("outputs/frames"), help="keeps decoded frames")
    add("--native-video", action="store_true", help="show videos as videos, not as pictures: released Qwen checkpoints")
    add("--media-cache", type=Path, default=Path("outputs/media"), help="keeps media that rows hold or link to")
    add("--max-examples", type=int, default=40, help="pairs shown in the report")
    return parser


def _load(args: argparse.Namespace, to_record: ToRecord) -> tuple[list[PreferenceRecord], dict[str, int] | None]:
    """Return the records, and by part how many rows fit no task (None: unknown, the rows were not read)."""
    if args.data is None:
        path = args.replay.parent / "records.jsonl"
        if not path.is_file():
            raise RecordError(f"{path}: no such file; name the rows with --data")
        return _stored_records(path)[: args.limit], None
    records: dict[str, PreferenceRecord] = {}
    left_out = Counter[str]()
    for row, record in _records(args, to_record):
        if record is None:
            left_out[row.part] += 1
        elif records.setdefault(record.id, record) is not record:
            raise RecordError(f"{args.data}: row {row.number} ({row.part}): duplicate id {record.id!r}; remove one")
        if len(records) == args.limit:
            break
    if not records:
        raise RecordError(f"{args.data}: holds no pair that one of the four tasks can show")
    return list(records.values()), dict(left_out)


def _stored_records(path: Path) -> list[PreferenceRecord]:
    return [PreferenceRecord.from_json(row) for _, row in read_json_lines(path)]


def _records(args: argparse.Namespace, to_record: ToRecord) -> Iterator[tuple[Row, PreferenceRecord | None]]:
    path = Path(args.data)
    root = args.media_root or (path if path.is_dir() else path.parent if path.is_file() else None)
    media = partial(media_file, root=root and root.absolute(), cache=args.media_cache.absolute())
    for row in read_rows(args.data, split=args.split, config=args.config):
        try:
            yield row, to_record(row, media)
        except RecordError as error:
            raise RecordError(f"{args.data}: row {row.number} ({row.part}): {error}") from error


def _judged(
    args: argparse.Namespace, name: str, records: Sequence[PreferenceRecord], backend: Backend | None
) -> list[Judgment]:
    protocol = Protocol(
        prompts=load_prompts(args.style, layout=args.layout, folder=args.prompt_dir),
        style=args.style,
        sampling=Sampling(
            temperature=args.temperature, top_p=args.top_p, max_new_tokens=args.max_new_tokens, seed=args.seed
        ),
        frames=_frames(args),
        samples=args.votes,
        orders=args.orders,
        order_seed=args.order_seed,
        native_video=args.native_video,
    )
    config = config_yaml(vars(args), benchmark=name)
    return judge(records, backend or make_backend(args), protocol, args.output / "judgments.jsonl", config=config)


def _replayed(args: argparse.Namespace, name: str, records: Sequence[PreferenceRecord]) -> list[Judgment]:
    """Return stored judgments in the order of the records, read by the parser of today, labelled by the records."""
    stored: dict[str, list[Judgment]] = defaultdict(list)
    for row in rescore(load_judgments(args.replay).values(), style=args.style)[0]:
        stored[row.record_id].append(row)
    if missing := [record.id for record in records if record.id not in stored]:
        text = f"{len(missing)} of {len(records)} pairs are not judged, the first is {missing[0]!r}"
        raise RecordError(f"{args.replay}: {text}; finish the run, or use --limit")
    rows = [
        replace(row, preferred=record.preferred, source=record.source, group=record.group)
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
    write_whole(args.output / "config.yaml", config_yaml(vars(args), benchmark=name))
    return rows


def _frames(args: argparse.Namespace) -> FrameSampling:
    return FrameSampling(frames=args.frames, cache=args.frame_cache, decoder=args.decoder)


def _write(
    args: argparse.Namespace,
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
        sampling=_frames(args),
        published=published,
        about=_prose(about or ""),
        max_examples=args.max_examples,
    )
    print("\n".join(map(str, numbers(published))))
    print(f"strict {headline(results['strict'])} -> {args.output / 'results.json'}")


def _prose(about: str) -> str:
    r"""Return what a script's docstring says of its metrics, without title and commands.

    >>> _prose("MMRB2: pairs.\n\n    python mmrb2.py\n\nOfficial: both\norders count.")
    'Official: both orders count.'
    """
    parts = about.strip().split("\n\n")[1:]
    return " ".join(" ".join(part.split()) for part in parts if not part.startswith(" "))
