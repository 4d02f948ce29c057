"""Forms of judgment: what a prompt shows and asks for, and what agrees with a label. Reward and metric ask here.

A new form is a `Form` in FORMS: how its completions are read, what its gold answer is, and when a verdict agrees.

>>> gold = PAIRWISE.gold(1, "ba")
>>> verdict = PAIRWISE.parse("<answer>Image 2 is better</answer>", "Image")
>>> PAIRWISE.solution(gold, "Image"), PAIRWISE.agreement(verdict, gold)
('Image 2 is better', 1.0)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unifiedreward_think.order import place_shown
from unifiedreward_think.verdict import Verdict, answer_text, parse, read_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form of judgment. A gold answer is whatever the form compares with; None where a label has none.

    Attributes:
        name: key in FORMS, in judgments and in the `form` column.
        candidates: how many a prompt shows.
        parse: completion, noun and style to a verdict; never raises.
        gold: label (`preferred` as stored) and order shown to the gold answer.
        solution: gold answer and noun to the text of the `solution` column.
        read_solution: the inverse; None for a text that is none.
        agreement: verdict and gold answer to the accuracy, 0 to 1: the reward of GRPO and the metric of evaluation.
            An unreadable verdict has 0; None without a gold answer.
    """

    name: str
    candidates: int
    parse: Callable[..., Verdict]
    gold: Callable[[Any, str], Any]
    solution: Callable[[Any, str], str]
    read_solution: Callable[[str], Any]
    agreement: Callable[[Verdict, Any], float | None]


def _place_of_preferred(preferred: Any, order: str) -> int | None:
    """Return the place shown of the preferred candidate; None for ties and unlabelled rows."""
    return place_shown(preferred, order) if preferred in (1, 2) else None


def _names_the_preferred(verdict: Verdict, place: int | None) -> float | None:
    return None if place is None else float(verdict.winner == place)


PAIRWISE = Form(
    name="pairwise",
    candidates=2,
    parse=parse,
    gold=_place_of_preferred,
    solution=answer_text,
    read_solution=read_answer,
    agreement=_names_the_preferred,
)
FORMS: dict[str, Form] = {PAIRWISE.name: PAIRWISE}
