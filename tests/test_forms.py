"""Forms of judgment: reward and metric ask one place, and a form is an addition."""

import re
from dataclasses import replace

import pytest

from unifiedreward_think import forms
from unifiedreward_think.metrics import rate
from unifiedreward_think.order import ORDERS
from unifiedreward_think.records import Judgment
from unifiedreward_think.rewards import accuracy_reward
from unifiedreward_think.verdict import Verdict, answer_text


def flaw_count(text, noun, style="direct"):
    """A form of its own: how many flaws has one candidate? `<answer>3 flaws</answer>`."""
    match = re.fullmatch(r"\s*<answer>(\d+) flaws</answer>\s*", text)
    return Verdict(winner=None, strict=bool(match), totals=(float(match[1]),) if match else None)


FLAWS = forms.Form(
    name="flaws",
    candidates=1,
    parse=flaw_count,
    gold=lambda label, order: label,
    solution=lambda gold, noun: f"{gold} flaws",
    read_solution=lambda text: int(text.split()[0]),
    agreement=lambda verdict, gold: (
        None if gold is None else 0.0 if not verdict.totals else max(0.0, 1 - abs(verdict.totals[0] - gold) / 10)
    ),
)


def judged(text, form, preferred, order="a"):
    return Judgment(
        record_id="kite",
        order=order,
        form=form,
        completion=text,
        verdict=FLAWS.parse(text, "Image"),
        preferred=preferred,
        task="image_generation",
    )


def test_a_form_is_an_addition_for_rewards_judgments_and_their_files(monkeypatch):
    monkeypatch.setitem(forms.FORMS, FLAWS.name, FLAWS)
    texts = ["<answer>3 flaws</answer>", "<answer>5 flaws</answer>", "three"]
    columns = {"task": ["image_generation"] * 3, "solution": ["3 flaws"] * 3, "form": ["flaws"] * 3}
    assert accuracy_reward(texts, **columns) == [1.0, 0.8, 0.0]
    rows = [judged(text, "flaws", 3) for text in texts]
    assert [row.correct for row in rows] == [True, False, False]
    assert [Judgment.from_json(row.to_json()) for row in rows] == rows


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("preferred", [1, 2, "tie", None])
@pytest.mark.parametrize("place", [1, 2, None])
def test_reward_and_metric_agree_on_every_pair(order, preferred, place):
    text = f"<answer>{answer_text(place, 'Image')}</answer>" if place else "no idea"
    row = replace(judged(text, "pairwise", preferred, order), verdict=forms.PAIRWISE.parse(text, "Image"))
    gold = forms.PAIRWISE.gold(preferred, order)
    solution = [None if gold is None else forms.PAIRWISE.solution(gold, "Image")]
    (reward,) = accuracy_reward([text], solution, task=["image_generation"])
    assert rate([row], "accuracy") == ((0, 0) if reward is None else (reward, 1))
