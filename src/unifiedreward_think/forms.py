"""Forms of judgment: what a prompt shows and asks for, how an answer is read, and what agrees with a label.

Prompts, training rows, the judge, rewards and metrics ask here. A new form is a `Form` in FORMS, with its templates.

>>> from unifiedreward_think.records import PreferenceRecord
>>> record = PreferenceRecord(id="kite", task="image_generation", prompt="a kite", media=(("a",), ("b",)), preferred=1)
>>> PAIRWISE.orders(record), PAIRWISE.gold(record, "ba"), PAIRWISE.solution_of(record, "ba")
(('ab', 'ba'), 2, 'Image 2 is better')
>>> verdict = PAIRWISE.parse("<answer>Image 2 is better</answer>", "Image")
>>> PAIRWISE.readable(verdict), PAIRWISE.agreement(verdict, 2)
(True, 1.0)
>>> POINTWISE.orders(record), POINTWISE.agreement(POINTWISE.parse("<answer>24/30</answer>", "Image"), 1.0)
(('a', 'b'), 0.777778)
>>> POINTWISE.solution_of(record, "a"), POINTWISE.solution_of(record, "b")
('better', 'worse')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.errors import RecordError
from unifiedreward_think.order import ORDERS, STORED_ORDER, Order, in_order, letters, place_shown
from unifiedreward_think.points import parse_points
from unifiedreward_think.prompting import PROMPTS, Part, build_parts
from unifiedreward_think.scores import share_of
from unifiedreward_think.standings import STANDINGS, standing_of
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import Verdict, answer_text, parse, read_answer

if TYPE_CHECKING:
    from unifiedreward_think.records import Judgment, PreferenceRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form of judgment. A gold answer is whatever the form compares with; None where the labels have none.

    Attributes:
        name: key in FORMS, in judgments and in the `form` column.
        candidates: how many a prompt shows.
        prompts: folder of the templates.
        needs: the label that has a gold answer, in words.
        misfit: why a record cannot be asked about in this form; "" where it can.
        orders: the orders a record can be shown in.
        render: record, `order` and `prompts` (task -> template) to the parts of a prompt.
        parse: completion, noun and `style` to a verdict; never raises.
        readable: whether a verdict says what was asked for.
        gold: record or judgment, and order shown, to the gold answer.
        solution: gold answer and noun to the text of the `solution` column.
        read_solution: the inverse of `solution_of`; None for a text that is none.
        agreement: verdict and gold answer to the accuracy, 0 to 1: the reward of GRPO; 1 is right for evaluation.
            An unreadable verdict has 0; None without a gold answer.
        contradicts: whether a judgment, whose verdict can be read, would teach something else than its labels.
        contradiction: what that is called where traces are counted.
    """

    name: str
    candidates: int
    prompts: Path
    needs: str
    misfit: Callable[[PreferenceRecord], str]
    orders: Callable[[PreferenceRecord], tuple[Order, ...]]
    render: Callable[..., list[Part]]
    parse: Callable[..., Verdict]
    readable: Callable[[Verdict], bool]
    gold: Callable[[PreferenceRecord | Judgment, Order], Any]
    solution: Callable[[Any, str], str]
    read_solution: Callable[[str], Any]
    agreement: Callable[[Verdict, Any], float | None]
    contradicts: Callable[[Judgment], bool]
    contradiction: str

    def solution_of(self, record: PreferenceRecord, order: Order) -> str | None:
        """Return what the rewards of a record need of its labels, the `solution` column; None without one.

        That is the gold answer as text, or, of a candidate that is shown alone and has none in any order, how it stands
        to the other one (`standings`).
        """
        gold = self.gold(record, order)
        if gold is None:
            return None if self.decides(record) else standing_of(record, order)
        return self.solution(gold, TASKS[record.task].noun)

    def teaches(self, record: PreferenceRecord) -> bool:
        """Return whether a record has a `solution` in an order that it can be shown in."""
        return any(self.solution_of(record, order) is not None for order in self.orders(record))

    def decides(self, record: PreferenceRecord) -> bool:
        """Return whether a record has a gold answer in an order that it can be shown in."""
        return any(self.gold(record, order) is not None for order in self.orders(record))


