"""The demo page, started once for a file of tests on a judge that prefers red, and a browser window on it.

Screenshots of what was tested go to the folder that UNIFIEDREWARD_SCREENSHOTS names, by default to build/screenshots.
"""

import contextlib
import os
import re
import time
from dataclasses import replace

import pytest
from PIL import Image

from helpers.browser import CHROMIUM, SCREENSHOTS
from unifiedreward_think.backends import Completion
from unifiedreward_think.demo.asking import Setup
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.points import render_points
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.strict_json import read_json_lines
from unifiedreward_think.verdict import render

TITLES = ["Image generation", "Video generation", "Image understanding", "Video understanding"]
OTHERS = ["Score", "Batch", "History"]


class Redder:
    """Prefer the candidate with more red; of two answers always the first. Writes a word at a time.

    A red candidate alone gets 9 and 8, another one 4 and 5; in sampled answers the seed moves the second up to 2.
    """

    model, batch_size, settings = "outputs/redder", 2, {}
    pause, batch_pause = 0.02, 0.0

    def __init__(self):
        self.words = self.calls = 0

    def complete(self, prompts, *, sampling, seeds):
        self.calls += 1
        time.sleep(self.batch_pause)
        return [
            [Completion(self._text(prompt, seed if sampling.temperature else 0), "stop") for seed in mine]
            for prompt, mine in zip(prompts, seeds, strict=True)
        ]

    def stream(self, prompt, *, sampling, seed, on_text):
        text = self._text(prompt, seed if sampling.temperature else 0)
        for word in re.findall(r"\S+\s*", text):
            time.sleep(self.pause)
            on_text(word)
            self.words += 1
        return Completion(text, "stop")

    def _text(self, prompt, seed):
        words = " ".join(part["text"] or "" for turn in prompt["prompt"] for part in turn["content"])
        pictures = prompt["images"]
        if "explode" in words:
            raise RuntimeError(f"the model's code gave up beside {prompt['images'][0].size}")
        if "unreadable" in words:
            return "<think>\nThis says nothing.\n</think>\n<answer>both</answer>"
        noun = next((noun[:-2] for noun in ("Video 1", "Image 1", "Answer 1") if noun in words), None)
        if noun is None:  # one candidate
            marks = (9, 8) if sum(map(_redness, pictures)) > 0 else (4, 5)
            named = zip(("Semantic consistency", "Authenticity"), (marks[0], marks[1] + seed % 3), strict=True)
            return render_points(list(named), preamble="I look at it <b>closely</b>, and at nothing else.")
        red = [sum(map(_redness, half)) for half in (pictures[: len(pictures) // 2], pictures[len(pictures) // 2 :])]
        first = noun == "Answer" or red[0] >= red[1]
        scores = [(9, 4) if first else (4, 9), (8, 5) if first else (5, 8)]
        named = [(name, *pair) for name, pair in zip(("Semantic consistency", "Authenticity"), scores, strict=True)]
        return render(1 if first else 2, named, noun=noun, preamble="I look at both <b>closely</b>, one by one.")


def _redness(image):
    small = image.convert("RGB").resize((4, 4)).tobytes()
    return sum(small[0::3]) - sum(small[1::3]) / 2 - sum(small[2::3]) / 2


def drawn(folder, name, colour, size=(32, 32)):
    path = folder / f"{name}.png"
    Image.new("RGB", size, colour).save(path)
    return str(path)


@pytest.fixture(scope="module")
def setup(toy_data, tmp_path_factory):
    rows = [PreferenceRecord.from_json(row) for _, row in read_json_lines(toy_data / "train.jsonl")]
    placed = [replace(r, media=tuple(tuple(str(toy_data / p) for p in e) for e in r.media)) for r in rows]
    judging = JudgingArguments(
        frames=2, frame_cache=str(tmp_path_factory.mktemp("frames")), decoder="pyav", max_new_tokens=64
    )
    return Setup(
        backend=Redder(),
        config=judging.config(),
        points=judging.point_config(),
        media_root=toy_data,
        work=tmp_path_factory.mktemp("work"),
        examples=placed,
        judge="outputs/redder",
        note="A note on the model.",
    )


@pytest.fixture(scope="module")
def url(setup):
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    os.environ["GRADIO_TEMP_DIR"] = str(setup.work / "gradio")  # it would fill /tmp/gradio
    from unifiedreward_think.demo.page import build_demo, look, only_named

    demo = build_demo(setup)
    names = only_named("127.0.0.1", [])
    demo.launch(prevent_thread_lock=True, quiet=True, app_kwargs=names, max_file_size="1mb", **look())
    yield demo.local_url
    demo.close()


class Visit:
    """A browser window on the page that complains about errors, and about requests that leave the machine."""

    def __init__(self, browser, url, name, **context):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.page, self.name = self.context.new_page(), name
        self.page.set_default_timeout(150_000)  # the machine may be busy
        self.wrong = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda sent: self._check(sent.url, url))
        self.page.goto(url)
        self.page.locator("button.ur-judge:visible").wait_for()

    def _check(self, sent, url):
        if not sent.startswith((url, "data:", "blob:")):
            self.wrong.append(f"a request left the machine: {sent}")

    def open(self, title):
        tab = self.page.get_by_role("tab", name=title)
        if tab.count() and tab.first.get_attribute("aria-selected") == "true":
            return self
        # On a busy machine the tab before stays in view for a while, and its controls have the same names.
        self.page.evaluate(
            "document.querySelectorAll('[role=tabpanel]').forEach(e => e.dataset.before = !!e.offsetParent)"
        )
        if tab.count() and tab.first.is_visible():
            tab.first.click()
        else:
            self.page.locator(".overflow-menu > button").click()
            self.page.locator(".overflow-dropdown button", has_text=title).click()
        self.find("[role=tabpanel]:not([data-before=true])").wait_for()
        return self

    @staticmethod
    def slug(title):
        return title.lower().replace(" ", "_")

    def find(self, selector, **more):
        return self.page.locator(f"{selector}:visible", **more)

    def attach(self, file):
        """Choose a file of pairs, again where a page on a busy machine did not listen yet."""
        from playwright.sync_api import TimeoutError as NotYet

        shown = self.find(".ur-pairs", has_text=file.name)
        for _ in range(8):
            if (place := self.find(".ur-pairs").locator("input[type=file]")).count():  # gone once a file is there
                place.set_input_files(file)
            with contextlib.suppress(NotYet):
                return shown.wait_for(timeout=20_000)
        return shown.wait_for()

    def move_slider(self, place, value):
        """Write the number of a slider, again where a page on a busy machine did not listen yet: its bar follows."""
        from playwright.sync_api import expect

        for patience in (5_000, 10_000, 20_000, 40_000):
            self.find("input[type=number]").nth(place).fill(value)
            self.find("input[type=number]").nth(place).blur()
            with contextlib.suppress(AssertionError):
                return expect(self.find("input[type=range]").nth(place)).to_have_value(value, timeout=patience)
        raise AssertionError(f"slider {place} does not take {value}")

    def judge(self, button="ur-judge"):
        self.page.evaluate("document.querySelectorAll('.ur-card').forEach(card => card.dataset.old = true)")
        self.find(f"button.{button}").click()
        return self.verdict()

    def verdict(self):
        self.find(".ur-card:not(.writing):not([data-old])").wait_for()
        return self.find(".ur-verdict").inner_text().replace("\n", " ")

    def rest(self):
        """Wait until what was asked is over: the buttons say so a step after the answer is shown."""
        self.find("button.ur-judge:enabled").wait_for()
        self.find("button.ur-stop:disabled").wait_for()

    def shoot(self, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"demo_{name}.png", full_page=True)


@pytest.fixture
def visit(chromium, url, request):
    windows = []

    def go(**context):
        windows.append(Visit(chromium, url, request.node.name, **context))
        return windows[-1]

    yield go
    for window in windows:
        window.context.close()
        assert not window.wrong, window.wrong
