# ruff: noqa: F811 - fixtures are imported
"""The demo's tab for scores of one candidate, in headless Chromium where there is one, and its parts without."""

from dataclasses import replace

import pytest

from helpers.browser import browser_test
from helpers.demo import Redder, drawn, setup, url, visit  # noqa: F401 - fixtures
from unifiedreward_think.candidate_points import Points, points_of
from unifiedreward_think.demo import view
from unifiedreward_think.demo.asking import Asking, make_record, sampled
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging.judge import judge_item
from unifiedreward_think.tasks import TASKS

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def scored(rows, **changes):
    return Points(record_id="x", candidate=1, samples=tuple(replace(row, **changes) for row in rows))


def test_a_candidate_is_asked_about_as_the_judge_asks_it_and_heard_meanwhile(setup, tmp_path):
    record = make_record("image_generation", "a kite", [drawn(tmp_path, "red", "red")])
    config = sampled(setup.points, 4, 1.0)
    asking = Asking(record, "a", Redder(), config)
    texts = list(asking)
    assert len(texts) > 5 and texts[-1] == asking.judgments[0].completion
    again = judge_item(record, "a", setup.backend, config)
    assert [row.verdict for row in asking.judgments] == [row.verdict for row in again]
    points = points_of(asking.judgments)[record.id][1]
    assert points.score.highest == 20 and 17 <= points.score.value <= 19 and points.spread > 0


@pytest.mark.parametrize(
    ("task", "prompt", "media", "answers", "missing"),
    [
        ("image_generation", " ", [None], [], "caption, image"),
        ("video_generation", "a kite", [None], [], "video"),
        ("image_understanding", "", [None], [" "], "question, image, answer"),
    ],
)
def test_an_empty_field_of_one_candidate_is_named_without_a_letter(task, prompt, media, answers, missing):
    with pytest.raises(InputError, match=f"missing: {missing}\\.$"):
        make_record(task, prompt, media, answers)


def test_a_card_says_the_score_its_share_and_its_spread_or_why_there_is_none(setup, tmp_path):
    record = make_record("image_generation", "a kite", [drawn(tmp_path, "blue", "blue")])
    rows = judge_item(record, "a", setup.backend, setup.points)
    card = view.points(scored(rows))
    assert "9/20" in card and "38.9% of the way from the lowest score, 2, to the highest" in card
    assert "Total" in card and "ur-spread" not in card and "&lt;b&gt;closely" in card
    failed = scored(rows, completion=None, error="no <picture>", verdict=replace(rows[0].verdict, score=None))
    assert "No score" in view.points(failed) and "no &lt;picture&gt;" in view.points(failed)
    made = sampled(setup.points, 3, 1.0)
    three = judge_item(make_record("image_generation", "unreadable", [record.media[0][0]]), "a", setup.backend, made)
    card = view.points(scored(three))
    assert "The answer cannot be read" in card and "None of 3 samples can be read" in card
    assert "Mean of 1 of 2 samples; 1 cannot be read" in " ".join(view.points(scored([*rows, three[0]])).split())


def test_a_page_without_prompts_for_scores_has_no_such_tab(setup):
    from unifiedreward_think.demo.page import build_demo

    titles = []
    for points in (setup.points, None):
        demo = build_demo(replace(setup, points=points))
        titles.append([block.label for block in demo.blocks.values() if type(block).__name__ == "Tab"])
    assert set(titles[0]) - set(titles[1]) == {"Score"} and len(titles[0]) == len(titles[1]) + 1


# The page


def score(window):
    window.open("Score")
    window.find("#ur-score .ur-asked textarea").wait_for()
    return window


