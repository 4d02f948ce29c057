"""The batch tab: upload a file of pairs, watch the progress, download judgments and report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from unifiedreward_think.data.formats.files import BadRow, format_bad_rows
from unifiedreward_think.data.formats.loading import Loaded, load_records
from unifiedreward_think.demo import view
from unifiedreward_think.demo.asking import Setup, Stopped, Stops, Watched
from unifiedreward_think.demo.pair_tab import stop_handlers
from unifiedreward_think.errors import InputError
from unifiedreward_think.evaluation.report import write_html
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.metrics import summarize
from unifiedreward_think.records import Judgment, PreferenceRecord, json_lines
from unifiedreward_think.writing import write_whole

EVERY = 0.3  # seconds between two looks at the progress
TAB = "batch"
QUEUED = '<p class="ur-empty">Waiting for the model.</p>'
WAITING = '<p class="ur-empty">Progress and results appear here.</p>'
DOWNLOADS = {"Judgments": "judgments.jsonl", "Records": "records.jsonl", "Report": "report.html"}


def build_batch(setup: Setup, stops: Stops) -> None:
    """Lay out the batch tab and connect its events."""
    gr.Markdown(
        "A JSONL file of pairs, a record a line, as every script of this repository reads them; labels are optional. "
        f"Media are paths below `{setup.media_root.resolve()}`.",
        elem_classes="ur-about",
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            file = gr.File(label="Pairs", file_types=[".jsonl", ".json"], height=130, elem_classes="ur-pairs")
            orders = gr.Radio(
                [("one order", "one"), ("both orders", "both")],
                value="both",
                label="Show each pair in",
                elem_id="orders",
            )
            with gr.Row():
                start = gr.Button("Judge the file", variant="primary", elem_classes="ur-judge", scale=2, min_width=140)
                stop = gr.Button("Stop", variant="stop", elem_classes="ur-stop", scale=1, min_width=80)
        with gr.Column(scale=6, min_width=320):
            message = gr.HTML(elem_classes="ur-message", padding=False)
            progress = gr.HTML(WAITING, elem_classes="ur-batch", padding=False)
            with gr.Row():
                links = [gr.DownloadButton(name, interactive=False, min_width=110) for name in DOWNLOADS]
    outputs = [message, progress, *links]

    def judge_file(request: gr.Request, file: str | None, orders: str) -> Iterator[list[Any]]:
        yield from _judge_file(setup, stops.event(str(request.session_hash), TAB), file, orders)

    begin, halt = stop_handlers(stops, TAB, QUEUED)
    stop.click(halt, queue=False, api_visibility="private")
    start.click(begin, outputs=[message, progress], queue=False, api_visibility="private").then(
        judge_file,
        inputs=[file, orders],
        outputs=outputs,
        concurrency_limit=1,
        concurrency_id="model",
        show_progress="hidden",
        api_visibility="private",
    )


def load_pairs(file: Path, media_root: Path) -> Loaded[PreferenceRecord]:
    """Load records whose media all lie below `media_root`; the others are in `bad`.

    Whoever may upload a file must not read any other picture of this machine.

    Raises:
        DataError: no row is usable.
    """
    loaded = load_records([str(file)], media_root=str(media_root), skip_bad=True, need_label=False)
    root = media_root.resolve()
    rows, bad = [], list(loaded.bad)
    for record, place in zip(loaded.rows, loaded.places, strict=True):
        outside = [path for entry in record.media for path in entry if not Path(path).resolve().is_relative_to(root)]
        if outside:
            bad.append(BadRow(place.file, place.line, record.id, f"{outside[0]}: not below {root}; move it there"))
        else:
            rows.append(record)
    named = [replace(row, file=Path(row.file).name) for row in sorted(bad, key=lambda row: row.line)]
    return Loaded(rows, named)


def _judge_file(setup: Setup, stopped: Event, file: str | None, orders: str) -> Iterator[list[Any]]:
    """Judge an uploaded file; where that is stopped, what was judged before it is kept."""
    off = [gr.DownloadButton(interactive=False) for _ in DOWNLOADS]
    try:
        if file is None:
            raise InputError("Choose a file of pairs first.")
        loaded = load_pairs(Path(file), setup.media_root)
        said = view.alert(_about_bad(loaded.bad)) if loaded.bad else ""
        if not loaded.rows:
            yield [said, WAITING, *off]
            return
        folder = Path(tempfile.mkdtemp(dir=setup.work))
        done, total = 0, _total(loaded.rows, orders)
        for done in _judged(setup, loaded.rows, orders, folder, stopped):
            words = "Stopping after this batch: " if stopped.is_set() else ""
            yield [said, view.bar(done, total, f"{words}{done} of {total} judgments"), *off]
        if done < total:
            said += view.alert(f"Stopped after {done} of {total} judgments.")
        judgments = _finish(setup, loaded.rows, folder) if done else []
    except InputError as error:
        yield [view.alert(str(error).replace(str(Path(str(file)).parent) + "/", "")), WAITING, *off]
        return
    failed = [row for row in judgments if row.error]
    if failed:
        said += view.alert(f"{len(failed)} judgments failed; the first: {failed[0].record_id}: {failed[0].error}")
    if not judgments:
        yield [said, WAITING, *off]
        return
    links = [gr.DownloadButton(value=str(folder / name), interactive=True) for name in DOWNLOADS.values()]
    yield [said, view.summary(summarize(judgments)), *links]


def _total(records: Sequence[PreferenceRecord], orders: str) -> int:
    return sum(2 if orders == "both" and record.swappable else 1 for record in records)


def _judged(
    setup: Setup, records: Sequence[PreferenceRecord], orders: str, folder: Path, stopped: Event
) -> Iterator[int]:
    """Judge into a file beside the page, and yield how many judgments it holds; a stop ends it after the batch."""
    protocol = replace(setup.protocol(), orders="both" if orders == "both" else "one")
    output = folder / DOWNLOADS["Judgments"]

    def written() -> int:
        return output.read_bytes().count(b"\n") if output.exists() else 0

    with ThreadPoolExecutor(max_workers=1) as thread:
        judging = thread.submit(judge, records, Watched(setup.backend, stopped), protocol, output)
        try:
            while not judging.done():
                yield written()
                wait([judging], timeout=EVERY)
        except GeneratorExit:
            stopped.set()
            raise
    with suppress(Stopped):
        judging.result()
    yield written()


def _finish(setup: Setup, records: Sequence[PreferenceRecord], folder: Path) -> list[Judgment]:
    """Write the records and the report beside the judgments, and return these."""
    judgments = list(load_judgments(folder / DOWNLOADS["Judgments"]).values())
    write_whole(folder / DOWNLOADS["Records"], json_lines(records))
    name = Path(setup.backend.model).name
    write_html(
        folder / DOWNLOADS["Report"],
        results={name: summarize(judgments)},
        judgments={name: judgments},
        records={record.id: record for record in records},
        title="Judgments",
        sampling=setup.frames,
    )
    return judgments


def _about_bad(bad: Sequence[BadRow]) -> str:
    return f"{len(bad)} rows left out:\n{format_bad_rows(bad)}"
