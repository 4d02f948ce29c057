# ruff: noqa: F811 - fixtures are imported
"""The demo, in headless Chromium where there is one, and its parts without.

Screenshots of what was tested go to the folder that UNIFIEDREWARD_SCREENSHOTS names, by default to build/screenshots.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from helpers.browser import ROOT, browser_test
from helpers.demo import OTHERS, TITLES, Redder, Visit, drawn, setup, url, visit  # noqa: F401 - fixtures
from unifiedreward_think.backends import Completion
from unifiedreward_think.backends.replay import ReplayBackend
from unifiedreward_think.demo import view
from unifiedreward_think.demo.asking import (
    Asking,
    Stopped,
    Stops,
    StreamingBackend,
    by_content,
    make_record,
)
from unifiedreward_think.demo.batch_tab import load_pairs
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging.judge import judge_item
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.records import Judgment, PreferenceRecord
from unifiedreward_think.strict_json import read_json_lines
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import answer_text, parse

# The parts


def test_gradio_is_the_library_for_whoever_stands_in_the_root():
    code = "import gradio; print(gradio.Blocks.__name__)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout == "Blocks\n"


def test_a_pair_is_asked_as_the_judge_asks_it_and_heard_meanwhile(setup, tmp_path):
    red, blue = drawn(tmp_path, "red", "red"), drawn(tmp_path, "blue", "blue")
    record = make_record("image_generation", " a kite ", [blue, red])
    asking = Asking(record, "ba", setup.backend, setup.sampled(3, 1.0))
    texts = list(asking)
    assert isinstance(setup.backend, StreamingBackend) and len(texts) > 1
    assert all(later.startswith(text) for text, later in pairwise(texts))
    assert texts[-1] == asking.judgments[0].completion
    strip = [replace(row, seconds=0.0) for row in asking.judgments]
    again = judge_item(record, "ba", setup.backend, setup.sampled(3, 1.0))
    assert strip == [replace(row, seconds=0.0) for row in again]
    assert [row.choice for row in strip] == [2, 2, 2] and [row.sample for row in strip] == [0, 1, 2]
    assert strip[0].settings["temperature"] == 1.0


def test_a_pair_is_named_by_its_content(tmp_path):
    red, same, blue = drawn(tmp_path, "a", "red"), drawn(tmp_path, "b", "red"), drawn(tmp_path, "c", "blue")
    first = make_record("image_generation", "a kite", [red, blue])
    assert make_record("image_generation", "a kite", [same, blue]).id == first.id
    assert make_record("image_generation", "a kite", [blue, red]).id != first.id


@pytest.mark.parametrize(
    ("task", "prompt", "media", "answers", "missing"),
    [
        ("image_generation", " ", [None, "x"], [], "caption, image A"),
        ("video_generation", "a kite", ["x", None], [], "video B"),
        ("video_understanding", "", [None], ["", " "], "question, video, answer A, answer B"),
    ],
)
def test_an_empty_field_is_named(task, prompt, media, answers, missing):
    with pytest.raises(InputError, match=f"missing: {missing}\\.$"):
        make_record(task, prompt, media, answers)


def test_stopping_ends_the_writing(setup, tmp_path):
    backend = Redder()
    backend.pause = 0.05
    record = make_record("image_generation", "a kite", [drawn(tmp_path, "a", "red"), drawn(tmp_path, "b", "blue")])
    asking = iter(Asking(record, "ab", backend, setup.config))
    next(asking)
    asking.close()
    written = backend.words
    time.sleep(0.2)
    assert 0 < written == backend.words < 20
    assert issubclass(Stopped, Exception)


def test_the_transformers_backend_streams_what_it_completes():
    from unifiedreward_think.backends.transformers import TransformersBackend

    backend = TransformersBackend(str(ROOT / "src/unifiedreward_think/toy/base"), dtype="float32")
    content = [{"type": "image", "text": None}, {"type": "text", "text": "Caption: a red circle"}]
    prompt = {"prompt": [{"role": "user", "content": content}], "images": [Image.new("RGB", (32, 32), "red")]}
    for sampling, seed in ((Sampling(max_new_tokens=12), 0), (Sampling(temperature=2.0, max_new_tokens=12), 7)):
        heard = []
        streamed = backend.stream(prompt, sampling=sampling, seed=seed, on_text=heard.append)
        assert [[streamed]] == backend.complete([prompt], sampling=sampling, seeds=[[seed]])
        assert "".join(heard) == streamed.text and len(heard) > 1

    def refuse(_):
        raise Stopped

    with pytest.raises(Stopped):
        backend.stream(prompt, sampling=Sampling(max_new_tokens=12), seed=0, on_text=refuse)


def test_a_stop_is_told_before_a_backend_that_does_not_stream_is_done(setup, tmp_path):
    class Silent:
        model, batch_size, settings = "silent", 1, {}
        free = threading.Event()

        def complete(self, prompts, *, sampling, seeds):
            assert self.free.wait(60)
            return [[Completion("<think>x</think><answer>Image 1 is better</answer>", "stop")]]

    record = make_record("image_generation", "a kite", [drawn(tmp_path, "a", "red"), drawn(tmp_path, "b", "blue")])
    asking = Asking(record, "ab", Silent(), setup.config)
    threading.Timer(0.2, asking.stopped.set).start()
    texts = iter(asking)
    assert next(texts) == "" and asking.stopped.is_set()
    Silent.free.set()
    with pytest.raises(Stopped):
        next(texts)


def test_a_stop_ends_what_its_session_asked_in_its_tab_and_nothing_else():
    stops = Stops()
    mine, other, batch = stops.event("me", "image"), stops.event("you", "image"), stops.event("me", "batch")
    stops.event("me", "image").set()
    assert mine.is_set() and not other.is_set() and not batch.is_set()
    stops.begin("me", "image")
    assert mine.is_set() and not stops.event("me", "image").is_set()  # the old question stays stopped, the new one runs
    running = stops.event("me", "image")
    stops.begin("me", "image")
    assert stops.event("me", "image") is running
    stops.leave("me")
    assert running.is_set() and batch.is_set() and not other.is_set()


def test_a_stored_run_is_replayed_word_by_word_with_all_its_votes(setup, tmp_path):
    example = next(record for record in setup.examples if record.task == "image_generation")
    protocol = setup.sampled(3, 1.0)
    rows = judge_item(example, "ba", setup.backend, protocol)
    rows = [replace(row, completion=f"{row.completion}\n{row.sample}", seconds=0.5) for row in rows]
    (tmp_path / "judgments.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    typed = make_record(example.task, example.prompt, [entry[0] for entry in example.media])
    record = by_content([example])[typed.id]
    asking = Asking(record, "ba", ReplayBackend(tmp_path / "judgments.jsonl"), protocol)
    texts = list(asking)
    assert len(texts) > 3 and texts[-1] == rows[0].completion
    assert [row.completion for row in asking.judgments] == [row.completion for row in rows]
    unknown = Asking(typed, "ba", asking.backend, protocol)
    assert list(unknown) == [""] and "holds no completion" in unknown.judgments[0].error


def judged(order, winner, sample=0):
    text = f"<answer>{answer_text(winner, 'Image')}</answer>" if winner else "no idea"
    verdict = parse(text, "Image")
    return Judgment(
        record_id="kite", task="image_generation", order=order, sample=sample, completion=text, verdict=verdict
    )


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        ([("ab", 1), ("ba", 2)], "right", "Both orders agree"),
        ([("ab", 2), ("ba", 2)], "wrong", "the one shown second wins"),
        ([("ab", 1), ("ba", None)], "mixed", "Only one order can be read"),
        ([("ab", None), ("ba", None)], "mixed", "Neither order can be read"),
        ([("ab", 1, 0), ("ab", 1, 1), ("ba", 2, 0), ("ba", 1, 1)], "mixed", "1 of 2 votes"),
    ],
)
def test_the_badge_says_whether_the_orders_agree(rows, kind, words):
    found = view.agreement([judged(*row) for row in rows])
    assert found is not None and found[0] == kind and words in found[1]
    assert view.agreement([judged(*rows[0])]) is None


def test_what_users_and_models_write_is_never_markup(tmp_path):
    evil = "<img src=x onerror=alert(1)> {{ 7 * 7 }}"
    record = PreferenceRecord(id="x", task="image_generation", prompt=evil, media=((evil,), ("b.png",)))
    row = replace(judged("ab", 1), completion=f"<think>{evil}</think>{evil}", error="")
    pages = [
        view.card(record, [row]),
        view.card(record, [replace(row, error=evil)]),
        view.raw([row]),
        view.prompt(record, "ab", JudgingArguments().config()),
        view.history([(record, [row])]),
        view.alert(evil),
        view.heading(evil, evil),
        view.frames({"images": [], "error": evil}),
    ]
    for page in pages:
        assert "&lt;img" in page and "<img" not in page and "49" not in page


def test_a_file_of_pairs_cannot_reach_outside_the_media_folder(tmp_path, toy_data):
    root = tmp_path / "media"
    root.mkdir()
    inside, outside = drawn(root, "in", "red"), drawn(tmp_path, "secret", "blue")
    (root / "link.png").symlink_to(outside)
    base = {"task": "image_generation", "prompt": "a kite"}
    media = [
        ["in.png", "in.png"],
        ["in.png", outside],
        ["../secret.png", "in.png"],
        ["link.png", "in.png"],
        [inside, inside],
    ]
    rows = [json.dumps({**base, "id": f"r{i}", "media": pair}) for i, pair in enumerate(media)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join([*rows, '{"id": "broken"}']))
    loaded = load_pairs(file, root)
    assert [record.id for record in loaded.rows] == ["r0", "r4"]
    assert [(row.line, row.record_id) for row in loaded.bad] == [(2, "r1"), (3, "r2"), (4, "r3"), (6, "broken")]
    assert all(str(row).startswith("pairs.jsonl:") for row in loaded.bad)


# The page


@pytest.mark.parametrize(("host", "more"), [("127.0.0.1", ["demo.example"]), ("0.0.0.0", [])])
def test_the_page_answers_to_its_own_names_only_and_streams_through_its_queue(host, more):
    import gradio as gr
    import httpx
    from gradio_client import Client

    from unifiedreward_think.demo.page import only_named

    def count():
        for number in range(3):
            time.sleep(0.05)
            yield number

    with gr.Blocks(analytics_enabled=False) as demo:
        gr.Button().click(count, outputs=gr.Number(), api_name="count")
    demo.queue().launch(
        server_name=host, prevent_thread_lock=True, quiet=True, ssr_mode=False, app_kwargs=only_named(host, more)
    )
    try:
        port = demo.server_port
        names = ("localhost", f"127.0.0.1:{port}", f"Demo.Example:{port}", f"evil.example:{port}", "")
        paths = ("/", "/config", "/gradio_api/queue/data?session_hash=a", "/gradio_api/nothing")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
            seen = {}
            for name in names:
                seen[name] = set()
                for path in paths:
                    with http.stream("GET", path, headers={"Host": name}) as reply:
                        seen[name].add(reply.status_code == 421)
            upload = http.post("/gradio_api/upload", files={"files": b"x"}, headers={"Host": "evil.example"})
        assert list(seen.values()) == [{bool(more) and number > 2} for number in range(5)]
        assert (upload.status_code == 421) == bool(more)
        client = Client(f"http://localhost:{port}", verbose=False)
        written = client.submit(api_name="/count")
        assert written.result(60) == 2 and written.outputs() == [0, 1, 2]
    finally:
        demo.close()


@browser_test
def test_the_page_loads_filled_with_an_example(visit, setup):
    window = visit()
    assert window.find(".ur-asked textarea").input_value() == setup.examples[0].prompt
    assert [tab.inner_text() for tab in window.page.get_by_role("tab").all()] == [*TITLES, *OTHERS]
    assert "A note on the model." in window.page.inner_text(".ur-head")
    window.shoot("load")


@browser_test
@pytest.mark.parametrize("task", TASKS)
def test_an_example_of_each_task_is_judged_while_one_watches(visit, setup, task):
    window = visit().open(TITLES[list(TASKS).index(task)])
    example = [record for record in setup.examples if record.task == task][1]
    window.find("button", has_text=example.prompt).last.click()
    window.page.wait_for_function(
        "text => [...document.querySelectorAll('.ur-asked textarea')].some(e => e.offsetParent && e.value === text)",
        arg=example.prompt,
    )
    window.find("button.ur-judge").click()
    text = "(document.querySelector('.ur-card.writing .ur-think')?.innerText ?? '')"
    early = window.page.wait_for_function(f"{text}.length > 20 && {text}").json_value()
    noun = TASKS[task].noun
    assert window.verdict() in (f"A {noun} A is better", f"B {noun} B is better")
    final = window.find(".ur-think").inner_text()
    assert len(early) < len(final) and final.startswith(early[:20]) and "<b>closely</b>" in final
    names = window.find(".ur-score .name").all_inner_texts()
    assert names == ["Semantic consistency", "Authenticity", "Total"]
    totals = window.find(".ur-score.total .value").all_inner_texts()
    assert sorted(totals) == ["17", "9"]
    window.find("button", has_text="Prompt").click()
    assert example.prompt in window.find(".ur-prompt .ur-raw").inner_text()
    window.find("button", has_text="Raw text").click()
    assert f"<answer>{noun}" in window.find(".ur-rawtext .ur-raw").inner_text()
    window.shoot(task)


@browser_test
def test_uploaded_pictures_are_judged_swapped_and_exported(visit, tmp_path):
    window = visit()
    blue, red = drawn(tmp_path, "blue", "blue", (40, 40)), drawn(tmp_path, "red", "red", (40, 40))
    for name, path in (("Image A", blue), ("Image B", red)):
        box = window.find(".ur-pair .block", has_text=name)
        box.get_by_label("Remove Image").click()
        box.locator("input[type=file]").set_input_files(path)
        box.get_by_label("Remove Image").wait_for()
    window.find(".ur-asked textarea").fill("a kite")
    assert window.judge() == "B Image B is better"
    assert window.find(".ur-badge").count() == 0
    assert window.judge("ur-swap") == "B Image B is better"
    assert "B as Image 1 and A as Image 2" in window.find(".ur-order").inner_text().replace("\n", " ")
    assert window.find(".ur-badge").inner_text() == "Both orders agree"
    window.find("button", has_text="Compare with a slider").click()
    window.page.locator(".ur-slider img").first.wait_for()
    window.shoot("upload_swap")

    window.open("History")
    window.page.wait_for_function("document.querySelectorAll('.ur-table tbody tr').length === 2")
    paths = {}
    for name in ("judgments", "records"):
        with window.page.expect_download() as download:
            window.find("button", has_text=f"Export {name}").click()
        paths[name] = download.value.path()
    rows = load_judgments(paths["judgments"])
    assert sorted(order for _, order, _ in rows) == ["ab", "ba"]
    assert {row.choice for row in rows.values()} == {2}
    (record,) = [PreferenceRecord.from_json(row) for _, row in read_json_lines(paths["records"])]
    assert record.prompt == "a kite" and {name for name, _, _ in rows} == {record.id}
    window.shoot("history")


@browser_test
def test_a_verdict_that_follows_the_order_is_called_out_and_votes_are_counted(visit):
    window = visit().open("Image understanding")
    window.find("button", has_text="Votes").click()
    window.move_slider(0, "3")
    assert window.judge() == "A Answer A is better"
    assert window.find(".ur-votes").inner_text() == "3 for A, 0 for B"
    assert window.judge("ur-swap") == "No clear winner: it depends on the order"
    assert window.find(".ur-badge").inner_text() == "0 of 3 votes name the same candidate in both orders"
    window.shoot("votes")


@browser_test
def test_errors_stand_where_they_occur(visit, tmp_path):
    window = visit()
    window.find(".ur-asked textarea").fill("")
    window.find("button.ur-judge").click()
    window.find(".ur-message .ur-alert").wait_for()
    assert window.find(".ur-alert").inner_text() == "Something is missing: caption."
    window.find(".ur-asked textarea").fill("an unreadable answer")
    assert window.judge() == "The answer cannot be read"
    assert "answer is not" in window.find(".ur-problems").inner_text()
    assert window.find(".ur-message").count() == 0
    window.shoot("error")


@browser_test
def test_a_corrupt_video_is_named_where_the_verdict_would_stand(visit, setup, tmp_path):
    example = next(record for record in setup.examples if record.task == "video_generation")
    whole = Path(example.media[0][0]).read_bytes()
    (tmp_path / "cut_short.mp4").write_bytes(whole[: len(whole) // 2])
    window = visit().open("Video generation")
    box = window.find(".ur-film .block", has_text="Video B")
    box.get_by_label("Clear").click()
    box.locator("input[type=file]").set_input_files(tmp_path / "cut_short.mp4")
    box.locator("video").wait_for(state="attached")
    window.find("button.ur-judge").click()
    window.find(".ur-card .ur-alert").wait_for()
    said = window.find(".ur-card").inner_text()
    assert "No judgment" in said and "cut_short.mp4: FFmpeg cannot read this video" in said
    assert str(setup.work) not in said
    window.wrong.clear()  # the browser cannot play it either, and says so
    window.shoot("corrupt_video")


@browser_test
def test_stop_in_the_batch_tab_keeps_what_was_judged(visit, setup, toy_data):
    window = visit().open("Batch")
    window.attach(toy_data / "heldout.jsonl")
    setup.backend.batch_pause, before = 5.0, setup.backend.calls  # time for a slow browser to press the button
    try:
        window.find("button.ur-judge").click()
        window.find(".ur-batch progress").wait_for()
        window.page.wait_for_function("document.querySelector('.ur-batch progress').value > 0")
        window.find("button.ur-stop").click()
        window.find(".ur-alert", has_text="Stopped after").wait_for()
    finally:
        setup.backend.batch_pause = Redder.batch_pause
    said = window.find(".ur-message .ur-alert").inner_text()
    done = int(re.fullmatch(r"Stopped after (\d) of 8 judgments\.", said)[1])
    assert 2 <= done < 8 and setup.backend.calls - before == done / 2  # two pairs a batch: no other batch was begun
    with window.page.expect_download() as download:
        window.find("button", has_text="Judgments").click()
    assert len(load_judgments(download.value.path())) == done
    window.shoot("batch_stopped")


@browser_test
def test_a_file_is_judged_with_progress_and_downloads(visit, setup, toy_data, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = (toy_data / "heldout.jsonl").read_text() + '{"id": "odd", "task": "painting"}\n'
    rows += json.dumps({"id": "far", "task": "image_generation", "prompt": "x", "media": ["/etc/hosts", "/etc/hosts"]})
    file.write_text(rows)
    window = visit().open("Batch")
    window.find("button.ur-judge").click()
    window.find(".ur-alert", has_text="Choose a file of pairs first.").wait_for()
    window.attach(file)
    window.find("button.ur-judge").click()
    window.find(".ur-batch progress").wait_for()
    window.find(".ur-figures").wait_for()
    said = window.find(".ur-message .ur-alert").inner_text()
    assert "2 rows left out" in said and "pairs.jsonl:5: record 'odd'" in said and "not below" in said
    assert "8 judgments of 4 pairs" in window.find(".ur-batch .ur-small").first.inner_text()
    paths = {}
    for name in ("Judgments", "Report"):
        with window.page.expect_download() as download:
            window.find("button", has_text=name).click()
        paths[name] = download.value.path()
    assert len(load_judgments(paths["Judgments"])) == 8
    assert paths["Report"].read_text().startswith("<!doctype html>")
    window.shoot("batch")


@contextmanager
def answering(visit, backend, pause):
    """Yield a window in which an answer is being written, a word each `pause` seconds."""
    window = visit()
    backend.pause = pause
    try:
        window.find("button.ur-judge").click()
        window.page.wait_for_function("document.querySelector('.ur-card.writing .ur-think')?.innerText.length > 5")
        yield window
    finally:
        backend.pause = Redder.pause


def words_in_the_end(backend):
    """Wait until no more words are written, and return how many there are."""
    before, written = -1, backend.words
    while before != written:
        time.sleep(3 * backend.pause)
        before, written = written, backend.words
    return written


@browser_test
def test_stop_ends_an_answer_and_the_next_one_is_whole(visit, setup):
    started = setup.backend.words
    with answering(visit, setup.backend, pause=0.3) as window:
        window.find("button.ur-stop").click()
        window.find(".ur-alert", has_text="Stopped.").wait_for()
        assert words_in_the_end(setup.backend) - started < 20  # of about 45
        assert window.find(".ur-card").count() == 0
    window.find("button.ur-judge").click()
    window.find(".ur-score.total").wait_for()
    assert window.verdict().endswith("is better") and window.find(".ur-alert").count() == 0


@browser_test
def test_nobody_waits_for_the_answer_to_a_visitor_who_left(visit, setup):
    started = setup.backend.words
    with answering(visit, setup.backend, pause=1.0) as window:
        window.page.close()
        assert words_in_the_end(setup.backend) - started < 40  # of about 45


@browser_test
def test_two_videos_of_a_pair_run_as_one(visit):
    window = visit().open("Video generation")
    window.page.wait_for_function(
        "[...document.querySelectorAll('.ur-film video')].filter(v => v.offsetParent && v.readyState >= 2).length === 2"
    )
    states = "[...document.querySelectorAll('.ur-film video')].filter(v => v.offsetParent).map(v => v.paused)"
    window.find("button", has_text="Play or pause both").click()
    window.page.wait_for_function(f"{states}.join() === 'false,false'")
    window.page.evaluate("document.querySelector('.ur-film video').pause()")
    window.page.wait_for_function(f"{states}.join() === 'true,true'")


@browser_test
def test_the_keyboard_alone_is_enough(visit):
    window = visit()
    window.find(".ur-asked textarea").focus()
    window.page.keyboard.press("Control+Enter")
    window.verdict()
    window.page.keyboard.press("Control+Shift+Enter")
    window.find(".ur-badge").wait_for()
    reached = set()
    window.find(".ur-asked textarea").focus()
    for _ in range(40):
        window.page.keyboard.press("Tab")
        reached.add(window.page.evaluate("document.activeElement.className.split(' ').find(c => c.startsWith('ur-'))"))
        if {"ur-judge", "ur-swap", "ur-think"} <= reached:
            break
    assert {"ur-judge", "ur-swap", "ur-think"} <= reached and "ur-stop" not in reached  # nothing is to be stopped
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert window.page.evaluate(outline) == "solid"


# Contrast of every text of our own against what lies behind it, by WCAG 2.
CONTRAST = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const linear = value => value <= .03928 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  const light = rgb => { const [r, g, b] = rgb.map(v => linear(v / 255)); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const text = getComputedStyle(e).backgroundColor;
      const found = text.startsWith('rgb') ? channels(text) : [0, 0, 0, 0];
      if (found.length < 4 || found[3] === 1) return found.slice(0, 3);
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('[class*="ur-"] *, [class*="ur-"], [role=tab]')]
    .filter(e => e.offsetParent && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
    .map(e => {
      const [a, b] = [light(channels(getComputedStyle(e).color).slice(0, 3)), light(behind(e))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.className + ': ' + e.textContent.trim().slice(0, 30)];
    });
}"""


