# ruff: noqa: F811 - fixtures are imported
"""How the demo looks and whom it serves: every tab and state at the width of a desk and of a phone.

Each state is left as a picture (tests/helpers/demo.py says where), and is free of what axe calls serious or critical.
"""

import pytest
from axe_playwright_python.sync_playwright import Axe

from helpers.browser import browser_test
from helpers.demo import OTHERS, TITLES, setup, url, visit  # noqa: F401 - fixtures

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESK = {"viewport": {"width": 1280, "height": 900}}
# Rule of axe, a piece of Gradio's own markup that breaks it, and why it stays.
GRADIOS = []
# What a label lies over, or lies over it: buttons on a medium, by their names.
COVERED = """() => {
  const seen = [...document.querySelectorAll('button, label, .icon-button-wrapper')]
    .filter(e => e.offsetParent && !e.ariaLabel?.startsWith('Click to upload')); // all of a box, below its label
  const box = new Map(seen.map(e => [e, e.getBoundingClientRect()]));
  const said = e => e.ariaLabel || e.innerText.trim().slice(0, 20) || e.className;
  return seen.flatMap((a, i) => seen.slice(i + 1)
    .filter(b => !a.contains(b) && !b.contains(a))
    .filter(b => {
      const [r, s] = [box.get(a), box.get(b)];
      const wide = Math.min(r.right, s.right) - Math.max(r.left, s.left);
      return wide > 2 && Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top) > 2;
    })
    .map(b => said(a) + ' / ' + said(b)));
}"""


# Between the empty verdict and what comes next.
GAP = """() => {
  const at = what => document.querySelector(what).getBoundingClientRect();
  return at('.ur-prompt').top - at('.ur-result .ur-empty').bottom;
}"""


class Look:
    """A window whose states are looked at, one after another."""

    def __init__(self, window, width):
        self.window, self.width, self.faults = window, width, []

    def check(self, state):
        """Leave a picture of a state, and note what is wrong with it."""
        page = self.window.page
        page.evaluate("document.activeElement?.blur()")
        self.window.shoot(f"{self.width}_{state}")
        for fault in Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]:
            if fault["impact"] in ("serious", "critical"):
                nodes = [node for node in fault["nodes"] if not self._gradios(fault["id"], node["html"])]
                self.faults += [f"{state}: {fault['id']}: {node['html'][:200]}" for node in nodes]
        self.faults += [f"{state}: covered: {what}" for what in page.evaluate(COVERED)]
        if (wide := page.evaluate("document.documentElement.scrollWidth - innerWidth")) > 0:
            self.faults.append(f"{state}: {wide} px wider than the screen")

    def _gradios(self, rule, html):
        return any(rule == known and piece in html for known, piece, _ in GRADIOS)


def in_view(window, selector):
    box = window.find(selector).first.bounding_box()
    return box["y"] >= 0 and box["y"] + box["height"] <= window.page.viewport_size["height"]


@browser_test
@pytest.mark.slow
@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
def test_every_tab_and_state_serves_all_who_look_or_listen(visit, setup, toy_data, screen):
    window = visit(**screen)
    look = Look(window, screen["viewport"]["width"])
    for title in [*TITLES, *OTHERS]:
        assert window.page.get_by_role("tab", name=title).is_visible(), title
        look.check(f"{window.open(title).slug(title)}_empty")
    window.open(TITLES[0])
    setup.backend.pause = 0.3
    try:
        window.find("button.ur-judge").click()
        window.page.wait_for_function("document.querySelector('.ur-card.writing .ur-think')?.innerText.length > 20")
        look.check("writing")
        assert in_view(window, ".ur-verdict")
    finally:
        setup.backend.pause = type(setup.backend).pause
    window.verdict()
    look.check("verdict")
    window.judge("ur-swap")
    look.check("orders_agree")
    window.find(".ur-asked textarea").fill("")
    look.check("pair_before")
    window.find("button.ur-judge").click()
    window.find(".ur-message .ur-alert").wait_for()
    window.page.wait_for_timeout(200)  # it is scrolled to
    assert in_view(window, ".ur-message .ur-alert")
    look.check("error")
    assert window.page.evaluate(GAP) < 100
    window.open(TITLES[2]).judge()
    window.judge("ur-swap")
    look.check("orders_disagree")
    window.open("Score")
    written = "document.querySelector('#ur-score .ur-card.writing .ur-think')"
    setup.backend.pause = 0.3
    try:
        window.find("button.ur-judge").click()
        window.page.wait_for_function(f"{written}?.innerText.length > 20")
        look.check("score_writing")
    finally:
        setup.backend.pause = type(setup.backend).pause
    window.verdict()
    look.check("score")
    window.find("button", has_text="Samples").click()
    window.move_slider(0, "5")
    window.judge()
    look.check("score_sampled")
    window.find(".ur-asked textarea").fill("an unreadable answer")
    window.judge()
    look.check("score_unreadable")
    window.open("Batch").attach(toy_data / "heldout.jsonl")
    setup.backend.batch_pause = 4.0
    try:
        window.find("button.ur-judge").click()
        window.find(".ur-batch progress").wait_for()
        look.check("batch_running")
    finally:
        setup.backend.batch_pause = type(setup.backend).batch_pause
    window.find(".ur-figures").wait_for()
    look.check("batch_done")
    window.open("History")
    window.page.wait_for_function("document.querySelectorAll('.ur-table tbody tr').length === 4")
    winner = window.find(".ur-table tbody td").first.bounding_box()
    assert winner["x"] + winner["width"] <= screen["viewport"]["width"]
    look.check("history")
    assert not look.faults, "\n".join(look.faults)
