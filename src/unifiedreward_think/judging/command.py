"""The command line of the scripts in `inference/`: one pair, printed, or a file of pairs, judged into a file.

With `--form pointwise` candidates are scored in place of compared, one or more. A file run writes the judgments, a row
for each vote, from which a rerun goes on, and beside them the results, a row for each pair or candidate
(`judgments.results.jsonl`). Rows that cannot be used are listed on stderr. It returns 1 if any row, pair or candidate
could not be judged.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from unifiedreward_think.backends import Backend
from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.candidate_points import Points
from unifiedreward_think.data.formats.files import report_left_out
from unifiedreward_think.data.formats.loading import Loaded, load_records
from unifiedreward_think.errors import InputError
from unifiedreward_think.flags import Count, Parser, ranged, read
from unifiedreward_think.forms import PAIRWISE, POINTWISE, Form
from unifiedreward_think.judging.api import Judge
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.order import candidate_at
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.scores import Dimension
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.votes import Result
from unifiedreward_think.writing import write_whole

SCORED = f"one or more with --form {POINTWISE.name}"


def main(
    task: str, *, about: str | None, arguments: Sequence[str] | None = None, backend: Backend | None = None
) -> int:
    """Run one of the scripts and return its exit status.

    Args:
        task: a key of TASKS.
        about: description of the command.
        arguments: the command line; that of the process by default.
        backend: judges in place of the one that the arguments name.

    Raises:
        SystemExit: with one clear message where the input, the backend or the disk is at fault.
    """
    parser = _parser(task, about)
    args = parser.parse_args(arguments)
    _check(parser, args, task)
    try:
        ways = read(args, JudgingArguments)
        loaded = _load(args, task, ways.asked_form) if args.input else None
        judge = Judge(backend or read(args, BackendArguments), task=task, **asdict(ways))
        return _pair(args, task, judge) if loaded is None else _file(args, loaded, judge)
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def describe_points(points: Points, name: str) -> str:
    """Return the points of a candidate as text: its score as it was said, the dimensions and the reasoning."""
    if points.share is None:
        return f"{name}: no score: {points.reason}"
    said = f"{points.score}, " if points.score else ""
    lines = [f"{name}: {said}{points.share:.3f} of the scale"]
    if points.expected is not None:
        lines.append(f"Expected: {points.expected:.3f} of the scale")
    lines += [f"{dimension:<24}{score:>6.3g}" for dimension, (score,) in points.dimensions]
    if (count := len(points.samples)) > 1:
        spread = "" if points.spread is None else f", standard deviation {points.spread:.3f}"
        lines.append(f"Samples: {count}, {points.unreadable} without a score{spread}")
    return "\n".join([*lines, "Reasoning:", points.chosen.completion or ""])


def describe(result: Result, names: Sequence[str]) -> str:
    """Return a result as text: the winner, the scores on each dimension, the votes and the reasoning."""
    if result.chosen.error:
        return f"No verdict: {result.error}"
    winner = "tie" if result.winner == "tie" else f"none: {result.reason}"
    if result.winner in (1, 2):
        winner = f"{result.winner} ({names[int(result.winner) - 1]})"
    lines = [f"Winner: {winner}"]
    if result.dimensions:
        total = Dimension("Total", tuple(map(sum, zip(*(row.scores for row in result.dimensions), strict=True))))
        lines.append(f"{'':<24}{1:>6}{2:>6}")
        lines += [f"{name:<24}{a:>6.3g}{b:>6.3g}" for name, (a, b) in (*result.dimensions, total)]
    if sum(result.votes.values()) > 1:
        cast = result.votes
        ties = f"{cast['tie']} for a tie, " if "tie" in cast else ""
        lines.append(f"Votes: {cast['1']} for 1, {cast['2']} for 2, {ties}{cast['abstained']} abstained")
    called = " and ".join(str(candidate_at(place, result.chosen.order)) for place in (1, 2))
    return "\n".join([*lines, f"Reasoning (the candidates as {called}):", result.reasoning])


def _parser(task: str, about: str | None) -> Parser:
    parser = Parser(about)
    pair = parser.add_argument_group("one pair")
    if TASKS[task].compares_media:
        pair.add_argument("--prompt", help="the caption both candidates follow")
        pair.add_argument("--media", nargs="+", metavar="FILE", help=f"the two candidates; {SCORED}")
    else:
        pair.add_argument("--question", dest="prompt", help="the question both answers reply to")
        pair.add_argument("--media", nargs="+", metavar="FILE", help=f"the {TASKS[task].media_kind} asked about")
        pair.add_argument("--answers", nargs="+", metavar="TEXT", help=f"the two answers; {SCORED}")
    many = parser.add_argument_group("many pairs").add_argument
    many("--input", nargs="+", metavar="FILE", help="record files (.jsonl), or released files; labels are not needed")
    many("--output", type=Path, metavar="FILE", help="judgments.jsonl; a rerun goes on from what it holds")
    many("--media-root", help="folder that relative media paths start from (default: that of the input)")
    many("--limit", type=ranged(Count), help="only the first N rows")
    parser.add(JudgingArguments)
    parser.add(BackendArguments)
    return parser


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace, task: str) -> None:
    """Ask for one complete pair, or for both files."""
    parts = {"prompt": args.prompt, "media": args.media}
    if not TASKS[task].compares_media:
        parts = {"question": args.prompt, "media": args.media, "answers": args.answers}
    given = [name for name, value in parts.items() if value is not None]
    if args.input and given:
        parser.error(f"--{given[0]} is for one pair and --input for many; choose")
    if args.input and args.output is None:
        parser.error("--input needs an --output")
    if args.output and args.output.is_dir():
        parser.error(
            f"--output {args.output} is a folder; name a file in it, such as {args.output / 'judgments.jsonl'}"
        )
    candidates = list(parts.values())[-1] or ()
    if args.form == PAIRWISE.name and len(candidates) not in (0, PAIRWISE.candidates):
        name = list(parts)[-1]
        parser.error(
            f"--{name} takes two candidates, found {len(candidates)}; --form {POINTWISE.name} scores any number"
        )
    if not args.input and len(given) < len(parts):
        parser.error(f"name a pair with {' '.join(f'--{name}' for name in parts)}, or many with --input and --output")


def _pair(args: argparse.Namespace, task: str, judge: Judge) -> int:
    answers = () if TASKS[task].compares_media else args.answers
    names = answers or args.media
    if judge.config.form is POINTWISE:
        scored = judge.score(task, args.prompt, args.media, answers)
        print("\n\n".join(describe_points(points, names[points.candidate - 1]) for points in scored))
        return int(any(points.error for points in scored))
    result = judge(task, args.prompt, args.media, answers)
    print(describe(result, names))
    return 1 if result.error else 0


def _load(args: argparse.Namespace, task: str, form: Form) -> Loaded[PreferenceRecord]:
    loaded = load_records(args.input, media_root=args.media_root, skip_bad=True, need_label=False, form=form)
    of_task = [record for record in loaded.rows if record.task == task]
    if others := len(loaded.rows) - len(of_task):
        print(f"{others} pairs of other tasks left out")
    if not of_task:
        raise InputError(f"{args.input[0]}: holds no pair of the task {task}")
    report_left_out(loaded.bad)
    return Loaded(of_task[: args.limit], loaded.bad)


def _file(args: argparse.Namespace, loaded: Loaded[PreferenceRecord], judge: Judge) -> int:
    results: Sequence[Result | Points]
    if judge.config.form is POINTWISE:
        scored = results = judge.score_file(loaded.rows, args.output)
        what = "candidates"
        mean = f"mean {fmean(shares):.3f} of the scale, " if (shares := _shares(scored)) else ""
        counted = f"{mean}{len(scored) - len(shares)} without a score"
    else:
        pairs = results = judge.file(loaded.rows, args.output)
        what = "pairs"
        counts = Counter(str(result.winner) for result in pairs)
        counted = f"{counts['1']} for 1, {counts['2']} for 2, {counts['tie']} ties, {counts['None']} without a winner"
    write_whole(args.output.with_suffix(".results.jsonl"), json_lines(results))
    print(f"{len(results)} {what}: {counted} -> {args.output}")
    failed = [result for result in results if result.error]
    if failed:
        print(f"{len(failed)} {what} failed, a rerun tries them again; the first: {failed[0].error}", file=sys.stderr)
    return 1 if failed or loaded.bad else 0


def _shares(scored: Sequence[Points]) -> list[float]:
    return [points.share for points in scored if points.share is not None]
