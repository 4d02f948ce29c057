"""Gather the toy runs of several seeds into one table, the toy counterpart of the paper's tables 3 and 4.

    python -m unifiedreward_think.toy.ablation --runs outputs/toy/seed* --output results/toy_ablation.json

Reads `eval/<stage>/results.json` of each run and writes the JSON and, beside it, a markdown table. Both hold the
accuracy of every seed: a mean over three says little.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from unifiedreward_think.entry import run_main
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.writing import write_whole

STAGES = {
    "base": "base",
    "grpo_direct": "base + GRPO without CoT",
    "cold_start": "base + cold start",
    "rejection_sft": "+ rejection sampling",
    "grpo": "+ GRPO",
}


def gather(runs: Sequence[Path]) -> dict[str, Any]:
    """Return, for each stage, the results of every run.

    Raises:
        FileNotFoundError: a run lacks a stage.
    """
    results = {}
    for stage in STAGES:
        files = [run / "eval" / stage / "results.json" for run in runs]
        if missing := [file for file in files if not file.exists()]:
            raise FileNotFoundError(
                f"{missing[0]}: this run has not judged the stage {stage!r}; run scripts/ablation.sh"
            )
        results[stage] = {
            run.name: json.loads(file.read_text(encoding="utf-8")) for run, file in zip(runs, files, strict=True)
        }
    return results


def table(results: dict[str, Any]) -> str:
    """Return a markdown table: for each stage the mean and deviation over the runs, and the accuracy of each."""
    names = [name.replace("_", " ") for name in TASKS]
    lines = [
        f"| stage | accuracy | {' | '.join(names)} | readable | strict | sums add up | both orders agree | each run |",
        "|---" * (len(names) + 7) + "|",
    ]
    for stage, title in STAGES.items():
        runs = list(results[stage].values())
        cells = [spread([run["overall"]["accuracy"]["value"] for run in runs])]
        cells += [spread([run["tasks"][task]["accuracy"]["value"] for run in runs]) for task in TASKS]
        rates = ("readable_rate", "parse_rate", "arithmetic_rate")
        cells += [spread([run["overall"][rate]["value"] for run in runs]) for rate in rates]
        cells.append(spread([run["both_orders"]["overall"]["agreement"]["value"] for run in runs]))
        each = ", ".join(
            f"{a['value']:.3f} [{a['low']:.3f}, {a['high']:.3f}]" for a in (run["overall"]["accuracy"] for run in runs)
        )
        lines.append(f"| {title} | {' | '.join(cells)} | {each} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float | None]) -> str:
    """Write the mean and the standard deviation over runs; a dash where there is nothing to count.

    Answers without a chain of thought have no sums, for one.

    >>> spread([0.5, 0.6, 0.7]), spread([0.5]), spread([None, None])
    ('0.600 ± 0.100', '0.500', '-')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{mean(known):.3f}" + (f" \u00b1 {stdev(known):.3f}" if len(known) > 1 else "")


def main() -> None:
    """Write the table from the command line."""
    parser = argparse.ArgumentParser(description="Gather the toy runs of several seeds into one table.")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders, one for each seed")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the table goes beside it as .md")
    args = parser.parse_args()
    results = gather(args.runs)
    text = table(results)
    write_whole(args.output, json.dumps(results, indent=1) + "\n")
    write_whole(args.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    run_main(main)
