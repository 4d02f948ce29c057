# ruff: noqa: F811 - fixtures are imported
"""What goes wrong in the demo is said on its page, and no verdict stands beside what it is not about."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.browser import browser_test
from helpers.demo import drawn, setup, url, visit  # noqa: F401 - fixtures
from unifiedreward_think.backends import BackendError
from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.demo import batch_tab, view
from unifiedreward_think.demo.about import about
from unifiedreward_think.demo.faults import by_names, told
from unifiedreward_think.errors import DecoderError, InputError
from unifiedreward_think.judging.judge import judge_item
from unifiedreward_think.judging.store import load_judgments

# The parts


@pytest.mark.parametrize(
    ("error", "said", "logged"),
    [
        (InputError("/w/gradio/8f/a.png: no picture"), "a.png: no picture", 0),
        (BackendError("no server answers"), "no server answers", 1),
        (RuntimeError("CUDA error in /w/x/k.so"), "Failed: RuntimeError: CUDA error in k.so", 1),
        (DecoderError("/data/clips/b.mp4: install pyav"), "clips/b.mp4: install pyav", 0),
    ],
)
def test_what_a_visitor_has_not_caused_is_logged_once_and_told_without_folders(error, said, logged, caplog):
    assert told(error, Path("/w"), root=Path("/data")) == said
    assert len(caplog.records) == logged and all(record.exc_info for record in caplog.records)
    assert by_names("see /x/y/c.png", Path("/w"), paths=["/x/y/c.png"]) == "see c.png"


def test_messages_about_a_file_of_pairs_show_no_folder_of_this_machine(setup, tmp_path):
    upload = setup.work / "gradio" / "8f3a"
    upload.mkdir(parents=True)
    row = {"id": "x", "task": "image_generation", "prompt": "p", "media": ["no.png", "/etc/hosts"]}
    files = {
        "twice.jsonl": [row, row],
        "outside.jsonl": [row],
        "broken.jsonl": ["{"],
        "empty.jsonl": [],
        "unlike.jsonl": [{"id": "y", "prompt": "p"}],
        "missing.jsonl": [{**row, "media": ["no.png", "neither.png"]}],
    }
    for name, rows in files.items():
        lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
        (upload / name).write_text("".join(f"{line}\n" for line in lines))
        said = ""
        try:
            for message, shown, *_ in batch_tab._judge_file(setup, batch_tab.Event(), str(upload / name), "both"):
                said += message + shown
        except InputError as error:
            said = batch_tab._said(error, setup)
        assert said and str(setup.work) not in said and str(tmp_path) not in said, (name, said)
        assert str(setup.media_root) not in said and "gradio" not in said, (name, said)


def test_a_file_that_the_models_code_cannot_judge_keeps_what_was_judged(setup, caplog, monkeypatch):
    class Tired(type(setup.backend)):
        def complete(self, prompts, *, sampling, seeds):
            if self.calls:
                raise RuntimeError("out of breath")
            return super().complete(prompts, sampling=sampling, seeds=seeds)

    file, _ = setup.work / "pairs.jsonl", None
    example = batch_tab.write_example(setup)
    file.write_text(example.read_text())
    tired = replace(setup, backend=Tired())
    *_, (message, shown, *links) = batch_tab._judge_file(tired, batch_tab.Event(), str(file), "both")
    assert "Ended after 2 of 8 judgments. Failed: RuntimeError: out of breath" in message
    assert "ur-figures" in shown and [record.message for record in caplog.records] == ["the demo failed"]
    assert len(load_judgments(Path(links[0].value["path"]))) == 2


def test_the_example_file_names_media_by_their_places_below_the_folder_of_media(setup, tmp_path):
    file = batch_tab.write_example(setup)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({row["task"] for row in rows}) == len(rows) == 4
    assert not [path for row in rows for path in row["media"] if Path(str(path)).is_absolute()]
    assert len(batch_tab.load_pairs(file, setup.media_root).rows) == 4
    assert batch_tab.write_example(replace(setup, media_root=tmp_path)) is None


def test_the_first_lines_say_which_model_judges_and_what_is_known_of_it(setup, tmp_path):
    class Model:
        settings, batch_size, model = {}, 1, "CodeGoat24/UnifiedReward-Think-qwen-7b"

    local = BackendArguments(model=Model.model)
    name, note = about(local, Model())
    assert name == Model.model and "can be wrong" in note
    assert about(local, Model(), limits="Drawings only.") == (Model.model, "Drawings only.")
    run = {"stage": "grpo", "arguments": {"model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    mine = Model()
    mine.model = str(tmp_path)
    name, note = about(BackendArguments(model=str(tmp_path)), mine)
    assert name == "/".join(tmp_path.parts[-2:])
    assert note.startswith("Trained by stage grpo from Qwen/Qwen2.5-VL-7B-Instruct. It can be wrong")
    stored = BackendArguments(backend="replay", model="outputs/run/judgments.jsonl")
    name, note = about(stored, Model())
    assert name == f"{Model.model}, from the stored run run/judgments.jsonl" and "that run" in note


def test_a_served_model_is_named_with_its_hosts(monkeypatch):
    from unifiedreward_think.backends.server import ServerBackend

    backend = ServerBackend.__new__(ServerBackend)
    backend.model = "judge"
    monkeypatch.setattr(ServerBackend, "servers", ("http://me:key@one.example:8000/v1", "https://two.example/v1"))
    args = BackendArguments(backend="server", model="judge")
    assert about(args, backend)[0] == "judge on one.example:8000, two.example"


def test_a_headline_names_no_winner_that_the_other_order_denies(setup, tmp_path):
    example = next(record for record in setup.examples if record.task == "image_understanding")
    rows = {order: judge_item(example, order, setup.backend, setup.config) for order in ("ab", "ba")}
    card = view.card(example, rows["ba"], rows["ab"])
    assert "No clear winner: it depends on the order" in card and "Answer B is better" not in card
    assert "unclear" in view.history([(example, rows["ab"]), (example, rows["ba"])])
    unread = [replace(row, completion="?", verdict=replace(row.verdict, winner=None)) for row in rows["ab"]]
    assert "No clear winner: in the other order there is none" in view.card(example, rows["ba"], unread)
    assert "Answer B is better" in view.card(example, rows["ba"])
    agreed = next(record for record in setup.examples if record.task == "image_generation")
    ab, ba = (judge_item(agreed, order, setup.backend, setup.config) for order in ("ab", "ba"))
    assert "No clear winner" not in view.card(agreed, ab, ba)


# The page


def upload(window, name, path, kind="Image"):
    box = window.find(".ur-pair .block, .ur-film .block", has_text=name)
    remove = box.get_by_label("Remove Image" if kind == "Image" else "Clear")
    if remove.count():
        remove.click()
    box.locator("input[type=file]").set_input_files(path)
    return box


def in_view(window, selector):
    box = window.find(selector).first.bounding_box()
    height = window.page.viewport_size["height"]
    return box["y"] >= 0 and box["y"] + min(box["height"], height) <= height


@browser_test
def test_an_upload_that_cannot_be_read_is_named_and_the_next_one_is_judged(visit, setup, tmp_path):
    window = visit()
    text = tmp_path / "text.png"
    text.write_text("hello, I am text")
    upload(window, "Image A", text)
    window.find("button.ur-judge").click()
    window.find(".ur-card .ur-alert").wait_for()
    said = window.find(".ur-card").inner_text()
    assert "No judgment" in said and "text.png: no picture of the formats" in said and str(setup.work) not in said
    window.rest()
    assert window.find("button.ur-judge").is_enabled() and window.find("button.ur-stop").is_disabled()
    window.find("button", has_text="Compare with a slider").click()
    window.find(".ur-slider .ur-small", has_text="text.png").wait_for()  # before it, that of the place just cleared
    said = window.find(".ur-slider .ur-small").inner_text()
    assert "text.png: no picture of the formats" in said and str(setup.work) not in said
    window.shoot("unreadable")
    upload(window, "Image A", drawn(tmp_path, "red", "red"))
    window.page.wait_for_function("document.querySelector('[data-of=before]')")
    assert window.judge().endswith("is better")
    window.wrong.clear()  # the browser cannot show the text either, and says so


@browser_test
def test_an_upload_that_is_too_large_is_said_to_be_in_a_place_that_stays(visit, tmp_path):
    window = visit()
    large = tmp_path / "large.png"
    large.write_bytes(b"\0" * 1_500_000)
    upload(window, "Image A", large)
    window.find(".ur-notice").wait_for()
    said = window.find(".ur-notice").inner_text()
    assert said == 'File(s) exceed the maximum allowed size of 1.0 Mb: "large.png"' and in_view(window, ".ur-notice")
    window.shoot("too_large")
    window.wrong.clear()  # what the server answered


@browser_test
def test_whatever_the_models_code_raises_is_said_on_the_page_and_logged_once(visit, setup, toy_data, caplog, tmp_path):
    window = visit()
    window.find(".ur-asked textarea").fill("explode")
    window.find("button.ur-judge").click()
    window.find(".ur-message .ur-alert").wait_for()
    said = "Failed: RuntimeError: the model's code gave up"
    assert said in window.find(".ur-message .ur-alert").inner_text()
    window.rest()
    assert window.find(".ur-result .ur-empty").is_visible() and window.find("button.ur-stop").is_disabled()
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.message for record in logged] == ["the demo failed"]
    window.open("Batch")
    rows = [json.loads(line) for line in (toy_data / "heldout.jsonl").read_text().splitlines()]
    file = tmp_path / "explode.jsonl"
    file.write_text("".join(json.dumps({**row, "prompt": "explode"}) + "\n" for row in rows))
    window.attach(file)
    window.find("button.ur-judge").click()
    window.find(".ur-alert").wait_for()
    assert f"Ended after 0 of 8 judgments. {said}" in window.find(".ur-alert").inner_text()
    window.rest()
    assert window.find("button.ur-judge").is_enabled() and not window.find("progress").count()


@browser_test
def test_a_question_that_no_handler_hears_ends_the_waiting(visit):
    window = visit()

    def with_too_many_votes(route):  # Gradio refuses them on their way to the handler
        body = route.request.post_data_json
        route.continue_(post_data=json.dumps({**body, "data": [*body["data"][:-2], 99, 1.0]}))

    window.page.route("**/queue/join**", with_too_many_votes)
    window.find("button.ur-judge").click()
    window.find(".ur-message .ur-alert").wait_for()
    assert "nothing was asked" in window.find(".ur-message .ur-alert").inner_text()
    window.rest()
    assert window.find(".ur-result .ur-empty").is_visible() and window.find("button.ur-judge").is_enabled()


@browser_test
def test_a_lost_connection_ends_the_waiting_in_words(visit, setup):
    window = visit()
    setup.backend.pause = 0.5
    try:
        window.find("button.ur-judge").click()
        window.find(".ur-card.writing .ur-think").wait_for()
        window.context.set_offline(True)
        window.find("button.ur-stop").click()
        window.find(".ur-notice").wait_for()
        assert "connection" in window.find(".ur-notice").first.inner_text().lower()
        window.find(".ur-card .ur-verdict", has_text="No answer: the connection is lost").wait_for()
    finally:
        setup.backend.pause = type(setup.backend).pause
        window.wrong.clear()  # the browser says that it is offline


@browser_test
def test_a_verdict_beside_something_else_says_so(visit, setup, tmp_path):
    window = visit()
    asked = window.find(".ur-asked textarea")
    caption = asked.input_value()
    window.judge()
    card = window.find(".ur-card .ur-before")
    assert not card.count() and window.page.evaluate("document.querySelector('[data-of]').dataset.of") == "now"
    asked.fill("something else")
    card.wait_for()
    assert card.inner_text() == "Of the pair before: something has changed since."
    window.shoot("pair_before")
    asked.fill(caption)
    card.wait_for(state="hidden")  # it is the pair again
    other = [record for record in setup.examples if record.task == "image_generation"][1]
    window.find("button", has_text=other.prompt).last.click()
    card.wait_for()
    window.judge()
    assert not card.count()
    upload(window, "Image B", drawn(tmp_path, "new", "green"))
    card.wait_for()
    window.open("History")
    window.open("Image generation")
    assert card.is_visible()
    window.open("Image understanding").judge()
    assert not card.count()
    window.find(".ur-answer-a textarea").fill("an answer of another pair")
    card.wait_for()


@browser_test
def test_a_verdict_that_arrives_after_a_change_says_so_and_nothing_is_asked_twice(visit, setup):
    window = visit()
    setup.backend.pause = 0.1
    try:
        window.find("button.ur-judge").click()
        window.find(".ur-card.writing .ur-think").wait_for()
        assert window.find("button.ur-judge").is_disabled() and window.find("button.ur-stop").is_enabled()
        window.find(".ur-asked textarea").fill("something else")
        window.find(".ur-card:not(.writing)").wait_for()
    finally:
        setup.backend.pause = type(setup.backend).pause
    assert window.find(".ur-card .ur-before").is_visible()
    window.rest()
    assert window.find("button.ur-judge").is_enabled() and window.find("button.ur-stop").is_disabled()


@browser_test
def test_the_example_file_is_judged_and_its_figures_are_not_those_of_another(visit, setup):
    window = visit().open("Batch")
    window.find("button", has_text="Try the example file").click()
    window.find(".ur-pairs", has_text="example_pairs").wait_for()
    with window.page.expect_download() as download:
        window.find("button", has_text="Download it").click()
    assert download.value.suggested_filename == batch_tab.EXAMPLE
    window.find("button.ur-judge").click()
    window.find(".ur-figures").wait_for()
    assert "8 judgments of 4 pairs" in window.find(".ur-batch .ur-small").first.inner_text()
    assert not window.find(".ur-before").count()
    window.find("label", has_text="one order").click()
    window.find(".ur-before").wait_for()
    assert window.find(".ur-before").inner_text() == "Of the file before: something has changed since."


@browser_test
def test_a_clip_that_the_browser_cannot_play_is_shown_by_its_frames(visit, setup, tmp_path):
    import av
    import numpy as np

    with av.open(str(tmp_path / "old.avi"), "w") as clip:
        stream = clip.add_stream("mpeg4", rate=4)  # MPEG-4 part 2, which Chromium has no decoder of
        stream.width = stream.height = 64
        for shade in (20, 90, 160, 230):
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8), format="rgb24")))
        clip.mux(stream.encode())
    window = visit().open("Video generation")
    upload(window, "Video B", tmp_path / "old.avi", kind="Video")
    window.find(".ur-strip img").first.wait_for()
    assert window.find(".ur-strip img").count() == setup.config.frames.frames
    assert "cannot play" in window.find(".ur-frames").first.inner_text()
    assert not window.find(".ur-notice").count()
    window.shoot("frames")
    window.wrong.clear()  # what the browser says of the clip
