"""The plots of a report: matplotlib draws in stand-in colours, which become CSS variables of the page.

plots(results, judgments)[0]["svg"]     # inline markup that follows the colours of the page, light or dark
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from unifiedreward_think.evaluation.tables import (
    Cell,
    Results,
    accuracy_cells,
    estimate,
    groups_of,
    tasks_of,
)
from unifiedreward_think.intervals import Estimate, interval
from unifiedreward_think.metrics import flags_of
from unifiedreward_think.records import Judgment

Runs = Mapping[str, Sequence[Judgment]]  # stage -> its judgments
COLOURS = 6  # as many as pages/style.css defines; further stages start over
# Keys of trainer.state.log_history that are drawn, and their titles. The loss of GRPO says nothing: "loss" is
# drawn for runs without a reward.
CURVES = {
    "reward": "Reward",
    "rewards/accuracy_reward/mean": "Accuracy reward",
    "readable_rate": "Readable",
    "parse_rate": "Strict",
    "kl": "KL to the reference model",
    "completions/mean_length": "Completion length (tokens)",
    "loss": "Loss",
}
MARGIN_BINS = {
    "0": 0.0,
    "up to 2": 2.0,
    "up to 4": 4.0,
    "up to 7": 7.0,
    "up to 12": 12.0,
    "more": float("inf"),
}

_INK, _MUTED, _LINE = "#000001", "#000002", "#000003"
SERIES = [f"#0000a{i}" for i in range(COLOURS)]
_VARIABLES = {
    _INK: "ink",
    _MUTED: "muted",
    _LINE: "line",
    **{colour: f"s{i}" for i, colour in enumerate(SERIES)},
}
_STYLE: dict[str, Any] = {
    **{"text.color": _INK, "axes.labelcolor": _MUTED, "xtick.color": _MUTED, "ytick.color": _MUTED},
    **{"axes.edgecolor": _LINE, "grid.color": _LINE, "axes.spines.top": False, "axes.spines.right": False},
    **{"svg.fonttype": "none", "text.parse_math": False, "font.size": 9.5, "axes.axisbelow": True},
}


def plots(results: Results, judgments: Runs) -> list[dict[str, Any]]:
    """Return name, note and SVG of each plot: accuracy by task or group, margins, lengths, position bias."""
    tasks, groups = tasks_of(results), groups_of(results)
    bars = "Share of verdicts that name the preferred candidate. Bars: 95% intervals. Dotted: chance."
    drawings: list[tuple[str, str, Callable[[Any], None]]] = []
    if len(tasks) > 1 or not groups:
        cells = accuracy_cells(results, "tasks")
        drawings.append(("Accuracy by task", bars, partial(_draw_accuracy, rows=cells)))
    if groups:
        cells = accuracy_cells(results, "groups")
        drawings.append(("Accuracy by group of the benchmark", bars, partial(_draw_accuracy, rows=cells)))
    drawings += [
        (
            "Does a larger margin mean a surer verdict?",
            "Accuracy by the difference of the two score sums. Bars: 95% intervals.",
            partial(_draw_margins, judgments=judgments),
        ),
        (
            "Length of the completions",
            "Share of completions by their number of characters.",
            partial(_draw_lengths, judgments=judgments),
        ),
        (
            "Position bias",
            "How often the candidate shown first wins. Without bias, 50% where both orders are judged.",
            partial(_draw_positions, results=results),
        ),
    ]
    drawings += _sureness(results)
    return [{"name": name, "note": note, "svg": draw_svg(name, draw)} for name, note, draw in drawings]


def curve_plots(curves: Mapping[str, Sequence[Mapping[str, Any]]], stages: Sequence[str]) -> list[dict[str, Any]]:
    """Draw each key of CURVES that some run logged, a stage in the colour it has elsewhere."""
    names = [*stages, *(run for run in curves if run not in stages)]
    drawn = []
    for key, name in CURVES.items():
        runs = {}
        for run, history in curves.items():
            points = [(row.get("step", n), row[key]) for n, row in enumerate(history) if row.get(key) is not None]
            if points and not (key == "loss" and any("reward" in row for row in history)):
                runs[run] = (SERIES[names.index(run) % COLOURS], points)
        if runs:
            drawn.append({"name": name, "note": "", "svg": draw_svg(name, partial(draw_curves, runs=runs))})
    return drawn


def draw_svg(name: str, draw: Callable[[Any], None]) -> Any:
    """Draw into a fresh axes and return inline SVG markup that follows the colours of the page."""
    import matplotlib
    from markupsafe import Markup, escape
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", linewidth=0.6)
        axes.tick_params(length=0)
        draw(axes)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"(font: [\d.]+px) '[^;\"]*", r"\1 system-ui, sans-serif", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1))


def draw_dots(axes: Any, places: Sequence[float], estimates: Sequence[Estimate], series: int) -> None:
    """Draw estimates with their intervals, in percent; those without data leave a gap."""
    known = [(place, *e) for place, e in zip(places, estimates, strict=True) if None not in e]
    at, values, lows, highs = zip(*known, strict=True) if known else ((), (), (), ())
    ends = [[100 * abs(v - end) for v, end in zip(values, side, strict=True)] for side in (lows, highs)]
    style = {"fmt": "o", "markersize": 4.5, "elinewidth": 1.6, "clip_on": False}
    axes.errorbar(at, [100 * value for value in values], yerr=ends, color=SERIES[series % COLOURS], **style)


def percent_axis(axes: Any, names: Sequence[str], label: str) -> None:
    """Set up axes of shares in percent, with names below and a line at chance."""
    axes.axhline(50, color=_MUTED, linewidth=1, linestyle=":")
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 102)
    axes.set_ylabel(label)


def shift(series: int, of: int) -> float:
    """Return how far a series stands beside the tick, so that several do not hide each other."""
    return (series - (of - 1) / 2) * min(0.16, 0.7 / of)


def _draw_accuracy(axes: Any, rows: Sequence[tuple[str, Sequence[Cell]]]) -> None:
    names = ["Overall", *(name for name, _ in rows[0][1][1:])] if rows else []
    for i, (_, cells) in enumerate(rows):
        draw_dots(axes, [x + shift(i, len(rows)) for x in range(len(cells))], [e for _, e in cells], i)
    percent_axis(
        axes, [textwrap.fill(name, max(8, 60 // len(names)), break_long_words=False) for name in names], "accuracy (%)"
    )


def _draw_margins(axes: Any, judgments: Runs) -> None:
    edges = list(MARGIN_BINS.values())
    for i, rows in enumerate(judgments.values()):
        bins: list[list[Judgment]] = [[] for _ in edges]
        for row in rows:
            if (margin := row.verdict.margin) is not None:
                bins[next(k for k, edge in enumerate(edges) if abs(margin) <= edge)].append(row)
        places = [k + shift(i, len(judgments)) for k in range(len(edges))]
        draw_dots(axes, places, [interval(flags_of(part, "accuracy")) for part in bins], i)
    percent_axis(axes, list(MARGIN_BINS), "accuracy (%)")
    axes.set_xlabel("points between the two score sums")


def _draw_lengths(axes: Any, judgments: Runs) -> None:
    lengths = [[len(row.completion or "") for row in rows if not row.error] for rows in judgments.values()]
    style = {"bins": 32, "range": (0, max(map(max, filter(None, lengths)), default=1)), "histtype": "step"}
    for i, part in enumerate(lengths):
        weights = [100 / len(part) for _ in part]
        axes.hist(part, weights=weights, linewidth=1.6, color=SERIES[i % COLOURS], **style)
    axes.set_xlabel("characters")
    axes.set_ylabel("completions (%)")


def _sureness(results: Results) -> list[tuple[str, str, Callable[[Any], None]]]:
    """Return the plots of probabilities, where some stage has them: reliability, and the curve over samples."""
    found = {i: summary.get("probabilities", {}) for i, summary in enumerate(results.values())}
    bins = {i: part["calibrated"]["reliability"] for i, part in found.items() if "calibrated" in part}
    curves = {i: part["curve"] for i, part in found.items() if part.get("curve")}
    reliable = (
        "Reliability of the probabilities",
        "Accuracy by the probability of the most probable outcome. Bars: 95% intervals. Dotted: as sure as right.",
        partial(_draw_reliability, bins=bins),
    )
    over_samples = (
        "Over the number of samples",
        "Right, of three outcomes (1, tie, 2). Strong: by calibrated probabilities. Dashed: by the majority vote.",
        partial(_draw_samples, curves=curves),
    )
    return [drawing for drawing, there in ((reliable, bins), (over_samples, curves)) if there]


def _draw_reliability(axes: Any, bins: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
    axes.plot([0, 100], [0, 100], color=_MUTED, linewidth=1, linestyle=":")
    for i, part in bins.items():
        draw_dots(axes, [100 * each["confidence"] for each in part], [estimate(each["accuracy"]) for each in part], i)
    axes.set_xlim(30, 102)
    axes.set_ylim(0, 102)
    axes.set_xlabel("probability (%)")
    axes.set_ylabel("accuracy (%)")


def _draw_samples(axes: Any, curves: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
    for i, curve in curves.items():
        for key, line in (("calibrated", "-"), ("majority", "--")):
            values = [100 * point[key]["value"] for point in curve]
            style = {"color": SERIES[i % COLOURS], "linewidth": 1.8, "linestyle": line}
            axes.plot([point["samples"] for point in curve], values, **style)
    axes.set_xlabel("samples in each order")
    axes.set_ylabel("right, of three outcomes (%)")


def _draw_positions(axes: Any, results: Results) -> None:
    for i, summary in enumerate(results.values()):
        draw_dots(axes, [i], [estimate(summary["overall"]["first_position_rate"])], i)
    percent_axis(axes, [textwrap.fill(stage, 12, break_long_words=False) for stage in results], "first one wins (%)")


def draw_curves(
    axes: Any, runs: Mapping[str, tuple[str, Sequence[tuple[float, float]]]], *, legend: bool = True
) -> None:
    """Draw raw values faint and their running mean strong."""
    for run, (colour, points) in runs.items():
        steps, values = zip(*points, strict=True)
        reach = max(1, len(values) // 20)
        windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(steps, [sum(w) / len(w) for w in windows], color=colour, linewidth=1.8, label=run)
    if legend and len(runs) > 1:
        axes.legend(frameon=False)
    axes.set_xlabel("step")
