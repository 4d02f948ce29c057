"""Compute every number again from stored completions, without a model; compare two runs.

    python -m unifiedreward_think.evaluation.rescore outputs/toy/seed0/eval/base outputs/toy/seed0/eval/grpo --write
    python -m unifiedreward_think.evaluation.rescore --compare outputs/toy/seed0/eval/base outputs/toy/seed0/eval/grpo

The first prints the tables and says how many stored verdicts the parser of today reads differently; `--write`
replaces results.json. `--calibration FILE` takes the probabilities of pairs from what `evaluation.calibrate` fitted on
others; without it each pair has them from the rest of its run. A benchmark is scored again by its own script with
`--replay`, which knows the metrics of its authors. The second prints an exact paired test on the rows that both judged.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from unifiedreward_think.blocks import Style
from unifiedreward_think.calibration import read_calibration
from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.sureness import add_calibration, summarize_run
from unifiedreward_think.evaluation.tables import stage_table, sureness_table
from unifiedreward_think.forms import FORMS
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.metrics import PairedTest, paired_test
from unifiedreward_think.records import Judgment
from unifiedreward_think.reply_formats.formats import OWN, read_reply
from unifiedreward_think.writing import write_whole


def read_judgments(folder: Path) -> list[Judgment]:
    """Read `judgments.jsonl` of a run, or a file that is named itself, as `judge.load_judgments` does.

    Raises:
        RecordError: the file is missing or empty, or a line is no judgment.
    """
    path = folder if folder.is_file() else folder / "judgments.jsonl"
    if not path.is_file():
        raise RecordError(f"{path}: no such file; name the output folder of an evaluation")
    rows = list(load_judgments(path).values())
    if not rows:
        raise RecordError(f"{path}: holds no judgment; run the evaluation first")
    return rows


def rescore(judgments: Iterable[Judgment], *, style: Style = "cot") -> tuple[list[Judgment], list[Judgment]]:
    """Parse stored completions again.

    Args:
        judgments: the rows; those without a completion stay as they are.
        style: what the strict parser expects, for rows whose `sampling` does not name a style.

    Returns:
        All rows with the verdicts of today's parser, and those among them whose stored verdict was another.
    """
    rows, changed = [], []
    for row in judgments:
        if row.completion is None:
            rows.append(row)
            continue
        row_style: Style = row.settings.get("style", style)
        named = row.settings.get("reply_format", OWN)
        verdict = read_reply(row.completion, row.task, form=FORMS[row.form], style=row_style, reply_format=named)
        rows.append(replace(row, verdict=verdict))
        if verdict != row.verdict:
            changed.append(rows[-1])
    return rows, changed


def check_replaceable(folder: Path) -> None:
    """Refuse to replace results.json of a benchmark: it holds numbers that are not computed here.

    Raises:
        RecordError: results.json names a benchmark; the message names the command that computes them.
    """
    path = folder / "results.json"
    try:
        stored = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise RecordError(f"{path}: not valid JSON ({error}); remove it, then --write makes it anew") from error
    if name := stored.get("benchmark"):
        raise RecordError(
            f"{path}: holds the official numbers of {name}, which --write would lose; use "
            f"python benchmark_evaluation/{name}.py --replay {folder / 'judgments.jsonl'} --output {folder}"
        )


def describe(test: PairedTest, names: Sequence[str]) -> str:
    """Write a paired test in words.

    >>> from unifiedreward_think.verdict import parse
    >>> row = Judgment(record_id="kite", order="ab", completion="", verdict=parse("", "Image"), preferred=1,
    ...                task="image_generation")
    >>> print(describe(paired_test([row], [row]), ["before", "after"]))
    1 labelled judgments in common (in before only: 0, in after only: 0)
    before: 0.0% [0.0, 79.3] right
    after: 0.0% [0.0, 79.3] right
    right in before only: 0; right in after only: 0
    exact two-sided p = 1 over clusters (McNemar, rows taken as independent: 1)
    """
    a, b = names
    return "\n".join(
        [
            f"{test.accuracy_a.total} labelled judgments in common"
            f" (in {a} only: {test.unmatched_a}, in {b} only: {test.unmatched_b})",
            f"{a}: {test.accuracy_a} right",
            f"{b}: {test.accuracy_b} right",
            f"right in {a} only: {test.only_a_right}; right in {b} only: {test.only_b_right}",
            f"exact two-sided p = {test.p_value:.3g} over clusters"
            f" (McNemar, rows taken as independent: {test.p_mcnemar:.3g})",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Score again, from the command line of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with judgments.jsonl")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="test A against B")
    parser.add_argument("--style", choices=["cot", "direct"], default="cot", help="of rows that do not name theirs")
    add_calibration(parser)
    parser.add_argument("--write", action="store_true", help="replace results.json of every folder")
    args = parser.parse_args(arguments)
    if bool(args.folders) == bool(args.compare):
        parser.error("name folders to score again, or --compare A B")
    runs = {}
    for folder in args.folders if args.write else []:
        check_replaceable(folder)
    for folder in args.compare or args.folders:
        runs[folder], changed = rescore(read_judgments(folder), style=args.style)
        what = f", first: record {changed[0].record_id!r}" if changed else ""
        print(f"{folder}: {len(changed)} of {len(runs[folder])} verdicts differ from the stored ones{what}")
    if args.compare:
        a, b = args.compare
        print(describe(paired_test(runs[a], runs[b]), [str(a), str(b)]))
        return
    calibration = read_calibration(args.calibration) if args.calibration else None
    results = {str(folder): summarize_run(rows, calibration) for folder, rows in runs.items()}
    for folder in args.folders if args.write else []:
        write_whole(folder / "results.json", json.dumps(results[str(folder)], indent=1) + "\n")
    print(stage_table(results))
    if table := sureness_table(results):
        print(f"\n{table}")


if __name__ == "__main__":
    run_main(main)
