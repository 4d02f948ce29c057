"""The page: four task tabs, a tab for scores, a batch tab, and the history of the session.

    demo = build_demo(setup)
    demo.launch(app_kwargs=only_named("127.0.0.1", []), **look())

`gradio/app.py` does this.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from unifiedreward_think.demo import view
from unifiedreward_think.demo.asking import Setup, Stops
from unifiedreward_think.demo.batch_tab import build_batch
from unifiedreward_think.demo.faults import told
from unifiedreward_think.demo.pair_tab import Session, build_tab
from unifiedreward_think.demo.score_tab import build_scores
from unifiedreward_think.evaluation.tables import title
from unifiedreward_think.records import digest
from unifiedreward_think.serving.hosts import HostCheck, own_hosts
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.writing import write_whole

HERE = Path(__file__).parent
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # of the machine: nothing is fetched
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
HOUR = 3600
KEYS = "Ctrl + Enter judges, Ctrl + Shift + Enter swaps and asks again."


def build_demo(setup: Setup) -> gr.Blocks:
    """Return the page, to be launched with the options of `look`."""
    with gr.Blocks(title="UnifiedReward-Think", analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as demo:
        gr.HTML(view.heading(setup.judge, setup.note), padding=False)
        session, stops = gr.State({}), Stops()
        with gr.Tabs(overflow_behavior="wrap"):
            events = []
            for task in TASKS:
                if task in setup.config.prompts:
                    with gr.Tab(title(task)):
                        events += build_tab(task, setup, session, stops)
            if setup.points is not None:
                with gr.Tab("Score"):
                    build_scores(setup, setup.points, stops)
            with gr.Tab("Batch"):
                build_batch(setup, stops)
            with gr.Tab("History"):
                table = gr.HTML(view.history([]), padding=False)
                with gr.Row():
                    links = [
                        gr.DownloadButton(f"Export {name} (JSONL)", interactive=False, min_width=200)
                        for name in ("judgments", "records")
                    ]
        gr.HTML(f'<p class="ur-small ur-keys">{KEYS}</p>', padding=False)

        def show_history(request: gr.Request, session: Session) -> list[Any]:
            try:
                return _history(setup.work / f"history-{digest(str(request.session_hash)):016x}", session)
            except Exception as error:  # whatever it is, such as a full disk: the table must not seem whole
                return [view.alert(told(error, setup.work)), gr.skip(), gr.skip()]

        for event in events:
            event.then(
                show_history,
                inputs=[session],
                outputs=[table, *links],
                show_progress="hidden",
                api_visibility="private",
            )

        def leave(request: gr.Request) -> None:
            stops.leave(str(request.session_hash))

        demo.unload(leave)
    return demo


def look() -> dict[str, Any]:
    """Return the launch options that make up the page's look; it loads nothing from elsewhere."""
    theme = gr.themes.Soft(
        primary_hue="blue", secondary_hue="blue", neutral_hue="gray", radius_size="md", font=FONTS, font_mono=MONO
    ).set(
        body_background_fill="#fafaf8",
        body_background_fill_dark="#14171b",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1b1f24",
        body_text_color_subdued="#5d646e",
        body_text_color_subdued_dark="#a3abb5",
        checkbox_label_background_fill_selected="#2f62a3",
        checkbox_label_background_fill_selected_dark="#2f62a3",
        block_border_width="1px",
        block_border_color="#e0e1de",
        block_border_color_dark="#343b43",
        block_shadow="none",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_padding="0",
        block_title_text_color="#1d2126",
        block_title_text_color_dark="#e6e8ea",
        block_title_text_weight="600",
        block_label_text_color="#1d2126",
        block_label_text_color_dark="#e6e8ea",
        block_label_background_fill="#f3f3f0",
        block_label_background_fill_dark="#23282e",
        input_background_fill_dark="#14171b",
        button_primary_background_fill="#2f62a3",
        button_primary_background_fill_hover="#27538b",
        button_primary_background_fill_dark="#2f62a3",
        button_primary_background_fill_hover_dark="#3f77bd",
        button_secondary_background_fill_dark="#343b43",
        button_secondary_background_fill_hover_dark="#424a54",
        button_cancel_background_fill_dark="#343b43",
        button_cancel_background_fill_hover_dark="#424a54",
        button_large_text_size="15px",
        button_large_padding="9px 12px",
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return {
        "theme": theme,
        "css": (HERE / "page.css").read_text(encoding="utf-8"),
        "head": f"<script>{script}</script>",
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
    }


def only_named(host: str, more: Sequence[str]) -> dict[str, Any]:
    """Return the launch options' `app_kwargs` with which the page answers to names of its own, as the reward server."""
    return {"middleware": [Middleware(HostCheck, hosts=own_hosts(host, more))]}


def _history(folder: Path, session: Session) -> list[Any]:
    """Return the table, and the files of all that was asked, which take the place of those before."""
    judged = list(session.values())
    if not judged:
        return [gr.skip()] * 3
    folder.mkdir(exist_ok=True)
    lines = {
        "judgments.jsonl": [row.to_json() for _, rows in judged for row in rows],
        "records.jsonl": list({record.id: record.to_json() for record, _ in judged}.values()),
    }
    for name, rows in lines.items():
        write_whole(folder / name, "".join(json.dumps(row) + "\n" for row in rows))
    return [view.history(judged), *(gr.DownloadButton(value=str(folder / name), interactive=True) for name in lines)]
