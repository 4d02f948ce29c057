"""The tab of one task: place two candidates, judge, watch the reasoning, swap and ask again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any

import gradio as gr

from unifiedreward_think.bounded import open_bounded
from unifiedreward_think.demo import view
from unifiedreward_think.demo.asking import Asking, Setup, Stops, make_record
from unifiedreward_think.demo.faults import by_names, told
from unifiedreward_think.demo.fields import UNASKED, UNWRITTEN, answered, medium, small, votes_of
from unifiedreward_think.demo.running import Buttons, asker, follow, stale_when_changed
from unifiedreward_think.order import Order
from unifiedreward_think.records import Judgment, PreferenceRecord
from unifiedreward_think.tasks import TASKS

EMPTY = '<p class="ur-empty">The verdict appears here: scores by dimension, the reasoning as it is written.</p>'
ENDED = view.alert("Stopped."), EMPTY, gr.skip(), UNWRITTEN, gr.skip()
SWAPPING = (
    "A judge may prefer a place instead of a candidate. Swap and ask again shows it the two the other way round: where "
    "both orders name the same one, the verdict does not depend on the place."
)
VOTING = "Several answers to one question, drawn at random: the majority wins. A narrow one: the judge is unsure."

# What was asked in a session: (record id, order) -> the pair and its samples; asking again replaces.
Session = dict[tuple[str, Order], view.Asked]


def build_tab(task: str, setup: Setup, session: Any, stops: Stops) -> list[Any]:
    """Lay out the tab of a task, connect its events, and return those that end with a judgment."""
    examples = [record for record in setup.examples if record.task == task]
    name = f"ur-{task}"
    with gr.Row(equal_height=False, elem_id=name):
        with gr.Column(scale=5, min_width=320):
            fields = _fields(task, examples[0] if examples else None, setup)
            with gr.Row():
                judge = gr.Button("Judge", variant="primary", elem_classes="ur-judge", scale=3, min_width=60)
                swap = gr.Button("Swap and ask again", elem_classes="ur-swap", scale=4, min_width=130)
                stop = gr.Button("Stop", elem_classes="ur-stop", scale=2, min_width=50, interactive=False)
            message = gr.HTML(elem_classes="ur-message", padding=False)
            gr.HTML(small(SWAPPING), padding=False)
            if examples:
                gr.Examples(
                    [_values(record) for record in examples],
                    inputs=fields,
                    example_labels=[record.prompt for record in examples],
                    label="Examples",
                )
            votes, heat = votes_of("Votes", VOTING)
        result, prompt, raw = answered(EMPTY)
    stale_when_changed(name, fields)
    return follow(
        name,
        stops,
        Buttons([judge, swap], stop),
        [
            asker(stops, name, partial(_ask, setup, task, again), stopped=ENDED, failed=partial(_failed, setup))
            for again in (False, True)
        ],
        inputs=[session, *fields, votes, heat],
        fields=fields,
        outputs=[message, result, prompt, raw, session],
        empty=[EMPTY, UNASKED, UNWRITTEN],
        waiting=view.waiting(),
    )


def _fields(task: str, example: PreferenceRecord | None, setup: Setup) -> list[Any]:
    """Lay out the caption or question, the media and the answers, filled with an example."""
    kind, noun = TASKS[task].media_kind, TASKS[task].noun
    generation = TASKS[task].compares_media
    values = _values(example) if example else [None] * 4
    prompt = gr.Textbox(
        values[0], label="Caption" if generation else "Question", lines=1, max_lines=4, elem_classes="ur-asked"
    )
    names = [f"{noun} A", f"{noun} B"] if generation else [kind.capitalize()]
    with gr.Row(elem_classes="ur-film" if kind == "video" else "ur-pair"):
        media = [medium(kind, name, value, setup) for name, value in zip(names, values[1:], strict=False)]
    if kind == "video" and generation:
        with gr.Row():
            both = gr.Button("Play or pause both", size="sm", min_width=120)
            again = gr.Button("Both from the start", size="sm", min_width=120)
        both.click(None, js="() => { urPlay(false) }", api_visibility="private")
        again.click(None, js="() => { urPlay(true) }", api_visibility="private")
    if kind == "image" and generation:
        _slider(media, values[1:], setup)
    if generation:
        return [prompt, *media]
    answers = [
        gr.Textbox(value, label=f"Answer {letter}", lines=2, max_lines=8, elem_classes=f"ur-answer-{letter.lower()}")
        for letter, value in zip("AB", values[2:], strict=False)
    ]
    return [prompt, *media, *answers]


def _slider(media: list[Any], paths: list[str | None], setup: Setup) -> None:
    """Add the slider that lays two pictures of equal size over each other."""

    def incomparable(first: str | None, second: str | None) -> str:
        try:
            return _incomparable(first, second)
        except Exception as error:  # whatever a decoder raises
            return told(error, setup.work)

    reason = incomparable(*paths[:2])
    with gr.Accordion("Compare with a slider", open=False, elem_classes="ur-slider"):
        shared = {"type": "filepath", "interactive": False, "show_label": False, "buttons": [], "max_height": 360}
        slider = gr.ImageSlider(None if reason else paths[:2], visible=not reason, **shared)
        why = gr.HTML(small(reason), visible=bool(reason))

    def compare(first: str | None, second: str | None) -> tuple[Any, Any]:
        reason = incomparable(first, second)
        shown = gr.ImageSlider(None if reason else (first, second), visible=not reason)
        return shown, gr.HTML(small(reason), visible=bool(reason))

    for picture in media:
        picture.change(
            compare, inputs=media, outputs=[slider, why], show_progress="hidden", api_visibility="private", queue=False
        )


def _incomparable(first: str | None, second: str | None) -> str:
    if not (first and second):
        return "The slider needs both images."
    sizes = [open_bounded(path).size for path in (first, second)]
    if sizes[0] == sizes[1]:
        return ""
    a, b = (f"{width} x {height}" for width, height in sizes)
    return f"The slider needs images of one size; A has {a} pixels, B {b}."


def _values(record: PreferenceRecord) -> list[Any]:
    return [record.prompt, *(entry[0] for entry in record.media), *record.answers]


def _failed(setup: Setup, error: Exception) -> tuple[Any, ...]:
    return view.alert(told(error, setup.work)), EMPTY, UNASKED, UNWRITTEN, gr.skip()


def _ask(
    setup: Setup, task: str, swap: bool, stopped: Event, session: Session, *values: Any
) -> Iterator[tuple[Any, ...]]:
    """Judge what the fields hold, in the order A, B, or with `swap` in the other one than before."""
    *fields, votes, temperature = values
    count = 2 if TASKS[task].compares_media else 1
    record = make_record(task, fields[0] or "", fields[1 : 1 + count], [text or "" for text in fields[1 + count :]])
    record = setup.known.get(record.id, record)
    order = _order(session, record, swap)
    config = setup.sampled(int(votes), temperature)
    asking = Asking(record, order, setup.backend, config, stopped)
    prompt = view.prompt(record, order, config)
    yield "", view.writing(record, order, "", config), prompt, gr.skip(), gr.skip()
    for text in asking:
        card = view.writing(record, order, text, config)
        yield ENDED if stopped.is_set() else ("", card, gr.skip(), gr.skip(), gr.skip())
    paths = [path for entry in record.media for path in entry]
    rows = [replace(row, error=by_names(row.error, setup.work, paths=paths)) for row in asking.judgments]
    session = {key: value for key, value in session.items() if key != (record.id, order)}
    session[record.id, order] = (record, rows)
    yield "", view.card(record, rows, _other(session, record, order)), gr.skip(), view.raw(rows), session


def _order(session: Session, record: PreferenceRecord, swap: bool) -> Order:
    """Return "ab", or with `swap` the order that was not asked last."""
    orders = [order for name, order in session if name == record.id]
    return "ba" if swap and orders[-1:] != ["ba"] else "ab"


def _other(session: Session, record: PreferenceRecord, order: Order) -> list[Judgment]:
    judged = session.get((record.id, "ba" if order == "ab" else "ab"))
    return judged[1] if judged else []