@browser_test
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_and_fits_a_phone(visit, scheme):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    window = visit(color_scheme=scheme, **phone)
    window.judge("ur-swap")
    window.judge("ur-judge")
    window.page.wait_for_function("document.querySelector('.ur-result').getBoundingClientRect().top < 300")
    window.page.wait_for_timeout(600)  # colours fade over
    faint = [(round(ratio, 2), what) for ratio, what in window.page.evaluate(CONTRAST) if ratio < 4.5]
    assert not faint
    narrow = "b => b.offsetParent && b.scrollWidth > b.clientWidth + 1"
    buttons = "[...document.querySelectorAll('.ur-judge, .ur-swap, .ur-stop')]"
    assert window.page.evaluate(f"{buttons}.filter({narrow}).map(b => b.innerText)") == []
    window.shoot(f"phone_{scheme}")
    for title in [*TITLES[1:], *OTHERS]:
        window.open(title)
        assert window.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, title


@browser_test
def test_the_command_serves_the_toy_model_and_leaves_nothing_behind(chromium, tmp_path):
    """As the user types it, on whatever toy model there is."""
    command = [sys.executable, str(ROOT / "gradio" / "app.py"), "--toy"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as app:
        watchdog = threading.Timer(300, app.kill)
        watchdog.start()
        try:
            address = next(found[0] for line in app.stdout if (found := re.findall(r"http://127\.0\.0\.1:\d+", line)))
            window = Visit(
                chromium, address, "command", viewport={"width": 1240, "height": 960}, device_scale_factor=1.25
            )
            window.judge()
            said = window.judge("ur-swap")
            assert said in ("A Image A is better", "B Image B is better", "The answer cannot be read")
            window.shoot("toy")
            assert not window.wrong
            window.context.close()
            foreign = urllib.request.Request(address, headers={"Host": "evil.example"})
            with pytest.raises(urllib.error.HTTPError, match="421"):
                urllib.request.urlopen(foreign)
            assert list(tmp_path.glob("unifiedreward-demo-*/gradio/*"))
            app.terminate()
            app.wait(60)
        finally:
            watchdog.cancel()
            app.kill()
    # torch keeps a cache of the machine there, whoever uses it.
    assert [found.name for found in tmp_path.iterdir() if not found.name.startswith("torchinductor_")] == []


def test_the_command_names_what_is_missing():
    command = [sys.executable, str(ROOT / "gradio" / "app.py")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 1 and said.stderr == "error: name a --model, or try the page with --toy\n"
    assert "--toy" in subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
