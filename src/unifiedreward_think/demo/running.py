"""From a click to its end: who may press what meanwhile, and what the page says where a handler cannot.

A click is heard in three steps: `begin` says at once that the model is waited for, the work itself writes what comes of
it, and at its end, whatever that is, the buttons are as before. What was asked is kept by page.js, so that the page can
tell an answer to something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from unifiedreward_think.demo import view
from unifiedreward_think.demo.asking import Stopped, Stops

UNHEARD = "The server could not take this: nothing was asked. Its log says why. Reload the page, and try again."


class Buttons(NamedTuple):
    """What is pressed in a tab.

    Attributes:
        start: buttons that ask.
        stop: ends what they have asked.
    """

    start: Sequence[gr.Button]
    stop: gr.Button


def follow(
    name: str,
    stops: Stops,
    buttons: Buttons,
    works: Sequence[Callable[..., Any]],
    *,
    inputs: Sequence[Any],
    fields: Sequence[Any],
    outputs: Sequence[Any],
    empty: Sequence[Any],
    waiting: str,
) -> list[Any]:
    """Connect the buttons of a tab, and return the events that end with an answer.

    Args:
        name: element that holds the tab.
        stops: of the page.
        buttons: of the tab.
        works: what each button that asks sets off.
        inputs: of `works`.
        fields: those of them, one after another, that say what is asked about.
        outputs: of `works`: what went wrong, the answer, what belongs to it, and perhaps a state.
        empty: the answer and what belongs to it where there is none.
        waiting: the answer while the model is busy with another question.
    """
    shown = list(outputs[: 1 + len(empty)])
    switches = [*buttons.start, buttons.stop]
    ready = [switch(True)] * len(buttons.start) + [switch(False)]
    busy = [switch(False)] * len(buttons.start) + [switch(True)]
    begin, halt = stop_handlers(stops, name, ["", waiting, *empty[1:], *busy])
    buttons.stop.click(halt, queue=False, api_visibility="private")
    failed = [view.alert(UNHEARD), *empty, *ready]
    quiet = {"queue": False, "api_visibility": "private"}

    def or_fail(event: Any) -> Any:
        # In the browser, as nothing on the server may be left to ask: its own reading of the fields failed, say.
        event.failure(None, js=_returning(failed), outputs=[*shown, *switches], **quiet)
        return event

    first = inputs.index(fields[0])
    asked = f"(...all) => urAsked({json.dumps(name)}, all, all.slice({first}, {first + len(fields)}))"
    events = []
    for button, work in zip(buttons.start, works, strict=True):
        begun = or_fail(button.click(begin, outputs=[*shown, *switches], **quiet))
        event = begun.then(
            work,
            inputs=list(inputs),
            outputs=list(outputs),
            js=asked,
            # One model answers one question at a time, whoever asks.
            concurrency_limit=1,
            concurrency_id="model",
            show_progress="hidden",
            api_visibility="private",
        )
        or_fail(event).then(None, js=_returning(ready), outputs=switches, **quiet)
        events.append(event)
    return events


def asker(
    stops: Stops, tab: str, work: Callable[..., Iterator[Any]], *, stopped: Any, failed: Callable[[Exception], Any]
) -> Callable[..., Iterator[Any]]:
    """Return a handler that writes what `work` yields, and at the end that it was stopped, or why it failed.

    Args:
        stops: of the page.
        tab: element that holds the tab.
        work: takes what is set when the session stops it, and the values of the fields.
        stopped: outputs where it was stopped.
        failed: makes the outputs of an error.
    """

    def ask(request: gr.Request, *values: Any) -> Iterator[Any]:
        try:
            yield from work(stops.event(str(request.session_hash), tab), *values)
        except Stopped:
            yield stopped
        except Exception as error:  # whatever it is: who asked must not wait for ever, nor lack the reason
            yield failed(error)

    return ask


def stale_when_changed(name: str, fields: Sequence[Any]) -> None:
    """Let the page mark an answer as that of something before, once one of the fields differs from what was asked."""
    for field in fields:
        js = f"(...fields) => urChanged({json.dumps(name)}, fields)"
        field.change(None, js=js, inputs=list(fields), queue=False, api_visibility="private")


def stop_handlers(stops: Stops, tab: str, waiting: list[Any]) -> tuple[Callable[..., Any], Callable[..., None]]:
    """Return what a click on a button that asks does at once, and what a click on stop does.

    What is asked may have to wait for the model: the page says so, and the question can be stopped already.
    """

    def begin(request: gr.Request) -> list[Any]:
        stops.begin(str(request.session_hash), tab)
        return waiting

    def halt(request: gr.Request) -> None:
        stops.event(str(request.session_hash), tab).set()

    return begin, halt


def switch(interactive: bool) -> dict[str, Any]:
    """Return what switches a button on or off, also from the browser, which knows no components."""
    return {"__type__": "update", "interactive": interactive}


def _returning(values: Sequence[Any]) -> str:
    return f"() => ({json.dumps(values)})"
