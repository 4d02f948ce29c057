r"""Put a training run on one page: how it was made, rewards, accuracy by task, form, KL, answers before and after.

    python -m unifiedreward_think.evaluation.training_report --run outputs/toy/seed0/grpo \
        --before outputs/toy/seed0/eval/rejection_sft --after outputs/toy/seed0/eval/grpo \
        --output outputs/toy/seed0/training.html

--before and --after are output folders of `python -m unifiedreward_think.evaluation` on the same pairs, of the model
that the run began with and of the one it made. The page opens offline. Runs of the other stages log less, and show it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unifiedreward_think.data.arguments import FRAMES, ShownArguments, frame_sampling
from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import RecordError
from unifiedreward_think.evaluation.examples import pair_card
from unifiedreward_think.evaluation.origin import argument_tables, of_judgments, of_training, read_config
from unifiedreward_think.evaluation.plots import COLOURS, SERIES, draw_curves, draw_dots, draw_svg, percent_axis, shift
from unifiedreward_think.evaluation.report import read_runs
from unifiedreward_think.evaluation.tables import (
    HEADLINE,
    RATES,
    READABLE_AND_STRICT,
    Cell,
    stage_table,
    table_rows,
    title,
)
from unifiedreward_think.evaluation.training_log import (
    TrainingRun,
    Window,
    curve,
    ends,
    read_run,
    reward_names,
    windows,
)
from unifiedreward_think.flags import Parser, Whole, ranged
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.metrics import paired_test, summarize
from unifiedreward_think.pages import in_turn, write_page
from unifiedreward_think.pages.origin import table as fact_table
from unifiedreward_think.records import Judgment, PreferenceRecord, digest
from unifiedreward_think.tasks import TASK_NAMES

# Plot -> what it says, and its curves: name -> key of the log. Curves that a run did not log are left out.
WATCHED: dict[str, tuple[str, dict[str, str]]] = {
    "Held-out pairs": (
        "Judged during training; lower and upper end: 95% interval of the accuracy.",
        {
            **{"accuracy": "eval_accuracy", "lower end": "eval_accuracy_low", "upper end": "eval_accuracy_high"},
            **{"readable": "eval_readable_rate", "strict": "eval_parse_rate", "both orders agree": "eval_agreement"},
        },
    ),
    "Gradient": ("Norm before clipping.", {"norm": "grad_norm"}),
    "Speed": ("Tokens of all ranks in a second, prompts included.", {"tokens": "tokens_per_second"}),
    "Memory": ("GiB of the fullest rank.", {"GiB": "memory_gib"}),
}
CURVES: dict[str, tuple[str, dict[str, str]]] = {
    "Reward by task": (
        "Mean of the weighted sum over the completions of a task.",
        {title(task): f"reward/{task}" for task in TASK_NAMES},
    ),
    "Form": (
        "Share of completions: a winner can be read, strictly well formed, sums in order, cut by the token limit.",
        {
            **{"readable": "readable_rate", "strict": "parse_rate"},
            **{"sums in order": "arithmetic_rate", "cut": "completions/clipped_ratio"},
        },
    ),
    "Length": (
        "Tokens of a completion.",
        {"mean": "completions/mean_length", "longest": "completions/max_length", "shortest": "completions/min_length"},
    ),
    "KL": ("Distance to the reference model.", {"KL": "kl"}),
    "Spread of the rewards": (
        "Standard deviation, and share of groups whose completions all earn the same: these teach nothing.",
        {"standard deviation": "reward_std", "groups without a difference": "frac_reward_zero_std"},
    ),
    "Position": (
        "Share of readable verdicts for the candidate shown first; 0.5 without bias.",
        {"first one wins": "first_position_rate"},
    ),
    "Entropy": ("Of the next token, in nats.", {"entropy": "entropy"}),
    **WATCHED,
}
SFT_CURVES: dict[str, tuple[str, dict[str, str]]] = {
    "Loss": ("Of the completions.", {"loss": "loss"}),
    "Token accuracy": ("Share of tokens that the model ranks first.", {"token accuracy": "mean_token_accuracy"}),
    **WATCHED,
}
CHANGES = {
    "fixed": "Wrong before, right after",
    "broken": "Right before, wrong after",
    "right": "Right both times",
    "wrong": "Wrong both times",
}


def write_html(
    path: Path,
    run: TrainingRun,
    *,
    judgments: Mapping[str, Sequence[Judgment]],
    records: Mapping[str, PreferenceRecord],
    sampling: FrameSampling,
    folders: Mapping[str, Path] | None = None,
    max_examples: int = 24,
) -> None:
    """Write the page.

    Args:
        path: the HTML file; its folder is made if needed.
        run: what was trained.
        judgments: "before" and "after" -> judgments of the same pairs; empty leaves these parts out.
        records: record id -> the judged record.
        sampling: how videos become the frames that are shown.
        folders: "before" and "after" -> the folders of these evaluations, whose config.yaml says how they came about.
        max_examples: how many pairs are shown, of every task and change in turn.
    """
    spans = windows(run.completions)
    write_page(
        path,
        Path(__file__).with_name("training_report.html"),
        title=f"Training of {run.name}",
        run=run,
        origin=fact_table({run.name: of_training(run.about)}),
        readable_and_strict=READABLE_AND_STRICT,
        arguments=argument_tables(run.about),
        figures=figures(run),
        plots=plots(run, spans),
        windows=[spans[0], spans[-1]] if spans else [],
        tasks={task: title(task) for task in TASK_NAMES if any(task in window.accuracy for window in spans)},
        labels=CHANGES,
        colours=COLOURS,
        **_judged(judgments, folders or {}, partial(cards, records=records, sampling=sampling, limit=max_examples)),
    )


def _judged(
    judgments: Mapping[str, Sequence[Judgment]], folders: Mapping[str, Path], show: Callable[..., list[dict[str, Any]]]
) -> dict[str, Any]:
    """What the page says of the same pairs, judged before and after."""
    results = {name: summarize(rows) for name, rows in judgments.items()}
    changes = compare(judgments["before"], judgments["after"]) if judgments else {}
    origins = {
        name: of_judgments(read_config(folders[name]) if name in folders else {}, rows)
        for name, rows in judgments.items()
    }
    return {
        "judged_origin": fact_table(origins),
        "folders": [str(folder) for folder in folders.values()],
        "judged_tasks": {
            task: title(task) for task in TASK_NAMES if any(task in result["tasks"] for result in results.values())
        },
        "table": _known(table_rows(results)),
        "changes": [(key, name, len(changes[key])) for key, name in CHANGES.items() if key in changes],
        "test": paired_test(judgments["before"], judgments["after"]) if judgments else None,
        "cards": show(changes),
    }


def figures(run: TrainingRun) -> list[tuple[str, str, str]]:
    """Return (name, mean of the first tenth of the steps, mean of the last) of what a run is judged by."""
    keys = {"Reward": "reward", "Accuracy reward": "rewards/accuracy_reward/mean", "Readable": "readable_rate"}
    keys |= {"Strict": "parse_rate", "Tokens": "completions/mean_length", "KL": "kl"}
    if not curve(run.history, "reward"):
        keys = {"Loss": "loss", "Token accuracy": "mean_token_accuracy"}
    known = [(name, values) for name, key in keys.items() if (values := ends(curve(run.history, key)))]
    return [(name, f"{first:.3g}", f"{last:.3g}") for name, (first, last) in known]


def plots(run: TrainingRun, spans: Sequence[Window]) -> list[dict[str, Any]]:
    """Return name, note, legend and SVG of each plot that the run logged something for."""
    names = reward_names(run.history)
    parts = {"sum, weighted": "reward", **{title(name): f"rewards/{name}/mean" for name in names}}
    reward = ("Mean over the completions of a step; strong lines: running mean.", parts)
    drawn = []
    for name, (note, keys) in ({"Reward parts": reward, **CURVES} if names else SFT_CURVES).items():
        logged = {label: points for label, key in keys.items() if (points := curve(run.history, key))}
        if logged:
            lines = {label: (SERIES[i + 1], points) for i, (label, points) in enumerate(logged.items())}
            svg = draw_svg(name, partial(draw_curves, runs=lines, legend=False))
            drawn.append({"name": name, "note": note, "legend": list(lines), "svg": svg})
    if spans:
        note = "Of the training completions, in stretches of the run. Bars: 95% intervals."
        svg = draw_svg("Accuracy by task", partial(_draw_windows, spans=spans))
        legend = [title(task) for task in TASK_NAMES]
        drawn.insert(1, {"name": "Accuracy by task", "note": note, "legend": legend, "svg": svg})
    return drawn


def compare(before: Sequence[Judgment], after: Sequence[Judgment]) -> dict[str, list[tuple[Judgment, Judgment]]]:
    """Return change -> (before, after) of each labelled pair, order and sample that both judged."""
    known = {(row.record_id, row.order, row.sample): row for row in before}
    changed: dict[str, list[tuple[Judgment, Judgment]]] = {key: [] for key in CHANGES}
    for row in after:
        was = known.get((row.record_id, row.order, row.sample))
        if was is None or row.correct is None:
            continue
        kind = ("right" if row.correct else "broken") if was.correct else ("fixed" if row.correct else "wrong")
        changed[kind].append((was, row))
    return changed


def cards(
    changes: Mapping[str, Sequence[tuple[Judgment, Judgment]]],
    records: Mapping[str, PreferenceRecord],
    sampling: FrameSampling,
    limit: int,
) -> list[dict[str, Any]]:
    """Choose pairs of every task and change in turn, and return them ready to be shown.

    Raises:
        RecordError: a pair that is to be shown has no record.
    """
    order = list(CHANGES)
    pairs = [(order.index(change), was.task, was, now) for change, judged in changes.items() for was, now in judged]
    pairs.sort(key=lambda item: (*item[:2], digest("change", item[2].record_id, item[2].order, item[2].sample)))
    shown = []
    for place, _, was, now in sorted(in_turn(pairs, lambda item: item[:2])[:limit], key=lambda item: item[:2]):
        if was.record_id not in records:
            raise RecordError(f"record {was.record_id!r} is judged but not among the records; add it")
        card = pair_card(records[was.record_id], [was, now], sampling)
        shown.append({**card, "change": order[place]})
    return shown


def _known(table: list[tuple[str, list[Cell]]]) -> list[tuple[str, list[Cell]]]:
    """Leave out the rates that are neither an accuracy nor of the headline, and columns without any data."""
    left_out = {name for name in RATES if name not in HEADLINE}
    columns = {name for _, cells in table for name, cell in cells if cell.value is not None} - left_out
    return [(stage, [cell for cell in cells if cell[0] in columns]) for stage, cells in table]


def _draw_windows(axes: Any, spans: Sequence[Window]) -> None:
    for i, task in enumerate(TASK_NAMES):
        places = [k + shift(i, len(TASK_NAMES)) for k, window in enumerate(spans) if task in window.accuracy]
        draw_dots(axes, places, [window.accuracy[task] for window in spans if task in window.accuracy], i + 1)
    percent_axis(axes, [f"{w.first}-{w.last}" if w.last > w.first else f"{w.first}" for w in spans], "accuracy (%)")
    axes.set_xlabel("steps")


def main() -> None:
    """Report from the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="output_dir of a finished training run")
    add("--before", type=Path, help="evaluation folder of the model that the run began with")
    add("--after", type=Path, help="evaluation folder of the model that it made")
    add("--output", type=Path, required=True, help="the HTML file")
    parser.add(ShownArguments, *FRAMES, frames=4)
    add("--max-examples", type=ranged(Whole), default=24, help="pairs to show")
    args = parser.parse_args()
    if (args.before is None) != (args.after is None):
        parser.error("--before and --after go together")
    run = read_run(args.run)
    named = [("before", args.before), ("after", args.after)] if args.before else []
    judgments, records = read_runs(named)
    with tempfile.TemporaryDirectory() as cache:
        sampling = frame_sampling(args, Path(cache))
        write_html(
            args.output,
            run,
            judgments=judgments,
            records=records,
            sampling=sampling,
            folders=dict(named),
            max_examples=args.max_examples,
        )
    if judgments:
        print(stage_table({name: summarize(rows) for name, rows in judgments.items()}))
    print(f"training report: {args.output}")


if __name__ == "__main__":
    run_main(main)
