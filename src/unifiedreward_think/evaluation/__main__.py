r"""Judge a file of labelled pairs with a model and report.

    python -m unifiedreward_think.evaluation --input outputs/toy/seed0/data/heldout.jsonl --orders both \
        --model outputs/toy/seed0/grpo --prompts configs/toy/prompts --frames 4 --output outputs/toy/seed0/eval/grpo

Writes config.yaml, judgments.jsonl (a rerun goes on from it), records.jsonl and results.json into the output folder,
and prints how many verdicts are right, readable and strict, with 95% intervals.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.calibration import read_calibration
from unifiedreward_think.data.formats.files import report_left_out
from unifiedreward_think.data.formats.loading import load_checked_records
from unifiedreward_think.entry import run_main
from unifiedreward_think.evaluation.sureness import add_calibration, summarize_run
from unifiedreward_think.evaluation.tables import headline
from unifiedreward_think.flags import Count, Parser, ranged, read
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.settings import JudgingArguments, set_up
from unifiedreward_think.judging.store import write_evaluation
from unifiedreward_think.provenance import config_yaml, data_files


def arguments() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="record files (JSONL), or released files")
    add("--output", type=Path, required=True, help="folder for judgments and results")
    add("--media-root", help="folder that relative media paths start from (default: the input file's)")
    add("--skip-bad", action="store_true", help="leave bad rows out, counted and listed, instead of stopping")
    add("--limit", type=ranged(Count), help="only the first N pairs")
    add_calibration(parser)
    parser.add(JudgingArguments, without=["tie_margin"], orders="both")
    parser.add(BackendArguments)
    return parser


def main() -> None:
    """Evaluate from the command line."""
    args = arguments().parse_args()
    judging = read(args, JudgingArguments)
    calibration = read_calibration(args.calibration) if args.calibration else None
    loaded = load_checked_records(
        args.input,
        sampling=judging.frame_sampling,
        media_root=args.media_root,
        skip_bad=args.skip_bad,
        limit=args.limit,
        form=judging.asked_form,
    )
    report_left_out(loaded.bad)
    data = data_files(args.input, Counter(place.file for place in loaded.places))
    config, backend = set_up(judging, read(args, BackendArguments))
    judgments = judge(
        loaded.rows,
        backend,
        config,
        args.output / "judgments.jsonl",
        label=f"judging with {args.model}",
        config_yaml=config_yaml(vars(args), data=data),
    )
    results = summarize_run(judgments, calibration)
    write_evaluation(args.output, loaded.rows, results)
    failed = [row for row in judgments if row.error]
    if failed:
        print(f"{len(failed)} judgments failed, a rerun tries them again; the first: {failed[0].error}")
    print(f"{headline(results)} -> {args.output / 'results.json'}")


if __name__ == "__main__":
    run_main(main)