@browser_test
@pytest.mark.parametrize("task", TASKS)
def test_an_example_of_each_task_is_scored_while_one_watches(visit, setup, task):
    window = score(visit())
    example = next(record for record in setup.examples if record.task == task)
    name = task.replace("_", " ").capitalize()
    window.find("button", has_text=f"{name}: {example.prompt}").first.click()
    window.page.wait_for_function(
        "text => document.querySelector('#ur-score .ur-asked textarea').value === text", arg=example.prompt
    )
    kind, asks = TASKS[task].media_kind, not TASKS[task].compares_media
    window.find(".ur-film video" if kind == "video" else ".ur-pair img").first.wait_for()
    label = "document.querySelector('#ur-score .ur-asked [data-testid=block-info]').innerText"
    window.page.wait_for_function(f"{label} === '{'Question' if asks else 'Caption'}'")
    answer = window.page.locator("#ur-score .ur-answer-a textarea")
    answer.wait_for(state="visible" if asks else "hidden")
    window.page.locator(f"#ur-score .ur-{'pair' if kind == 'video' else 'film'}").wait_for(state="hidden")
    assert not asks or answer.input_value() == example.answers[0]
    window.find("button.ur-judge").click()
    text = "(document.querySelector('#ur-score .ur-card.writing .ur-think')?.innerText ?? '')"
    early = window.page.wait_for_function(f"{text}.length > 20 && {text}").json_value()
    assert window.verdict() in ("17/20", "9/20")
    assert len(early) < len(window.find(".ur-think").inner_text())
    assert window.find(".ur-score .name").all_inner_texts() == ["Semantic consistency", "Authenticity", "Total"]
    window.find("button", has_text="Prompt").click()
    assert example.prompt in window.find(".ur-prompt .ur-raw").inner_text()
    window.shoot(f"score_{task}")


@browser_test
def test_an_upload_is_scored_several_times_with_its_spread(visit, tmp_path):
    window = score(visit())
    box = window.find(".ur-pair .block", has_text="Image")
    box.get_by_label("Remove Image").click()
    box.locator("input[type=file]").set_input_files(drawn(tmp_path, "blue", "blue", (40, 40)))
    box.get_by_label("Remove Image").wait_for()
    window.find(".ur-asked textarea").fill("a kite")
    assert window.judge() == "9/20"
    assert "38.9% of the way" in window.find(".ur-banner").inner_text()
    window.find("button", has_text="Samples").click()
    window.move_slider(0, "5")
    said = window.judge()
    assert said.endswith("/20") and 9 <= float(said.removesuffix("/20")) <= 11
    assert "Mean of 5 of 5 samples, standard deviation" in window.find(".ur-spread").inner_text()
    window.find("button", has_text="Raw text").click()
    window.find(".ur-rawtext .ur-raw").nth(4).wait_for()
    assert window.find(".ur-rawtext .ur-raw").count() == 5
    window.shoot("score_samples")


@browser_test
@pytest.mark.parametrize("screen", [{}, PHONE], ids=["desk", "phone"])
def test_what_goes_wrong_with_a_score_stands_where_it_does_in_the_other_tabs(visit, tmp_path, screen):
    window = score(visit(**screen))
    asked = window.find(".ur-asked textarea")
    asked.fill("")
    window.find("button.ur-judge").click()
    window.find(".ur-message .ur-alert").wait_for()
    assert window.find(".ur-alert").inner_text() == "Something is missing: caption."
    asked.fill("an unreadable answer")
    assert window.judge() == "The answer cannot be read"
    assert "answer is not a score" in window.find(".ur-problems").inner_text()
    assert window.find(".ur-message").count() == 0
    asked.fill("explode")
    window.page.wait_for_function("document.querySelector('#ur-score[data-of=before]')")
    window.find("button.ur-judge").click()
    window.find(".ur-message .ur-alert").wait_for()
    assert "Failed: RuntimeError: the model's code gave up" in window.find(".ur-alert").inner_text()
    text = tmp_path / "text.png"
    text.write_text("hello, I am text")
    box = window.find(".ur-pair .block", has_text="Image")
    box.get_by_label("Remove Image").click()
    box.locator("input[type=file]").set_input_files(text)
    box.get_by_label("Remove Image").wait_for()
    asked.fill("a kite")
    window.find("button.ur-judge").click()
    window.find(".ur-card .ur-alert").wait_for()
    said = window.find(".ur-card").inner_text()
    assert "No score" in said and "text.png: no picture of the formats" in said
    window.rest()
    assert window.find("button.ur-judge").is_enabled() and window.find("button.ur-stop").is_disabled()
    assert window.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    window.shoot(f"score_wrong_{'phone' if screen else 'desk'}")
    window.wrong.clear()  # the browser cannot show the text either, and says so


@browser_test
def test_stop_ends_a_score_and_the_next_one_is_whole(visit, setup):
    window = score(visit())
    setup.backend.pause = 0.5
    try:
        window.find("button.ur-judge").click()
        window.find(".ur-card.writing .ur-think").wait_for()
        window.find("button.ur-stop").click()
        window.find(".ur-message .ur-alert").wait_for()
        assert window.find(".ur-alert").inner_text() == "Stopped." and window.find(".ur-empty").is_visible()
    finally:
        setup.backend.pause = type(setup.backend).pause
    window.find("button.ur-judge:enabled").wait_for()
    assert window.judge() in ("17/20", "9/20")
