"""Fit P(1), P(tie), P(2) on stored judgments of labelled pairs, and say how near such probabilities come.

    python -m unifiedreward_think.evaluation.calibrate outputs/eval/mine --output outputs/calibration.json
    python -m unifiedreward_think.evaluation.calibrate outputs/eval/mine --probabilities outputs/probabilities.jsonl

What is printed is cross-fitted: each pair has its probabilities from a model fitted on the others. `--output` keeps one
fitted on all of them, for other pairs: `--calibration FILE` of evaluation, rescore and report. `--probabilities` writes
a line for each pair; those without a label have them from all that are labelled. docs/scores.md explains the numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from unifiedreward_think.calibration import calibrate, write_calibration
from unifiedreward_think.davidson import Davidson, cross_fit
from unifiedreward_think.entry import run_main
from unifiedreward_think.evaluation.rescore import read_judgments, rescore
from unifiedreward_think.evaluation.sureness import KEY, summarize_probabilities
from unifiedreward_think.evaluation.tables import curve_table, sureness_table
from unifiedreward_think.evidence import evidence_of
from unifiedreward_think.probability_metrics import Probabilities
from unifiedreward_think.records import Judgment
from unifiedreward_think.writing import write_whole


def probabilities_of(judgments: Sequence[Judgment], model: Davidson) -> dict[str, Probabilities]:
    """Return record id -> its probabilities: cross-fitted for pairs with a label, by `model` for those without."""
    pairs = evidence_of(judgments)
    crossed = cross_fit([pair for pair in pairs.values() if pair.label is not None])
    return {name: crossed.get(name) or model.probabilities(pair) for name, pair in pairs.items()}


def lines_of(judgments: Sequence[Judgment], model: Davidson) -> str:
    """Return the probabilities of pairs as JSON lines, candidates as they are stored."""
    labels = {row.record_id: row.preferred for row in judgments}
    rows = [
        {"id": name, "first": each.first, "tie": each.tie, "second": each.second, "preferred": labels[name]}
        for name, each in probabilities_of(judgments, model).items()
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Calibrate, from the command line of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judgments", type=Path, help="folder of an evaluation, or a file of judgments")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="calibration to write, fitted on all labelled pairs"
    )
    parser.add_argument("--probabilities", type=Path, metavar="FILE", help="JSONL to write, a line for each pair")
    args = parser.parse_args(arguments)
    judgments, _ = rescore(read_judgments(args.judgments))
    calibration = calibrate(judgments)
    summary = summarize_probabilities(judgments)
    if args.output:
        write_calibration(args.output, calibration)
    if args.probabilities:
        write_whole(args.probabilities, lines_of(judgments, calibration.model))
    results = {str(args.judgments): {KEY: summary}}
    print(sureness_table(results))
    if summary.get("curve"):
        print(f"\n{curve_table(summary['curve'])}")
    counted = ", ".join(f"{count} labelled {label}" for label, count in calibration.labels.items())
    kept = f" -> {args.output}" if args.output else ""
    print(f"{calibration.pairs} pairs, {counted}, judgments {calibration.data[:12]}{kept}")


if __name__ == "__main__":
    run_main(main)
