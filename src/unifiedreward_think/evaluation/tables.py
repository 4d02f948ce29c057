"""The tables of a report: our rates for each stage with intervals, and the numbers of a benchmark's authors.

>>> from unifiedreward_think.metrics import summarize
>>> print(stage_table({"base": summarize([])}))
| stage | Accuracy | Readable | Strict | Arithmetic consistent | Both orders agree |
| ----- | -------- | -------- | ------ | --------------------- | ----------------- |
| base  |      n/a |      n/a |    n/a |                   n/a |               n/a |
>>> for number in numbers({"k1": {"overall": {"value": 0.5, "count": 2, "total": 4}}, "coin_flips": 3}):
...     print(number)
k1 overall: 50.00% (2 of 4)
coin flips: 3
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from unifiedreward_think.intervals import Estimate
from unifiedreward_think.records import Judgment
from unifiedreward_think.tasks import TASK_NAMES

Results = Mapping[str, Mapping[str, Any]]  # stage -> `metrics.summarize`, with `group_accuracy` in a benchmark
Cell = tuple[str, Estimate]
HEADLINE = ("Accuracy", "Pairs ordered by points", "Readable", "Strict", "Arithmetic consistent", "Both orders agree")
POINTS = {"Pairs ordered by points": ("points", "pair_accuracy")}  # where some stage was asked for scores
# Title -> where the rate stands in a summary. The markdown table holds the headline alone.
RATES = {
    "Readable": ("overall", "readable_rate"),
    "Strict": ("overall", "parse_rate"),
    "Arithmetic consistent": ("overall", "arithmetic_rate"),
    "Both orders agree": ("both_orders", "overall", "agreement"),
    "Both orders right": ("both_orders", "overall", "accuracy"),
    "Flips with the order": ("both_orders", "overall", "flip_rate"),
    "First one wins": ("overall", "first_position_rate"),
    "Cut by the token limit": ("overall", "truncation_rate"),
}
# Columns of probabilities, over three outcomes: 1, tie, 2.
SURENESS = ("Right, of three outcomes", "Brier score", "Calibration error", "Right, surest 80%")
READABLE_AND_STRICT = (
    "Readable: the answer says what was asked for, so the completion is a judgment, right or wrong; one that cannot be "
    "read counts as wrong. Strict: the completion is, letter for letter, of the published form, as GRPO rewards it. A "
    "judgment need not be strict to be right."
)


class Number(NamedTuple):
    """One number of a benchmark: its name, its value in percent or as a count, and what it is made of."""

    name: str
    value: str
    note: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value}" + (f" ({self.note})" if self.note else "")


def title(name: str) -> str:
    """Return a task, a group or a key of the results as words.

    >>> title("image_generation")
    'Image generation'
    """
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def estimate(block: Mapping[str, Any] | None) -> Estimate:
    """Return the value and interval of a stored rate; without one, an estimate without data."""
    return Estimate(block["value"], block["low"], block["high"]) if block else Estimate(None, None, None)


def tasks_of(results: Results) -> list[str]:
    """Return the tasks that occur in some stage."""
    return [task for task in TASK_NAMES if any(task in summary["tasks"] for summary in results.values())]


def groups_of(results: Results) -> list[str]:
    """Return the groups of the benchmark in order; without a benchmark, none."""
    return list(dict.fromkeys(name for summary in results.values() for name in summary.get("groups", ())))


def accuracy_cells(results: Results, part: str) -> list[tuple[str, list[Cell]]]:
    """Return for each stage the overall accuracy, then that of each of the "tasks" or of the "groups"."""
    names = tasks_of(results) if part == "tasks" else groups_of(results)
    rows = []
    for stage, summary in results.items():
        section = summary.get(part, {})
        # A task holds all rates, a group its accuracy alone.
        blocks = [(title(n), section.get(n, {}).get("accuracy") if part == "tasks" else section.get(n)) for n in names]
        cells = [("Accuracy", summary["overall"]["accuracy"]), *blocks]
        rows.append((stage, [(name, estimate(block)) for name, block in cells]))
    return rows


def table_rows(results: Results) -> list[tuple[str, list[Cell]]]:
    """Return for each stage (column title, estimate): accuracies by task and group, then RATES.

    A single task has no column of its own: it is the whole.
    """
    by_task, by_group = accuracy_cells(results, "tasks"), accuracy_cells(results, "groups")
    paths = (POINTS if any("points" in summary for summary in results.values()) else {}) | RATES
    rows = []
    for (stage, tasks), (_, groups) in zip(by_task, by_group, strict=True):
        cells = tasks if len(tasks) > 2 else tasks[:1]
        if len(groups) > 1:
            cells = [*cells, *groups[1:], ("Mean of groups", estimate(results[stage].get("macro_groups")))]
        rates = [(name, estimate(_at(results[stage], path))) for name, path in paths.items()]
        rows.append((stage, [*cells, *rates]))
    return rows


def stage_table(results: Results) -> str:
    """Return a markdown table of several stages, accuracies with their 95% intervals."""
    left_out = RATES.keys() - set(HEADLINE)
    rows = [(stage, [cell for cell in cells if cell[0] not in left_out]) for stage, cells in table_rows(results)]
    short = HEADLINE[1:]
    lines = [["stage", *(name for name, _ in rows[0][1])]] if rows else [["stage"]]
    for stage, cells in rows:
        lines.append([stage, *(str(e).partition(" ")[0] if name in short else str(e) for name, e in cells)])
    return _markdown(lines)


def sureness_rows(results: Results) -> list[tuple[str, str, list[str]]]:
    """Return (stage, what gave the probabilities, cells of SURENESS) for each stage that has labelled pairs."""
    rows = []
    for stage, summary in results.items():
        found = summary.get("probabilities")
        if not found or not found["vote_shares"]["accuracy"]["total"]:
            continue
        if "calibrated" in found:
            kind = "cross-fitted" if found["fitted"] == "cross-fitted" else "calibration file"
            rows.append((stage, kind, _sureness(found["calibrated"])))
        else:
            rows.append((stage, f"none: {found['reason']}", ["n/a"] * len(SURENESS)))
        rows.append((stage, "shares of votes", _sureness(found["vote_shares"])))
        rows.append((stage, "majority vote", [_percent(found["majority"]["value"]), *["n/a"] * (len(SURENESS) - 1)]))
    return rows


def sureness_table(results: Results) -> str:
    """Return a markdown table of how good the probabilities of pairs are; "" where no stage has labelled pairs."""
    rows = sureness_rows(results)
    return _markdown(
        [["stage", "probabilities", *SURENESS], *([s, kind, *cells] for s, kind, cells in rows)] if rows else []
    )


def curve_table(curve: Sequence[Mapping[str, Any]]) -> str:
    """Return a markdown table of probabilities and votes over the number of samples."""
    lines = [["samples", "calibrated", "majority vote", "Brier score", "calibration error"]]
    for point in curve:
        right = [_percent(point[name]["value"]) for name in ("calibrated", "majority")]
        lines.append([str(point["samples"]), *right, *(f"{point[key]:.3f}" for key in ("brier", "calibration_error"))])
    return _markdown(lines)


def _sureness(block: Mapping[str, Any]) -> list[str]:
    return [
        _percent(block["accuracy"]["value"]),
        f"{block['brier']['value']:.3f}",
        f"{block['calibration_error']:.3f}",
        _percent(block["accuracy_at_80"]),
    ]


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}%"


def _markdown(lines: list[list[str]]) -> str:
    """Return lines of cells, the header first, as a table."""
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [
        [cell.ljust(width) if i == 0 or n == 0 else cell.rjust(width) for i, (cell, width) in enumerate(pairs)]
        for n, pairs in enumerate(list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def headline(summary: Mapping[str, Any]) -> str:
    """Return the result of a run in one line.

    >>> from unifiedreward_think.metrics import summarize
    >>> headline(summarize([]))
    'accuracy n/a, readable n/a, strict n/a, 0 judgments of 0 pairs'
    """
    overall, points = summary["overall"], summary.get("points")
    keys = {"readable": "readable_rate", "strict": "parse_rate"}
    shown = {"pair accuracy": points["pair_accuracy"]} if points else {"accuracy": overall["accuracy"]}
    shown |= {name: overall[key] for name, key in keys.items()}
    rates = ", ".join(f"{name} {estimate(block)}" for name, block in shown.items())
    return f"{rates}, {counts(summary)}"


def counts(summary: Mapping[str, Any]) -> str:
    """Say what was judged, and what of it has no right answer."""
    text = f"{summary['judgments']:,} judgments of {summary['records']:,} pairs"
    for key, name in (("ties", "labelled as ties"), ("unlabelled", "without a label"), ("errors", "failed")):
        text += f", {summary[key]:,} {name}" if summary[key] else ""
    return text


def task_counts(judgments: Mapping[str, Sequence[Judgment]]) -> list[tuple[str, str, dict[str, int]]]:
    """Return (stage, task, what was counted) for every stage and task: what the rates are made of."""
    lines = []
    for stage, rows in judgments.items():
        for task in TASK_NAMES:
            part = [row for row in rows if row.task == task]
            counted = {
                "Pairs": len({row.record_id for row in part}),
                "Judged": len(part),
                "With a label": sum(row.correct is not None for row in part),
                "Right": sum(row.correct is True for row in part),
                "Readable": sum(row.readable and not row.error for row in part),
                "Strict": sum(row.verdict.strict and not row.error for row in part),
                "Failed": sum(bool(row.error) for row in part),
            }
            if part:
                lines.append((stage, title(task), counted))
    return lines


def numbers(block: Mapping[str, Any], name: str = "") -> Iterator[Number]:
    """Yield every number of the "official", "paper" or "ties" part of a benchmark's results, in their order."""
    if "value" in block:
        notes = [f"{block['count']:,} of {block['total']:,}"] if "total" in block else []
        if (threshold := block.get("threshold")) is not None:
            notes.append("no tie called" if threshold < 0 else f"tie up to a margin of {threshold:g}")
        yield Number(name, "n/a" if block["value"] is None else f"{100 * block['value']:.2f}%", ", ".join(notes))
        return
    for key, value in block.items():
        below = f"{name} {key.replace('_', ' ')}".strip()
        if isinstance(value, Mapping):
            yield from numbers(value, below)
        else:
            yield Number(below, f"{value:g}", "")


def _at(block: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Return what stands at a path of keys, None where one is missing."""
    value: Mapping[str, Any] | None = block
    for key in path:
        value = value.get(key) if value else None
    return value
