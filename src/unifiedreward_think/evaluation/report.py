"""Put judgments on one page: a table, plots, and the judgments themselves with their pictures.

    python -m unifiedreward_think.evaluation.report --run "cold start=outputs/toy/eval/cold_start" \
        --run "GRPO=outputs/toy/eval/grpo" --curves outputs/toy/grpo/log_history.json --output report.html

Prints the table and writes one HTML file that opens offline. A run is an output folder of
`python -m unifiedreward_think.evaluation`.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unifiedreward_think.evaluation.rescore import read_judgments
from unifiedreward_think.media import FrameSampling, MediaError, image_paths, open_image
from unifiedreward_think.metrics import Estimate, Rate, summarize
from unifiedreward_think.records import TASK_NAMES, Judgment, PreferenceRecord, RecordError, digest, read_json_lines
from unifiedreward_think.tasks import TASKS

THUMBNAIL = 320  # pixels on the longer side
COLOURS = 6  # as many as report.html defines; further stages start over
# Keys of trainer.state.log_history that are drawn, and their titles. The loss of GRPO says nothing, so "loss" is
# drawn for runs without a reward only.
CURVES = {
    "reward": "Reward",
    "rewards/accuracy_reward/mean": "Accuracy reward",
    "parse_rate": "Parse rate",
    "kl": "KL to the reference model",
    "completions/mean_length": "Completion length (tokens)",
    "loss": "Loss",
}
MARGIN_BINS = {"0": 0.0, "up to 2": 2.0, "up to 4": 4.0, "up to 7": 7.0, "up to 12": 12.0, "more": float("inf")}

Runs = Mapping[str, Sequence[Judgment]]
Cell = tuple[str, Estimate]


def table_rows(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Cell]]]:
    """Return for each stage (column title, estimate): accuracies, parse rate, right sums, both-order agreement."""
    tasks = [task for task in TASK_NAMES if any(task in summary["tasks"] for summary in results.values())]
    rows = []
    for stage, summary in results.items():
        overall, by_task = summary["overall"], summary["tasks"]
        cells = [("Accuracy", overall["accuracy"])]
        cells += [(title(task), by_task.get(task, {}).get("accuracy")) for task in tasks]
        cells += [("Parse rate", overall["parse_rate"]), ("Arithmetic consistent", overall["arithmetic_rate"])]
        cells.append(("Both orders agree", summary.get("both_orders", {}).get("overall", {}).get("agreement")))
        rows.append((stage, [(name, _estimate(block)) for name, block in cells]))
    return rows


def stage_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a markdown table of several stages, accuracies with their 95% intervals.

    Args:
        results: stage -> `metrics.summarize`.

    >>> print(stage_table({"base": summarize([])}))
    | stage | Accuracy | Parse rate | Arithmetic consistent | Both orders agree |
    | ----- | -------- | ---------- | --------------------- | ----------------- |
    | base  |      n/a |        n/a |                   n/a |               n/a |
    """
    rows = table_rows(results)
    short = {"Parse rate", "Arithmetic consistent", "Both orders agree"}
    lines = [["stage", *(name for name, _ in rows[0][1])]] if rows else [["stage"]]
    for stage, cells in rows:
        lines.append([stage, *(str(e).partition(" ")[0] if name in short else str(e) for name, e in cells)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [
        [cell.ljust(width) if i == 0 or n == 0 else cell.rjust(width) for i, (cell, width) in enumerate(pairs)]
        for n, pairs in enumerate(list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def write_html(
    path: Path,
    *,
    results: Mapping[str, Mapping[str, Any]],
    judgments: Runs,
    records: Mapping[str, PreferenceRecord],
    title: str,
    sampling: FrameSampling,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    max_examples: int = 40,
) -> None:
    """Write the page.

    Args:
        path: the HTML file; its folder is made if needed.
        results: stage -> `metrics.summarize`.
        judgments: stage -> its judgments.
        records: record id -> the judged record, with media paths that can be opened from here.
        title: heading of the page.
        sampling: how videos become the frames that are shown.
        curves: run -> `trainer.state.log_history`; None draws no curves.
        max_examples: how many pairs are shown, spread over stages, tasks, right and wrong.

    Raises:
        RecordError: a judgment that is to be shown has no record.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html").render(
        title=title,
        table=table_rows(results),
        counts=results,
        tasks={task: _title(task) for task in TASK_NAMES},
        plots=_plots(results, judgments),
        curves=_curve_plots(curves or {}),
        stages=list(judgments),
        examples=_examples(judgments, records, sampling, max_examples),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
