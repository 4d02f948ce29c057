"""The pages: what is filled in is text, nothing is loaded from elsewhere, and nobody is kept from reading them.

Pictures of every kind of page, wide and narrow, go to the folder that UNIFIEDREWARD_SCREENSHOTS names.
"""

import re
from collections import Counter
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from helpers import page_kinds
from helpers.browser import SCREENSHOTS, browser_test
from helpers.reports import elements
from unifiedreward_think import pages
from unifiedreward_think.pages import write_page

EVIL = "<script>alert(1)</script>"
KINDS = ("benchmark", "data", "report", "sft", "training")
# What scrolls, of what is shown, and cannot be reached by the keyboard or has no name for who hears the page.
OUT_OF_REACH = """[...document.querySelectorAll("*")].filter(e =>
  /auto|scroll/.test(getComputedStyle(e).overflow) && e !== document.documentElement
  && (e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight)
  && !(e.tabIndex === 0 && e.role && e.ariaLabel)).map(e => e.outerHTML.slice(0, 200))"""
# Some examples of each kind stand for all, which take axe half a minute.
UNFOLD = """for (const each of document.querySelectorAll("details:not(article *), article:nth-of-type(-n+3) details"))
  each.open = true"""


def page(tmp_path, body, **values):
    template = tmp_path / "template.html"
    template.write_text('{% extends "base.html" %}\n' + body)
    write_page(tmp_path / "new" / "page.html", template, **values)
    return (tmp_path / "new" / "page.html").read_text()


def test_what_is_filled_in_is_never_markup(tmp_path):
    text = page(tmp_path, "{% block main %}<h1>{{ title }}</h1>{% endblock %}", title=EVIL)
    assert text.startswith("<!doctype html>") and EVIL not in text and text.count("&lt;script&gt;") == 2


def test_only_a_page_with_a_script_of_its_own_may_run_one(tmp_path):
    main = "{% block main %}{{ title }}{% endblock %}"
    plain = page(tmp_path, main, title="a")
    scripted = page(tmp_path, main + '{% block script %}{% include "filter.html" %}{% endblock %}', title="a")
    assert "default-src 'none'" in plain and "default-src 'none'" in scripted
    assert "script-src" not in plain and "<script" not in plain
    assert "script-src 'unsafe-inline'" in scripted and scripted.count("<script") == 1


def test_a_name_that_is_not_given_is_an_error(tmp_path):
    with pytest.raises(UndefinedError, match="title"):
        page(tmp_path, "{% block main %}{% endblock %}")


def lightness(colour):
    """Relative luminance of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_stands_out_from_every_ground_by_light_and_by_night():
    css = (Path(pages.__file__).parent / "style.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in re.findall(r":root \{(.*?)\}", css, re.DOTALL)]
    assert len(schemes) == 2
    for colours in schemes:
        for text in ("ink", "muted", "right", "wrong", "mixed", "a", "b"):
            for ground in ("paper", "card", "wash"):
                dark, light = sorted(map(lightness, (colours[text], colours[ground])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


# Every kind of page


@pytest.fixture(scope="module")
def kinds(toy_world, tmp_path_factory):
    return page_kinds.write_all(tmp_path_factory.mktemp("pages"), toy_world)


def shown_text(path):
    bare = re.sub(r"<(script|style|svg).*?</\1>|<[^>]+>", " ", path.read_text(), flags=re.DOTALL)
    return " ".join(bare.split())


def test_the_contents_lead_to_every_part_of_a_page(kinds):
    assert tuple(kinds) == KINDS
    for path in kinds.values():
        seen = elements(path.read_text())
        headings = [attributes.get("id") for tag, attributes in seen if tag == "h2"]
        assert [a["href"] for tag, a in seen if tag == "a"][: len(headings)] == [f"#{name}" for name in headings]
        assert Counter(a["id"] for _, a in seen if "id" in a).most_common(1)[0][1] == 1


def test_what_is_shown_to_others_says_how_it_was_made(kinds):
    for kind, path in kinds.items():
        text = shown_text(path)
        for fact in (
            "How this was made",
            "Commit",
            "Versions unifiedreward-think 0.",
            "sha256",
            "2026-" if kind != "data" else "Date 20",
        ):
            assert fact in text, (kind, fact)
    for kind in ("report", "benchmark"):
        text = shown_text(kinds[kind])
        assert "outputs/toy/seed0/data/heldout.jsonl (rows 64, sha256 ab12ab12ab12)" in text
        assert "Model outputs/toy/seed" in text and "(weights 9f86d081884c7d65)" in text
        assert "temperature 0.7, top-p 0.9, at most 192 new tokens" in text and "Seed 3" in text
        assert "both (shown ab, ba, samples 1)" in text and "transformers (dtype float32)" in text
        assert "configs/toy/prompts (digest 0123456789abcdef)" in text and "Commit 0a1b2c3" in text


def test_examples_are_folded_counted_and_nobody_s_choice(kinds):
    for kind, shown in {"report": 40, "training": 24, "data": 12}.items():
        seen = elements(kinds[kind].read_text())
        assert sum(tag == "article" for tag, _ in seen) == shown
        assert sum(tag == "details" and "open" in a for tag, a in seen) == 1
        text = shown_text(kinds[kind])
        assert re.search(rf"{shown} of [\d,]+ (judged pairs|pairs|rows).*None was picked by hand: a digest", text)
    assert "40 of 128 judged pairs" in shown_text(kinds["report"]) and "eval/grpo" in shown_text(kinds["report"])


def look(chromium, path, width):
    """Open a page in a window of this width; it may load nothing, and no error may show."""
    context = chromium.new_context(viewport={"width": width, "height": 900})
    tab, wrong = context.new_page(), []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    tab.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else wrong.append(sent.url))
    tab.goto(path.as_uri())
    return tab, wrong


def hindrances(tab):
    """What axe finds that keeps people from reading: its serious and critical rules, with the elements."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
    return {
        rule["id"]: [(node["html"][:120], node["failureSummary"]) for node in rule["nodes"][:5]]
        for rule in found
        if rule["impact"] in ("serious", "critical")
    }


@browser_test
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_keeps_people_from_reading_a_page(chromium, kinds, kind, width):
    tab, wrong = look(chromium, kinds[kind], width)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SCREENSHOTS / f"page_{kind}_{width}.png", full_page=True)
    height = tab.evaluate("document.documentElement.scrollHeight")
    assert height < {1280: 8000, 390: 12000}[width]  # one was 27,000
    tab.evaluate(UNFOLD)
    assert hindrances(tab) == {}
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(OUT_OF_REACH) == []
    tab.context.close()
    assert wrong == []


@browser_test
def test_filters_show_what_they_say(chromium, kinds):
    tab, _ = look(chromium, kinds["report"], 1280)
    tab.select_option("#status", "wrong")
    shown = tab.locator("article:visible")
    assert tab.inner_text("#count") == f"{shown.count()} shown" and 0 < shown.count() < 40
    assert set(shown.locator(".badge").all_inner_texts()) == {"Wrong"}
    tab.context.close()
