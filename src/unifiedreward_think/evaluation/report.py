r"""Put judgments on one page: tables, plots, and the judgments themselves with their pictures.

    python -m unifiedreward_think.evaluation.report --run "cold start=outputs/toy/seed0/eval/cold_start" \
        --run "GRPO=outputs/toy/seed0/eval/grpo" --curves outputs/toy/seed0/grpo/log_history.json --output report.html

Prints the table and writes one HTML file that opens offline. A run is an output folder of
`python -m unifiedreward_think.evaluation`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unifiedreward_think.calibration import read_calibration
from unifiedreward_think.data.arguments import FRAMES, ShownArguments, frame_sampling
from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.evaluation.examples import STATUSES, examples, judged_pairs
from unifiedreward_think.evaluation.origin import of_judgments, read_config
from unifiedreward_think.evaluation.plots import COLOURS, Runs, curve_plots, plots
from unifiedreward_think.evaluation.rescore import read_judgments
from unifiedreward_think.evaluation.sureness import add_calibration, summarize_run
from unifiedreward_think.evaluation.tables import (
    HEADLINE,
    RATES,
    READABLE_AND_STRICT,
    SURENESS,
    Results,
    counts,
    numbers,
    stage_table,
    sureness_rows,
    table_rows,
    task_counts,
    tasks_of,
)
from unifiedreward_think.evaluation.tables import (
    title as titled,
)
from unifiedreward_think.flags import Parser, Whole, ranged
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.pages import write_page
from unifiedreward_think.pages.origin import table as fact_table
from unifiedreward_think.records import Judgment, PreferenceRecord
from unifiedreward_think.strict_json import read_json_lines

# Parts of a benchmark's results, and what is said of their numbers.
PROTOCOLS = {
    "official": "Official: as the authors of the benchmark compute it",
    "paper": "Paper: as the published scripts of UnifiedReward-Think compute it",
    "ties": "Ties: called where the score sums differ by a threshold at most",
}


def write_html(
    path: Path,
    *,
    results: Results,
    judgments: Runs,
    records: Mapping[str, PreferenceRecord],
    title: str,
    sampling: FrameSampling,
    folders: Mapping[str, Path] | None = None,
    published: Mapping[str, Mapping[str, Any]] | None = None,
    about: str = "",
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    max_examples: int = 40,
) -> None:
    """Write the page.

    Args:
        path: the HTML file; its folder is made if needed.
        results: stage -> `metrics.summarize`, in a benchmark with `metrics.group_accuracy`.
        judgments: stage -> its judgments.
        records: record id -> the judged record, with media paths that can be opened from here.
        title: heading of the page.
        sampling: how videos become the frames that are shown.
        folders: stage -> its folder, whose config.yaml says how it came about.
        published: of a benchmark, a key of PROTOCOLS -> the numbers of that protocol, as in results.json.
        about: what is to be known of them.
        curves: run -> `trainer.state.log_history`; None draws no curves.
        max_examples: how many pairs are shown, of every stage, task and outcome in turn.

    Raises:
        RecordError: a judgment that is to be shown has no record.
    """
    folders = folders or {}
    configs = {stage: read_config(folders[stage]) if stage in folders else {} for stage in judgments}
    write_page(
        path,
        Path(__file__).with_name("report.html"),
        title=title,
        origin=fact_table({stage: of_judgments(configs[stage], rows) for stage, rows in judgments.items()}),
        folders={stage: str(folder) for stage, folder in folders.items()},
        table=table_rows(results),
        counts=list(dict.fromkeys(map(counts, results.values()))),
        task_counts=task_counts(judgments),
        sureness=sureness_rows(results),
        sureness_columns=SURENESS,
        headline=HEADLINE,
        rates=RATES,
        readable_and_strict=READABLE_AND_STRICT,
        published=[(PROTOCOLS[key], list(numbers(block))) for key, block in (published or {}).items()],
        about=about,
        statuses=STATUSES,
        colours=COLOURS,
        tasks={task: titled(task) for task in tasks_of(results)},
        plots=plots(results, judgments),
        curves=curve_plots(curves or {}, list(judgments)),
        stages=list(judgments),
        pairs=len(judged_pairs(judgments)),
        examples=examples(judgments, records, sampling, max_examples),
    )


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


def read_runs(
    runs: Sequence[tuple[str, Path]],
) -> tuple[dict[str, list[Judgment]], dict[str, PreferenceRecord]]:
    """Read evaluation folders: name -> its judgments, and the records of all.

    Raises:
        RecordError: a folder lacks a file, two runs share a name, or two runs judged different records of one id.
    """
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
    parser = Parser(__doc__)
    parser.add_argument("--run", action="append", type=_named, required=True, metavar="NAME=FOLDER", help="a stage")
    parser.add_argument("--curves", action="append", default=[], metavar="[STAGE=]FILE", help="a log_history.json")
    add_calibration(parser)
    parser.add_argument("--output", type=Path, required=True, help="the HTML file")
    parser.add_argument("--title", default="Judgments", help="heading of the page")
    parser.add(ShownArguments, *FRAMES, frames=4)
    parser.add_argument("--max-examples", type=ranged(Whole), default=40, help="pairs to show")
    args = parser.parse_args()
    judgments, records = read_runs(args.run)
    calibration = read_calibration(args.calibration) if args.calibration else None
    results = {name: summarize_run(rows, calibration) for name, rows in judgments.items()}
    files = {name: folder / "log_history.json" for name, folder in args.run}
    files = {name: file for name, file in files.items() if file.is_file()}
    for text in args.curves:
        stage, _, file = text.rpartition("=")
        if not Path(file).is_file():
            raise InputError(f"{file}: no such file; --curves names a log_history.json")
        files[stage or Path(file).parent.name] = Path(file)
    with tempfile.TemporaryDirectory() as cache:
        write_html(
            args.output,
            results=results,
            judgments=judgments,
            records=records,
            title=args.title,
            sampling=frame_sampling(args, Path(cache)),
            folders=dict(args.run),
            curves={name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()},
            max_examples=args.max_examples,
        )
    print(stage_table(results))
    print(f"report: {args.output}")


if __name__ == "__main__":
    run_main(main)
