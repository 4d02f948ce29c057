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
import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unifiedreward_think.entry import run_main
from unifiedreward_think.evaluation.rescore import read_judgments
from unifiedreward_think.media import FrameSampling, MediaError, image_paths, open_image
from unifiedreward_think.metrics import Estimate, Rate, summarize
from unifiedreward_think.records import (
    TASK_NAMES,
    Judgment,
    PreferenceRecord,
    RecordError,
    digest,
    read_json_lines,
)
from unifiedreward_think.tasks import TASKS

THUMBNAIL = 320  # pixels on the longer side
COLOURS = 6  # as many as report.html defines; further stages start over
# Keys of trainer.state.log_history that are drawn, and their titles. The loss of GRPO says nothing: "loss" is
# drawn for runs without a reward.
CURVES = {
    "reward": "Reward",
    "rewards/accuracy_reward/mean": "Accuracy reward",
    "parse_rate": "Parse rate",
    "kl": "KL to the reference model",
    "completions/mean_length": "Completion length (tokens)",
    "loss": "Loss",
}
HEADLINE = ("Accuracy", "Parse rate", "Arithmetic consistent", "Both orders agree")
STATUSES = {
    "right": "Right",
    "wrong": "Wrong",
    "mixed": "Depends on the order",
    "unlabelled": "No winner labelled",
}
MARGIN_BINS = {
    "0": 0.0,
    "up to 2": 2.0,
    "up to 4": 4.0,
    "up to 7": 7.0,
    "up to 12": 12.0,
    "more": float("inf"),
}

Runs = Mapping[str, Sequence[Judgment]]
Cell = tuple[str, Estimate]


