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

from unifiedreward_think.backends import Backend
from unifiedreward_think.data.formats.files import BadRow, format_bad_rows
from unifiedreward_think.data.formats.loading import Loaded, load_records
from unifiedreward_think.demo import view
from unifiedreward_think.demo.asking import Setup, Stopped, Stops, Watched
from unifiedreward_think.demo.faults import by_names, told
from unifiedreward_think.demo.running import Buttons, follow, stale_when_changed, switch
from unifiedreward_think.errors import InputError
from unifiedreward_think.evaluation.report import write_html
from unifiedreward_think.judging.judge import judge, orders_of
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.metrics import summarize
from unifiedreward_think.records import Judgment, PreferenceRecord
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.writing import write_whole

EVERY = 0.3  # seconds between two looks at the progress
TAB = "ur-batch"
EXAMPLE = "example_pairs.jsonl"
QUEUED = '<p class="ur-empty">Waiting for the model.</p>'
WAITING = '<p class="ur-empty">Progress and results appear here.</p>'
DOWNLOADS = {"Judgments": "judgments.jsonl", "Records": "records.jsonl", "Report": "report.html"}


def build_batch(setup: Setup, stops: Stops) -> None:
    """Lay out the batch tab and connect its events."""
    example = write_example(setup)
    root = setup.media_root.resolve()
    lie = "in the folder of the examples" if root.is_relative_to(setup.work) else f"below `{root}`"
    gr.Markdown(
        "A JSONL file of pairs, a record a line, as every script of this repository reads them; labels are optional. "
        f"Media are paths {lie}.",
        elem_classes="ur-about",
    )
    with gr.Row(equal_height=False, elem_id=TAB):
        with gr.Column(scale=4, min_width=300):
            file = gr.File(label="Pairs", file_types=[".jsonl", ".json"], height=130, elem_classes="ur-pairs")
            if example:
                with gr.Row():
                    use = gr.Button("Try the example file", size="sm", min_width=130)
                    gr.DownloadButton("Download it", value=str(example), size="sm", min_width=100)
                use.click(lambda: str(example), outputs=[file], show_progress="hidden", api_visibility="private")
            orders = gr.Radio(
                [("one order", "one"), ("both orders", "both")],
                value="both",
                label="Show each pair in",
                elem_id="orders",
            )
            with gr.Row():
                start = gr.Button("Judge the file", variant="primary", elem_classes="ur-judge", scale=2, min_width=140)
                stop = gr.Button("Stop", elem_classes="ur-stop", scale=1, min_width=80, interactive=False)
        with gr.Column(scale=6, min_width=320, elem_classes="ur-answered"):
            message = gr.HTML(elem_classes="ur-message", padding=False)
            progress = gr.HTML(WAITING, elem_classes="ur-batch", padding=False)
            with gr.Row():
                links = [gr.DownloadButton(name, interactive=False, min_width=110) for name in DOWNLOADS]

    def judge_file(request: gr.Request, file: str | None, orders: str) -> Iterator[list[Any]]:
        try:
            yield from _judge_file(setup, stops.event(str(request.session_hash), TAB), file, orders)
        except Exception as error:  # whatever it is: who asked must not wait for ever, nor lack the reason
            yield [view.alert(_said(error, setup)), WAITING, *_off()]

    stale_when_changed(TAB, [file, orders])
    follow(
        TAB,
        stops,
        Buttons([start], stop),
        [judge_file],
        inputs=[file, orders],
        fields=[file, orders],
        outputs=[message, progress, *links],
        empty=[WAITING, *_off()],
        waiting=QUEUED,
    )


def write_example(setup: Setup) -> Path | None:
    """Write a file of pairs to try, the first of each task, and return it; None where none lies below `media_root`."""
    root = setup.media_root.resolve()
    chosen: dict[str, PreferenceRecord] = {}
    for record in setup.examples:
        media = [[Path(path).resolve() for path in entry] for entry in record.media]
        if record.task in setup.config.prompts and all(p.is_relative_to(root) for entry in media for p in entry):
            shown = tuple(tuple(str(path.relative_to(root)) for path in entry) for entry in media)
            chosen.setdefault(record.task, replace(record, media=shown))
    if not chosen:
        return None
    file = setup.work / EXAMPLE
    write_whole(file, json_lines(chosen.values()))
    return file


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
            bad.append(
                BadRow(place.file, place.line, record.id, f"{outside[0]}: not below the folder of media; move it there")
            )
        else:
            rows.append(record)
    named = [
        replace(row, file=Path(row.file).name, reason=by_names(row.reason, file.parent, root=root))
        for row in sorted(bad, key=lambda row: row.line)
    ]
    return Loaded(rows, named)


def _about_bad(bad: Sequence[BadRow]) -> str:
    """Return the message about rows that are left out, '' for none."""
    return f"{len(bad)} rows left out:\n{format_bad_rows(bad)}" if bad else ""


def _said(error: Exception, setup: Setup) -> str:
    return told(error, setup.work, root=setup.media_root)


def _off() -> list[Any]:
    return [switch(False) for _ in DOWNLOADS]


def _judge_file(setup: Setup, stopped: Event, file: str | None, orders: str) -> Iterator[list[Any]]:
    """Judge an uploaded file; where that is stopped or fails, what was judged before it is kept."""
    if file is None:
        raise InputError("Choose a file of pairs first.")
    loaded = load_pairs(Path(file), setup.media_root)
    alerts = view.alert(_about_bad(loaded.bad))
    if not loaded.rows:
        yield [alerts, WAITING, *_off()]
        return
    folder = Path(tempfile.mkdtemp(dir=setup.work))
    config = replace(setup.config, orders="both" if orders == "both" else "one")
    done, total = 0, sum(len(orders_of(record, config)) for record in loaded.rows)
    try:
        for done in _judged(setup.backend, loaded.rows, config, folder, stopped):
            words = "Stopping after this batch: " if stopped.is_set() else ""
            yield [alerts, view.bar(done, total, f"{words}{done} of {total} judgments"), *_off()]
        if done < total:
            alerts += view.alert(f"Stopped after {done} of {total} judgments.")
    except Exception as error:  # whatever the model's code raises
        alerts += view.alert(f"Ended after {done} of {total} judgments. {_said(error, setup)}")
    judgments = _finish(setup, loaded.rows, folder) if done else []
    failed = [row for row in judgments if row.error]
    if failed:
        first = by_names(f"{failed[0].record_id}: {failed[0].error}", setup.work, root=setup.media_root)
        alerts += view.alert(f"{len(failed)} judgments failed; the first: {first}")
    if not judgments:
        yield [alerts, WAITING, *_off()]
        return
    links = [gr.DownloadButton(value=str(folder / name), interactive=True) for name in DOWNLOADS.values()]
    yield [alerts, view.summary(summarize(judgments)), *links]


def _judged(
    backend: Backend, records: Sequence[PreferenceRecord], config: JudgingConfig, folder: Path, stopped: Event
) -> Iterator[int]:
    """Judge into a file beside the page, and yield how many judgments it holds; a stop ends it after the batch."""
    output = folder / DOWNLOADS["Judgments"]

    def written() -> int:
        return output.read_bytes().count(b"\n") if output.exists() else 0

    with ThreadPoolExecutor(max_workers=1) as thread:
        judging = thread.submit(judge, records, Watched(backend, stopped), config, output)
        try:
            while not judging.done():
                yield written()
                wait([judging], timeout=EVERY)
        except GeneratorExit:
            stopped.set()
            raise
    yield written()
    with suppress(Stopped):
        judging.result()


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
        sampling=setup.config.frames,
    )
    return judgments