def _not_a_pair(record: PreferenceRecord) -> str:
    return "" if record.count == 2 else f"has {record.count} candidates; form 'pairwise' compares 2"


def _both_ways(record: PreferenceRecord) -> tuple[Order, ...]:
    return ORDERS if record.swappable else (STORED_ORDER,)


def _place_of_preferred(labelled: PreferenceRecord | Judgment, order: Order) -> int | None:
    """Return the place shown of the preferred candidate; None for ties and unlabelled rows."""
    return place_shown(labelled.preferred, order) if labelled.preferred in (1, 2) else None


def _has_a_winner(verdict: Verdict) -> bool:
    return verdict.winner is not None


def _names_the_preferred(verdict: Verdict, place: int | None) -> float | None:
    return None if place is None else float(verdict.winner == place)


def _names_another(judgment: Judgment) -> bool:
    return judgment.preferred is not None and not judgment.correct


def _not_alone(record: PreferenceRecord) -> str:
    return "has an instruction that asks about a pair; a score cannot be asked for" if record.instruction else ""


def _each_alone(record: PreferenceRecord) -> tuple[Order, ...]:
    return tuple(letters(record.count))


def _one_candidate(record: PreferenceRecord, *, order: Order, prompts: Mapping[str, str]) -> list[Part]:
    """Return the prompt that shows one candidate.

    Raises:
        RecordError: the record's instruction asks about both candidates, or as for `build_parts`.
    """
    if misfit := _not_alone(record):
        raise RecordError(f"record {record.id!r}: {misfit}")
    return build_parts(record, order=order, prompts=prompts)


def _has_a_score(verdict: Verdict) -> bool:
    return verdict.score is not None


def _labelled_share(labelled: PreferenceRecord | Judgment, order: Order) -> float | None:
    """Return where the score that people gave the candidate shown stands on its scale; None without one."""
    if not labelled.scores or labelled.scale is None:
        return None
    (score,) = in_order(labelled.scores, order)
    return None if score is None else round(share_of(score, labelled.scale), DECIMALS)


def _share_text(share: float, noun: str) -> str:
    return f"{share:g}"


def _read_share(text: str) -> float | str | None:
    if text in STANDINGS:
        return text
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 <= share <= 1 else None


def _is_near(verdict: Verdict, share: float | None) -> float | None:
    """Return 1 less the distance between the shares; 0 for an unreadable verdict."""
    if share is None or verdict.score is None:
        return None if share is None else 0.0
    return round(1 - abs(verdict.score.share - share), DECIMALS)


def _is_far_off(judgment: Judgment) -> bool:
    agreement = _is_near(judgment.verdict, _labelled_share(judgment, judgment.order))
    return agreement is not None and agreement < 1 - TOLERANCE


DECIMALS = 6  # of shares: equal scores on different scales differ in their last bits
TOLERANCE = 0.1  # of the scale, between a trace and the score that people gave
PAIRWISE = Form(
    name="pairwise",
    candidates=2,
    prompts=PROMPTS,
    needs="a winner, `preferred` 1 or 2",
    misfit=_not_a_pair,
    orders=_both_ways,
    render=build_parts,
    parse=parse,
    readable=_has_a_winner,
    gold=_place_of_preferred,
    solution=answer_text,
    read_solution=read_answer,
    agreement=_names_the_preferred,
    contradicts=_names_another,
    contradiction="wrong winner",
)
POINTWISE = Form(
    name="pointwise",
    candidates=1,
    prompts=PROMPTS / "pointwise",
    needs="`scores` with their `scale`",
    misfit=_not_alone,
    orders=_each_alone,
    render=_one_candidate,
    parse=parse_points,
    readable=_has_a_score,
    gold=_labelled_share,
    solution=_share_text,
    read_solution=_read_share,
    agreement=_is_near,
    contradicts=_is_far_off,
    contradiction="far from the labelled score",
)
FORMS: dict[str, Form] = {form.name: form for form in (PAIRWISE, POINTWISE)}