def table_rows(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Cell]]]:
    """Return for each stage (column title, estimate): accuracies, parse rate, sums, order agreement."""
    tasks = _tasks(results)
    rows = []
    for stage, summary in results.items():
        overall, by_task = summary["overall"], summary["tasks"]
        cells = [("Accuracy", overall["accuracy"])]
        cells += [(_title(task), by_task.get(task, {}).get("accuracy")) for task in tasks]
        cells += [
            ("Parse rate", overall["parse_rate"]),
            ("Arithmetic consistent", overall["arithmetic_rate"]),
        ]
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
    short = HEADLINE[1:]
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
        max_examples: how many pairs are shown, of every stage, task and outcome in turn.

    Raises:
        RecordError: a judgment that is to be shown has no record.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template("report.html").render(
        title=title,
        table=table_rows(results),
        counts=list(dict.fromkeys(_counts(summary) for summary in results.values())),
        headline=HEADLINE,
        statuses=STATUSES,
        colours=COLOURS,
        tasks={task: _title(task) for task in _tasks(results)},
        plots=_plots(results, judgments),
        curves=_curve_plots(curves or {}, list(judgments)),
        stages=list(judgments),
        examples=_examples(judgments, records, sampling, max_examples),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _tasks(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [task for task in TASK_NAMES if any(task in summary["tasks"] for summary in results.values())]


def _title(task: str) -> str:
    return task.replace("_", " ").capitalize()


def _counts(summary: Mapping[str, Any]) -> str:
    """Say what was judged, and what of it has no right answer."""
    text = f"{summary['judgments']:,} judgments of {summary['records']:,} pairs"
    for key, name in (("ties", "labelled as ties"), ("unlabelled", "without a label"), ("errors", "failed")):
        text += f", {summary[key]:,} {name}" if summary[key] else ""
    return text


def _estimate(block: Mapping[str, Any] | None) -> Estimate:
    return Estimate(block["value"], block["low"], block["high"]) if block else Estimate(None, None, None)


# --- examples ---


def _examples(
    judgments: Runs, records: Mapping[str, PreferenceRecord], sampling: FrameSampling, limit: int
) -> list[dict[str, Any]]:
    """Choose pairs in turn from every stage, task and status, the same ones in all stages where possible."""
    pairs: dict[tuple[str, str, int], list[Judgment]] = defaultdict(list)
    for stage, rows in judgments.items():
        for row in rows:
            pairs[stage, row.record_id, row.sample].append(row)
    kinds: dict[tuple[str, str, str], list[tuple[int, tuple[str, str, int]]]] = defaultdict(list)
    for key, rows in pairs.items():
        kinds[key[0], rows[0].task, _status(rows)].append((digest("example", key[1], key[2]), key))
    ranked = sorted((rank, *item) for kind in kinds.values() for rank, item in enumerate(sorted(kind)))
    stages = list(judgments)
    chosen = sorted(ranked[:limit], key=lambda item: (item[1], stages.index(item[2][0])))
    shown: dict[str, list[dict[str, Any]]] = {}
    examples = []
    for _, _, key in chosen:
        stage, name, _ = key
        if name not in records:
            raise RecordError(f"record {name!r} is judged in {stage!r} but not among the records; add it")
        if name not in shown:
            shown[name] = _shown_media(records[name], sampling)
        examples.append(_example(stage, stages.index(stage), records[name], shown[name], pairs[key]))
    return examples


def _status(rows: Sequence[Judgment]) -> str:
    rights = {row.correct for row in rows}
    return "unlabelled" if None in rights else "mixed" if len(rights) > 1 else "right" if True in rights else "wrong"


def _example(
    stage: str, index: int, record: PreferenceRecord, media: list[dict[str, Any]], rows: Sequence[Judgment]
) -> dict[str, Any]:
    return {
        "stage": stage,
        "colour": index % COLOURS,
        "task": record.task,
        "status": _status(rows),
        "record": record,
        "noun": TASKS[record.task].noun,
        "film": TASKS[record.task].media_kind == "video",
        "media": media,
        "verdicts": [_shown_verdict(row) for row in sorted(rows, key=lambda row: row.order)],
    }


def _shown_verdict(row: Judgment) -> dict[str, Any]:
    """Turn a verdict back to the record's own order: A is candidate 1 as stored, wherever it was shown."""
    step = 1 if row.order == "ab" else -1
    text = row.completion or ""
    think, closed, answer = text.rpartition("</think>")
    return {
        "order": row.order.upper(),
        "winner": {1: "A", 2: "B", None: None}[row.candidate],
        "right": row.correct,
        "think": think + closed,
        "answer": answer.strip() if closed else text,
        "scores": [(score.name, *(score.first, score.second)[::step]) for score in row.verdict.scores],
        "totals": row.verdict.totals and row.verdict.totals[::step],
        "problems": row.verdict.problems,
        "error": row.error,
        "cut": row.finish_reason == "length",
    }


def _shown_media(record: PreferenceRecord, sampling: FrameSampling) -> list[dict[str, Any]]:
    """Return the thumbnails of each media entry; an entry that cannot be opened says why in their place."""
    kind = TASKS[record.task].media_kind
    entries: list[dict[str, Any]] = []
    for paths in record.media:
        try:
            entries.append({"images": [_thumbnail(file) for file in image_paths(paths, kind, sampling)], "error": ""})
        except MediaError as error:
            entries.append({"images": [], "error": str(error)})
    return entries


def _thumbnail(file: Path) -> dict[str, Any]:
    image = open_image(file)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    small = max(image.size) <= 96  # drawings keep their pixels, photographs become JPEG
    buffer = io.BytesIO()
    image.save(buffer, format="PNG" if small else "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"uri": f"data:image/{'png' if small else 'jpeg'};base64,{data}", "small": small}


# --- plots: matplotlib draws in stand-in colours, which become CSS variables of the page ---

_INK, _MUTED, _LINE = "#000001", "#000002", "#000003"
_SERIES = [f"#0000a{i}" for i in range(COLOURS)]
_VARIABLES = {
    _INK: "ink",
    _MUTED: "muted",
    _LINE: "line",
    **{colour: f"s{i}" for i, colour in enumerate(_SERIES)},
}
_STYLE: dict[str, Any] = {
    **{"text.color": _INK, "axes.labelcolor": _MUTED, "xtick.color": _MUTED, "ytick.color": _MUTED},
    **{"axes.edgecolor": _LINE, "grid.color": _LINE, "axes.spines.top": False, "axes.spines.right": False},
    **{"svg.fonttype": "none", "text.parse_math": False, "font.size": 9.5, "axes.axisbelow": True},
}


def _svg(name: str, draw: Callable[[Any], None]) -> Any:
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


def _plots(results: Mapping[str, Mapping[str, Any]], judgments: Runs) -> list[dict[str, Any]]:
    drawings: list[tuple[str, str, Callable[[Any], None]]] = [
        (
            "Accuracy by task",
            "Share of verdicts that name the preferred candidate. Bars: 95% intervals. Dotted: chance.",
            partial(_draw_accuracy, results=results),
        ),
        (
            "Does a larger margin mean a surer verdict?",
            "Accuracy by the difference of the two score sums. Bars: 95% Wilson intervals.",
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
    return [{"name": name, "note": note, "svg": _svg(name, draw)} for name, note, draw in drawings]


def _dots(axes: Any, places: Sequence[float], estimates: Sequence[Estimate], series: int) -> None:
    """Draw estimates with their intervals, in percent; those without data leave a gap."""
    known = [(place, *e) for place, e in zip(places, estimates, strict=True) if None not in e]
    at, values, lows, highs = zip(*known, strict=True) if known else ((), (), (), ())
    ends = [[100 * abs(v - end) for v, end in zip(values, side, strict=True)] for side in (lows, highs)]
    style = {"fmt": "o", "markersize": 4.5, "elinewidth": 1.6, "clip_on": False}
    axes.errorbar(at, [100 * value for value in values], yerr=ends, color=_SERIES[series % COLOURS], **style)


def _percent_axis(axes: Any, names: Sequence[str], label: str) -> None:
    axes.axhline(50, color=_MUTED, linewidth=1, linestyle=":")
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 102)
    axes.set_ylabel(label)


def _shift(series: int, of: int) -> float:
    """Return how far a series stands beside the tick, so that several do not hide each other."""
    return (series - (of - 1) / 2) * min(0.16, 0.7 / of)


def _draw_accuracy(axes: Any, results: Mapping[str, Mapping[str, Any]]) -> None:
    names = {"Accuracy": "Overall", **{_title(task): _title(task).replace(" ", "\n") for task in TASK_NAMES}}
    rows = [[cell for cell in cells if cell[0] in names] for _, cells in table_rows(results)]
    for i, cells in enumerate(rows):
        _dots(axes, [x + _shift(i, len(rows)) for x in range(len(cells))], [e for _, e in cells], i)
    _percent_axis(axes, [names[name] for name, _ in rows[0]] if rows else [], "accuracy (%)")


def _draw_margins(axes: Any, judgments: Runs) -> None:
    edges = list(MARGIN_BINS.values())
    for i, rows in enumerate(judgments.values()):
        bins: list[list[bool]] = [[] for _ in edges]
        for row in rows:
            if row.correct is not None and row.verdict.margin is not None:
                size = abs(row.verdict.margin)
                bins[next(k for k, edge in enumerate(edges) if size <= edge)].append(row.correct)
        rates = [Rate(sum(flags), len(flags)) for flags in bins]
        places = [k + _shift(i, len(judgments)) for k in range(len(edges))]
        _dots(axes, places, [Estimate(r.value, r.low, r.high) for r in rates], i)
    _percent_axis(axes, list(MARGIN_BINS), "accuracy (%)")
    axes.set_xlabel("points between the two score sums")


def _draw_lengths(axes: Any, judgments: Runs) -> None:
    lengths = [[len(row.completion or "") for row in rows if not row.error] for rows in judgments.values()]
    style = {"bins": 32, "range": (0, max(map(max, filter(None, lengths)), default=1)), "histtype": "step"}
    for i, part in enumerate(lengths):
        weights = [100 / len(part) for _ in part]
        axes.hist(part, weights=weights, linewidth=1.6, color=_SERIES[i % COLOURS], **style)
    axes.set_xlabel("characters")
    axes.set_ylabel("completions (%)")


def _draw_positions(axes: Any, results: Mapping[str, Mapping[str, Any]]) -> None:
    for i, summary in enumerate(results.values()):
        _dots(axes, [i], [_estimate(summary["overall"]["first_position_rate"])], i)
    _percent_axis(axes, [textwrap.fill(stage, 12) for stage in results], "first one wins (%)")


def _curve_plots(curves: Mapping[str, Sequence[Mapping[str, Any]]], stages: Sequence[str]) -> list[dict[str, Any]]:
    """Draw each key of CURVES that some run logged, a stage in the colour it has elsewhere."""
    names = [*stages, *(run for run in curves if run not in stages)]
    plots = []
    for key, name in CURVES.items():
        runs = {}
        for run, history in curves.items():
            points = [(row.get("step", n), row[key]) for n, row in enumerate(history) if row.get(key) is not None]
            if points and not (key == "loss" and any("reward" in row for row in history)):
                runs[run] = (_SERIES[names.index(run) % COLOURS], points)
        if runs:
            plots.append({"name": name, "note": "", "svg": _svg(name, partial(_draw_curves, runs=runs))})
    return plots


def _draw_curves(axes: Any, runs: Mapping[str, tuple[str, Sequence[tuple[float, float]]]]) -> None:
    """Draw raw values faint and their running mean strong."""
    for run, (colour, points) in runs.items():
        steps, values = zip(*points, strict=True)
        reach = max(1, len(values) // 20)
        windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(steps, [sum(w) / len(w) for w in windows], color=colour, linewidth=1.8, label=run)
    if len(runs) > 1:
        axes.legend(frameon=False)
    axes.set_xlabel("step")


# --- command line ---


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def _read_records(folder: Path) -> dict[str, PreferenceRecord]:
    path = folder / "records.jsonl"
    if not path.is_file():
        raise RecordError(f"{path}: no such file; the evaluation writes it beside judgments.jsonl")
    rows = (PreferenceRecord.from_json(row) for _, row in read_json_lines(path))
    return {row.id: row for row in rows}


def _read_runs(
    runs: Sequence[tuple[str, Path]],
) -> tuple[dict[str, list[Judgment]], dict[str, PreferenceRecord]]:
    judgments: dict[str, list[Judgment]] = {}
    records: dict[str, PreferenceRecord] = {}
    for name, folder in runs:
        if name in judgments:
            raise RecordError(f"--run {name}={folder}: two runs are named {name!r}; rename one")
        judgments[name] = read_judgments(folder)
        for key, record in _read_records(folder).items():
            if records.setdefault(key, record) != record:
                raise RecordError(f"{folder}: record {key!r} differs from that of another run; judge the same records")
    return judgments, records


def main() -> None:
    """Report from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", type=_named, required=True, metavar="NAME=FOLDER", help="a stage")
    parser.add_argument("--curves", action="append", default=[], metavar="[STAGE=]FILE", help="a log_history.json")
    parser.add_argument("--output", type=Path, required=True, help="the HTML file")
    parser.add_argument("--title", default="Judgments", help="heading of the page")
    parser.add_argument("--frames", type=int, default=4, help="frames shown of each video")
    parser.add_argument("--decoder", choices=["decord", "pyav"], default="decord", help="reads the videos")
    parser.add_argument("--max-examples", type=int, default=40, help="pairs to show")
    args = parser.parse_args()
    try:
        judgments, records = _read_runs(args.run)
        results = {name: summarize(rows) for name, rows in judgments.items()}
    except (RecordError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    files = {name: folder / "log_history.json" for name, folder in args.run}
    files = {name: file for name, file in files.items() if file.is_file()}
    for text in args.curves:
        stage, _, file = text.rpartition("=")
        files[stage or Path(file).parent.name] = Path(file)
    with tempfile.TemporaryDirectory() as cache:
        write_html(
            args.output,
            results=results,
            judgments=judgments,
            records=records,
            title=args.title,
            sampling=FrameSampling(frames=args.frames, cache=Path(cache), decoder=args.decoder),
            curves={name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()},
            max_examples=args.max_examples,
        )
    print(stage_table(results))
    print(f"report: {args.output}")


if __name__ == "__main__":
    run_main(main)
