"""What the tabs that ask have in common: places for media, how often to ask, and where the answer stands."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from unifiedreward_think.demo import view
from unifiedreward_think.demo.asking import Setup
from unifiedreward_think.demo.faults import told
from unifiedreward_think.media import thumbnails

MEDIA_HEIGHT = 230
UNASKED = '<p class="ur-small">What the model was asked, after it was asked.</p>'
UNWRITTEN = '<p class="ur-small">The completion word for word, after it is written.</p>'


def medium(kind: str, name: str, value: str | None, setup: Setup) -> Any:
    """Lay out a medium; under a clip that the browser cannot play, page.js asks for its frames."""
    if kind == "image":
        return _field(kind, name, value)

    def as_frames(path: str | None) -> str:
        try:
            return view.frames(thumbnails([[path]], "video", setup.config.frames)[0]) if path else ""
        except Exception as error:  # whatever a decoder raises
            return view.alert(told(error, setup.work))

    with gr.Column(min_width=130):
        video = _field(kind, name, value)
        ask = gr.Button(f"Frames of {name}", elem_classes="ur-ask-frames")
        frames = gr.HTML(elem_classes="ur-frames", padding=False)
    video.change(None, js="() => ''", outputs=[frames], api_visibility="private")
    ask.click(as_frames, inputs=[video], outputs=[frames], show_progress="hidden", api_visibility="private")
    return video


def _field(kind: str, name: str, value: str | None) -> Any:
    shared = {"label": name, "height": MEDIA_HEIGHT, "min_width": 130, "sources": ["upload"]}
    if kind == "video":
        return gr.Video(value, loop=True, buttons=[], **shared)
    # image_mode: by default Gradio converts uploads to RGB itself, and transparency becomes black.
    image = gr.Image(value, type="filepath", image_mode=None, buttons=["fullscreen"], **shared)
    # Gradio opens each picture on its way to a handler; where that fails, no handler runs, and nobody can say why.
    image.preprocess = lambda payload: payload.path if payload else None
    return image


def votes_of(name: str, why: str) -> tuple[Any, Any]:
    """Lay out how many answers are asked for, under a name, and how they are drawn."""
    with gr.Accordion(f"{name}: ask several times", open=False):
        gr.HTML(small(why), padding=False)
        votes = gr.Slider(1, 9, value=1, step=1, label=name, info="One is greedy; more are sampled")
        heat = gr.Slider(0.1, 1.5, value=1.0, step=0.1, label="Temperature", info=f"Of several {name.lower()}")
    return votes, heat


def answered(empty: str) -> tuple[Any, Any, Any]:
    """Lay out the answer, which is `empty` before anything was asked, and what belongs to it: prompt and raw text."""
    with gr.Column(scale=6, min_width=320, elem_classes="ur-answered"):
        result = gr.HTML(empty, elem_classes="ur-result", padding=False)
        with gr.Accordion("Prompt", open=False, elem_classes="ur-prompt"):
            prompt = gr.HTML(UNASKED)
        with gr.Accordion("Raw text", open=False, elem_classes="ur-rawtext"):
            raw = gr.HTML(UNWRITTEN)
    return result, prompt, raw


def small(text: str) -> str:
    """Return a remark."""
    return f'<p class="ur-small">{escape(text)}</p>'
