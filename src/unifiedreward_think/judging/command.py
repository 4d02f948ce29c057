"""The command line of the scripts in `inference/`: one pair, printed, or a file of pairs, judged into a file.

A file run writes the judgments, a row for each vote, from which a rerun goes on, and beside them the results, a row for
each pair (`judgments.results.jsonl`). Rows that cannot be used are listed on stderr. It returns 1 if any row or pair
could not be judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from unifiedreward_think.backends import Backend
from unifiedreward_think.backends.choose import add_arguments, make_backend
from unifiedreward_think.data.formats.files import report_left_out
from unifiedreward_think.data.formats.loading import Loaded, load_records
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging.api import FRAME_CACHE, Judge, read_prompt_file
from unifiedreward_think.media import DECODERS
from unifiedreward_think.order import candidate_at
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import Dimension
from unifiedreward_think.votes import Result
from unifiedreward_think.writing import write_whole


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
        prompts = args.prompt_file and read_prompt_file(args.prompt_file, task, style=args.style, layout=args.layout)
        asked = ("style", "layout", "votes", "orders", "tie_margin", "temperature", "top_p", "max_new_tokens", "seed")
        videos = ("frames", "decoder", "frame_cache", "native_video")
        ways = {name: getattr(args, name) for name in (*asked, "order_seed", *videos)}
        loaded = _load(args, task) if args.input else None
        judge = Judge(backend or partial(make_backend, args), prompts=prompts, **ways)
        return _pair(args, task, judge) if loaded is None else _file(args, loaded, judge)
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


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
        lines.append(f"Votes: {cast['1']} for 1, {cast['2']} for 2, {cast['abstained']} abstained")
    called = " and ".join(str(candidate_at(place, result.chosen.order)) for place in (1, 2))
    return "\n".join([*lines, f"Reasoning (the candidates as {called}):", result.reasoning])


def _parser(task: str, about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    pair = parser.add_argument_group("one pair")
    if TASKS[task].compares_media:
        pair.add_argument("--prompt", help="the caption both candidates follow")
        pair.add_argument("--media", nargs=2, metavar=("FIRST", "SECOND"), help="the two candidates")
    else:
        pair.add_argument("--question", dest="prompt", help="the question both answers reply to")
        pair.add_argument("--media", nargs="+", metavar="FILE", help=f"the {TASKS[task].media_kind} asked about")
        pair.add_argument("--answers", nargs=2, metavar=("FIRST", "SECOND"), help="the two answers")
    many = parser.add_argument_group("many pairs").add_argument
    many("--input", nargs="+", metavar="FILE", help="record files (.jsonl), or released files; labels are not needed")
    many("--output", type=Path, metavar="FILE", help="judgments.jsonl; a rerun goes on from what it holds")
    many("--media-root", help="folder that relative media paths start from (default: that of the input)")
    many("--limit", type=int, help="only the first N pairs")
    add = parser.add_argument_group("judging").add_argument
    add("--style", choices=["cot", "direct"], default="cot", help="chain of thought or answer alone")
    add("--layout", choices=["one_line", "three_line"], default="one_line", help="how the prompt asks for a dimension")
    add("--prompt-file", type=Path, help="prompt template of your own")
    add("--votes", type=int, default=1, help="samples of each pair and order; needs a --temperature above 0")
    add("--orders", choices=["one", "both"], default="one", help="orders each pair is shown in")
    add("--order-seed", type=int, default=0, help="decides the order shown, where it is one")
    add(
        "--tie-margin",
        type=float,
        help="call a tie where the score sums differ by this at most in the mean over votes (default: never)",
    )
    add("--temperature", type=float, default=0.0, help="of sampling; 0 is greedy")
    add("--top-p", type=float, default=1.0, help="nucleus of sampling")
    add("--seed", type=int, default=0, help="of sampling")
    add("--max-new-tokens", type=int, default=2048, help="limit of an answer")
    add("--frames", type=int, default=8, help="frames of each video")
    add("--decoder", choices=DECODERS, default="decord", help="reads the videos")
    add("--frame-cache", type=Path, default=FRAME_CACHE, help="keeps decoded frames")
    add("--native-video", action="store_true", help="show videos as videos, not as pictures: released Qwen checkpoints")
    add_arguments(parser)
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
    if not args.input and len(given) < len(parts):
        parser.error(f"name a pair with {' '.join(f'--{name}' for name in parts)}, or many with --input and --output")


def _pair(args: argparse.Namespace, task: str, judge: Judge) -> int:
    answers = () if TASKS[task].compares_media else args.answers
    result = judge(task, args.prompt, args.media, answers)
    print(describe(result, answers or args.media))
    return 1 if result.error else 0


def _load(args: argparse.Namespace, task: str) -> Loaded[PreferenceRecord]:
    loaded = load_records(args.input, media_root=args.media_root, skip_bad=True, need_label=False)
    mine = [record for record in loaded.rows if record.task == task]
    if others := len(loaded.rows) - len(mine):
        print(f"{others} pairs of other tasks left out")
    if not mine:
        raise InputError(f"{args.input[0]}: holds no pair of the task {task}")
    report_left_out(loaded.bad)
    return Loaded(mine[: args.limit], loaded.bad)


def _file(args: argparse.Namespace, loaded: Loaded[PreferenceRecord], judge: Judge) -> int:
    results = judge.file(loaded.rows, args.output)
    lines = [json.dumps(result.to_json()) + "\n" for result in results]
    write_whole(args.output.with_suffix(".results.jsonl"), "".join(lines))
    counts = Counter(str(result.winner) for result in results)
    said = f"{counts['1']} for 1, {counts['2']} for 2, {counts['tie']} ties, {counts['None']} without a winner"
    print(f"{len(results)} pairs: {said} -> {args.output}")
    failed = [result for result in results if result.error]
    if failed:
        print(f"{len(failed)} pairs failed, a rerun tries them again; the first: {failed[0].error}", file=sys.stderr)
    return 1 if failed or loaded.bad else 0
