"""The tab of one task: place two candidates, judge, watch the reasoning, swap and ask again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from unifiedreward_think.demo import view
from unifiedreward_think.demo.asking import Asking, Setup, Stopped, Stops, make_record
from unifiedreward_think.errors import InputError
from unifiedreward_think.media import MediaError, open_image
from unifiedreward_think.order import Order
from unifiedreward_think.records import Judgment, PreferenceRecord
from unifiedreward_think.tasks import TASKS

MEDIA_HEIGHT = 230
EMPTY = '<p class="ur-empty">The verdict appears here: scores by dimension, the reasoning as it is written.</p>'

# What was asked in a session: (record id, order) -> the pair and its samples; asking again replaces.
Session = dict[tuple[str, Order], view.Asked]


def build_tab(task: str, setup: Setup, session: Any, stops: Stops) -> list[Any]:
    """Lay out the tab of a task, connect its events, and return those that end with a judgment."""
    examples = [record for record in setup.examples if record.task == task]
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            fields = _fields(task, examples[0] if examples else None)
            with gr.Row():
                judge = gr.Button("Judge", variant="primary", elem_classes="ur-judge", scale=3, min_width=60)
                swap = gr.Button("Swap and ask again", elem_classes="ur-swap", scale=4, min_width=130)
                stop = gr.Button("Stop", variant="stop", elem_classes="ur-stop", scale=2, min_width=50)
            message = gr.HTML(elem_classes="ur-message", padding=False)
            if examples:
                gr.Examples(
                    [_values(record) for record in examples],
                    inputs=fields,
                    example_labels=[record.prompt for record in examples],
                    label="Examples",
                )
            with gr.Accordion("Votes", open=False):
                votes = gr.Slider(
                    1, 9, value=1, step=1, label="Samples", info="One is greedy; more are sampled, and vote"
                )
                heat = gr.Slider(0.1, 1.5, value=1.0, step=0.1, label="Temperature", info="Of several samples")
        with gr.Column(scale=6, min_width=320):
            result = gr.HTML(EMPTY, elem_classes="ur-result", padding=False)
            with gr.Accordion("Prompt", open=False, elem_classes="ur-prompt"):
                prompt = gr.HTML('<p class="ur-small">What the model was asked, after it was asked.</p>')
            with gr.Accordion("Raw text", open=False, elem_classes="ur-rawtext"):
                raw = gr.HTML('<p class="ur-small">The completion word for word, after it is written.</p>')
    begin, halt = stop_handlers(stops, task, view.waiting())
    stop.click(halt, queue=False, api_visibility="private")
    return [
        button.click(begin, outputs=[message, result], queue=False, api_visibility="private").then(
            _asker(setup, task, stops, swap=again),
            inputs=[session, *fields, votes, heat],
            outputs=[message, result, prompt, raw, session],
            # One model answers one question at a time, whoever asks.
            concurrency_limit=1,
            concurrency_id="model",
            show_progress="hidden",
            api_visibility="private",
        )
        for button, again in ((judge, False), (swap, True))
    ]


def stop_handlers(stops: Stops, tab: str, waiting: str) -> tuple[Callable[..., Any], Callable[..., None]]:
    """Return what a click on a button that asks does at once, and what a click on stop does.

    What is asked may have to wait for the model: the page says so, and the question can be stopped already.
    """

    def begin(request: gr.Request) -> tuple[str, str]:
        stops.begin(str(request.session_hash), tab)
        return "", waiting

    def halt(request: gr.Request) -> None:
        stops.event(str(request.session_hash), tab).set()

    return begin, halt


def _fields(task: str, example: PreferenceRecord | None) -> list[Any]:
    """Lay out the caption or question, the media and the answers, filled with an example."""
    kind, noun = TASKS[task].media_kind, TASKS[task].noun
    generation = TASKS[task].compares_media
    values = _values(example) if example else [None] * 4
    asked = gr.Textbox(
        values[0], label="Caption" if generation else "Question", lines=1, max_lines=4, elem_classes="ur-asked"
    )
    names = [f"{noun} A", f"{noun} B"] if generation else [kind.capitalize()]
    with gr.Row(elem_classes="ur-film" if kind == "video" else "ur-pair"):
        media = [_medium(kind, name, value) for name, value in zip(names, values[1:], strict=False)]
    if kind == "video" and generation:
        with gr.Row():
            both = gr.Button("Play or pause both", size="sm", min_width=120)
            again = gr.Button("Both from the start", size="sm", min_width=120)
        both.click(None, js="() => { urPlay(false) }", api_visibility="private")
        again.click(None, js="() => { urPlay(true) }", api_visibility="private")
    if kind == "image" and generation:
        _slider(media, values[1:])
    if generation:
        return [asked, *media]
    answers = [
        gr.Textbox(value, label=f"Answer {letter}", lines=2, max_lines=8, elem_classes=f"ur-answer-{letter.lower()}")
        for letter, value in zip("AB", values[2:], strict=False)
    ]
    return [asked, *media, *answers]


def _medium(kind: str, name: str, value: str | None) -> Any:
    shared = {"label": name, "height": MEDIA_HEIGHT, "min_width": 130, "sources": ["upload"]}
    if kind == "video":
        return gr.Video(value, loop=True, buttons=[], **shared)
    return gr.Image(value, type="filepath", buttons=["fullscreen"], **shared)


def _slider(media: list[Any], paths: list[str | None]) -> None:
    """Add the slider that lays two pictures of equal size over each other."""
    reason = _incomparable(*paths[:2])
    with gr.Accordion("Compare with a slider", open=False, elem_classes="ur-slider"):
        shared = {"type": "filepath", "interactive": False, "show_label": False, "buttons": [], "max_height": 360}
        slider = gr.ImageSlider(None if reason else paths[:2], visible=not reason, **shared)
        why = gr.HTML(_small(reason), visible=bool(reason))

    def compare(first: str | None, second: str | None) -> tuple[Any, Any]:
        reason = _incomparable(first, second)
        shown = gr.ImageSlider(None if reason else (first, second), visible=not reason)
        return shown, gr.HTML(_small(reason), visible=bool(reason))

    for picture in media:
        picture.change(
            compare, inputs=media, outputs=[slider, why], show_progress="hidden", api_visibility="private", queue=False
        )


def _small(text: str) -> str:
    return f'<p class="ur-small">{escape(text)}</p>'


def _incomparable(first: str | None, second: str | None) -> str:
    if not (first and second):
        return "The slider needs both images."
    try:
        sizes = [open_image(path).size for path in (first, second)]
    except MediaError as error:
        return str(error)
    if sizes[0] == sizes[1]:
        return ""
    a, b = (f"{width} x {height}" for width, height in sizes)
    return f"The slider needs images of one size; A has {a} pixels, B {b}."


def _values(record: PreferenceRecord) -> list[Any]:
    return [record.prompt, *(entry[0] for entry in record.media), *record.answers]


def _asker(setup: Setup, task: str, stops: Stops, *, swap: bool) -> Callable[..., Iterator[tuple[Any, ...]]]:
    def ask(request: gr.Request, session: Session, *values: Any) -> Iterator[tuple[Any, ...]]:
        stopped = stops.event(str(request.session_hash), task)
        yield from _ask(setup, task, stopped, session, values, swap=swap)

    return ask


def _ask(
    setup: Setup, task: str, stopped: Event, session: Session, values: Sequence[Any], *, swap: bool
) -> Iterator[tuple[Any, ...]]:
    """Judge what the fields hold, in the order A, B, or with `swap` in the other one than before."""
    *said, votes, temperature = values
    ended = view.alert("Stopped."), EMPTY, gr.skip(), "", gr.skip()
    count = 2 if TASKS[task].compares_media else 1
    try:
        record = make_record(task, said[0] or "", said[1 : 1 + count], [text or "" for text in said[1 + count :]])
        record = setup.known.get(record.id, record)
        order = _order(session, record, swap)
        protocol = setup.protocol(votes=int(votes), temperature=temperature)
        asking = Asking(record, order, setup.backend, protocol, stopped)
        asked = view.prompt(record, order, setup.prompts)
        yield "", view.writing(record, order, "", setup.style), asked, "", gr.skip()
        for text in asking:
            card = view.writing(record, order, text, setup.style)
            yield ended if stopped.is_set() else ("", card, gr.skip(), gr.skip(), gr.skip())
    except Stopped:
        yield ended
        return
    except InputError as error:
        yield view.alert(str(error)), EMPTY, "", "", gr.skip()
        return
    rows = [replace(row, error=_by_name(row.error, record)) for row in asking.judgments]
    session = {key: value for key, value in session.items() if key != (record.id, order)}
    session[record.id, order] = (record, rows)
    yield "", view.card(record, rows, _other(session, record, order)), gr.skip(), view.raw(rows), session


def _order(session: Session, record: PreferenceRecord, swap: bool) -> Order:
    """Return "ab", or with `swap` the order that was not asked last."""
    asked = [order for name, order in session if name == record.id]
    return "ba" if swap and asked[-1:] != ["ba"] else "ab"


def _other(session: Session, record: PreferenceRecord, order: Order) -> list[Judgment]:
    found = session.get((record.id, "ba" if order == "ab" else "ab"))
    return found[1] if found else []


def _by_name(error: str, record: PreferenceRecord) -> str:
    """Call files by their names: where they lie here is no business of whoever uploaded them."""
    for path in (path for entry in record.media for path in entry):
        error = error.replace(path, Path(path).name)
    return error
