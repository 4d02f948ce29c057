"""The tab for scores: place one candidate, have it scored, watch the reasoning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any

import gradio as gr

from unifiedreward_think.candidate_points import Points
from unifiedreward_think.demo import view
from unifiedreward_think.demo.asking import Asking, Setup, Stops, make_record, sampled
from unifiedreward_think.demo.faults import by_names, told
from unifiedreward_think.demo.fields import UNASKED, UNWRITTEN, answered, medium, votes_of
from unifiedreward_think.demo.running import Buttons, asker, follow, stale_when_changed
from unifiedreward_think.evaluation.tables import title
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.order import letters
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.tasks import TASKS

TAB = "ur-score"
ALONE = letters(1)  # the order in which one candidate is shown
EMPTY = '<p class="ur-empty">The score appears here: its dimensions, their sum, the reasoning as it is written.</p>'
ENDED = view.alert("Stopped."), EMPTY, gr.skip(), UNWRITTEN
SAMPLING = "Several scores of one candidate, drawn at random: their mean counts, and their spread says how sure it is."


def build_scores(setup: Setup, config: JudgingConfig, stops: Stops) -> None:
    """Lay out the tab and connect its events."""
    tasks = [task for task in TASKS if task in config.prompts]
    of_task = {record.task: record for record in reversed(setup.examples)}  # the first of each
    examples = [of_task[task] for task in tasks if task in of_task]
    with gr.Row(equal_height=False, elem_id=TAB):
        with gr.Column(scale=5, min_width=320):
            fields = _fields(tasks, examples[0] if examples else None, setup)
            with gr.Row():
                ask = gr.Button("Score", variant="primary", elem_classes="ur-judge", scale=3, min_width=60)
                stop = gr.Button("Stop", elem_classes="ur-stop", scale=1, min_width=50, interactive=False)
            message = gr.HTML(elem_classes="ur-message", padding=False)
            if examples:
                gr.Examples(
                    [_values(record) for record in examples],
                    inputs=fields,
                    example_labels=[f"{title(record.task)}: {record.prompt}" for record in examples],
                    label="Examples",
                )
            votes, heat = votes_of("Samples", SAMPLING)
        result, prompt, raw = answered(EMPTY)
    stale_when_changed(TAB, fields)
    follow(
        TAB,
        stops,
        Buttons([ask], stop),
        [asker(stops, TAB, partial(_ask, setup, config), stopped=ENDED, failed=partial(_failed, setup))],
        inputs=[*fields, votes, heat],
        fields=fields,
        outputs=[message, result, prompt, raw],
        empty=[EMPTY, UNASKED, UNWRITTEN],
        waiting=view.waiting(),
    )


def _fields(tasks: Sequence[str], example: PreferenceRecord | None, setup: Setup) -> list[Any]:
    """Lay out task, caption or question, media of each kind and the answer; hidden is what the task does not use."""
    first = example.task if example else tasks[0]
    values = _values(example) if example else [first, *[None] * 4]
    task = gr.Radio([(title(name), name) for name in tasks], value=first, label="Task", elem_classes="ur-task")
    prompt = gr.Textbox(values[1], label=_asked(first), lines=1, max_lines=4, elem_classes="ur-asked")
    boxes, media = {}, []
    for kind, value in zip(("image", "video"), values[2:4], strict=True):
        shown = {
            "visible": TASKS[first].media_kind == kind,
            "elem_classes": "ur-film" if kind == "video" else "ur-pair",
        }
        with gr.Column(min_width=130, **shown) as boxes[kind]:
            media.append(medium(kind, kind.capitalize(), value, setup))
    answer = gr.Textbox(
        values[4], label="Answer", lines=2, max_lines=8, visible=not TASKS[first].compares_media,
        elem_classes="ur-answer-a",
    )  # fmt: skip

    def show(chosen: str) -> list[Any]:
        kinds = [gr.Column(visible=TASKS[chosen].media_kind == kind) for kind in boxes]
        return [gr.Textbox(label=_asked(chosen)), *kinds, gr.Textbox(visible=not TASKS[chosen].compares_media)]

    task.change(
        show,
        inputs=[task],
        outputs=[prompt, *boxes.values(), answer],
        show_progress="hidden",
        api_visibility="private",
        queue=False,
    )
    return [task, prompt, *media, answer]


def _asked(task: str) -> str:
    return "Caption" if TASKS[task].compares_media else "Question"


def _values(record: PreferenceRecord) -> list[Any]:
    """Return what the fields hold for the first candidate of a record."""
    path = record.media[0][0]
    places = [path if TASKS[record.task].media_kind == kind else None for kind in ("image", "video")]
    return [record.task, record.prompt, *places, record.answers[0] if record.answers else ""]


def _failed(setup: Setup, error: Exception) -> tuple[Any, ...]:
    return view.alert(told(error, setup.work)), EMPTY, UNASKED, UNWRITTEN


def _ask(setup: Setup, config: JudgingConfig, stopped: Event, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Score what the fields hold."""
    task, caption, image, video, answer, samples, temperature = values
    path = image if TASKS[task].media_kind == "image" else video
    record = make_record(task, caption or "", [path], [] if TASKS[task].compares_media else [answer or ""])
    chosen = sampled(config, int(samples), temperature)
    asking = Asking(record, ALONE, setup.backend, chosen, stopped)
    yield "", view.scoring(record, ALONE, "", chosen), view.prompt(record, ALONE, chosen), gr.skip()
    for text in asking:
        yield ENDED if stopped.is_set() else ("", view.scoring(record, ALONE, text, chosen), gr.skip(), gr.skip())
    rows = [replace(row, error=by_names(row.error, setup.work, paths=[path])) for row in asking.judgments]
    points = Points(record_id=record.id, candidate=1, samples=tuple(rows))
    yield "", view.points(points), gr.skip(), view.raw(rows)
