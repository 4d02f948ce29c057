"""Numbers from judgments: rates, both orders, votes, ties, and an exact paired test.

Rates are fractions between 0 and 1; `intervals` says how sure they are. Every number that the project calls its own
comes from here.

>>> from unifiedreward_think.verdict import answer_text, parse
>>> def judged(name, order, winner):
...     verdict = parse(f"<answer>{answer_text(winner, 'Image')}</answer>", "Image", style="direct")
...     return Judgment(record_id=name, order=order, completion="", verdict=verdict, preferred=1, task="")
>>> said = [("kite", "ab", 1), ("kite", "ba", 2), ("boat", "ab", 1), ("boat", "ba", 1)]
>>> rows = [judged(*row) for row in said]
>>> print(rate(rows, "accuracy"))
75.0% [30.1, 95.4]
>>> consistency = both_orders(rows)
>>> consistency.agreement.value, consistency.flip_rate.value, consistency.accuracy.value
(0.5, 0.5, 0.5)
>>> majority(rows)
{'kite': 1, 'boat': None}
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from unifiedreward_think.errors import RecordError
from unifiedreward_think.forms import FORMS, POINTWISE, Form
from unifiedreward_think.intervals import Flag, Rate, as_rate, block, macro_average, sign_flip_p
from unifiedreward_think.order import STORED_ORDER, as_stored
from unifiedreward_think.point_metrics import summarize_points
from unifiedreward_think.records import Judgment, Preferred
from unifiedreward_think.tie_threshold import cross_fitted_ties, tie_calibration
from unifiedreward_think.verdict import Verdict

# What one verdict of a style and a form adds to each rate; None keeps it out of the denominator. GRPO logs these, too.
VERDICT_MEASURES: dict[str, Callable[[Verdict, str, Form], bool | None]] = {
    "parse_rate": lambda verdict, style, form: verdict.strict,
    "readable_rate": lambda verdict, style, form: form.readable(verdict),
    "arithmetic_rate": lambda verdict, style, form: None if style == "direct" else verdict.arithmetic_ok,
    "first_position_rate": lambda verdict, style, form: (
        verdict.winner == 1 if isinstance(verdict.winner, int) else None
    ),
}
# What a judgment adds to each rate.
MEASURES: dict[str, Callable[[Judgment], bool | None]] = {
    "accuracy": lambda j: j.correct,
    "parse_rate": lambda j: _of_verdict("parse_rate", j),
    "readable_rate": lambda j: _of_verdict("readable_rate", j),
    "truncation_rate": lambda j: None if j.error else j.finish_reason == "length",
    "arithmetic_rate": lambda j: _of_verdict("arithmetic_rate", j),
    "first_position_rate": lambda j: _of_verdict("first_position_rate", j),
    "error_rate": lambda j: bool(j.error),
}


class BothOrders(NamedTuple):
    """How verdicts hold when the candidates trade places; see `both_orders`."""

    agreement: Rate
    flip_rate: Rate
    accuracy: Rate


class PairedTest(NamedTuple):
    """Two judgment sets on the labelled rows they share; see `paired_test`. p-values are two-sided."""

    accuracy_a: Rate
    accuracy_b: Rate
    only_a_right: int
    only_b_right: int
    p_value: float
    p_mcnemar: float
    unmatched_a: int
    unmatched_b: int


def rate(judgments: Iterable[Judgment], measure: str) -> Rate:
    """Return one rate over judgments; each order and each sample of a record is a row of its own.

    Args:
        judgments: the rows.
        measure: a key of MEASURES. "accuracy": the preferred candidate won; ties and unlabelled rows are left
            out, unparsed and failed rows are wrong. Of the rows the model answered: "parse_rate" (strict
            verdicts), "readable_rate" (a winner can be read), "truncation_rate" (cut by the token limit),
            "arithmetic_rate" (the sums add up and agree with the answer; not for rows whose `sampling` names
            the style "direct"). "first_position_rate": the candidate shown first wins, of readable verdicts.
            "error_rate": items that failed before the model answered, of all rows.
    """
    return as_rate(flags_of(judgments, measure))


def by_record(judgments: Iterable[Judgment]) -> defaultdict[str, list[Judgment]]:
    """Return record id -> its judgments, in their order."""
    rows: defaultdict[str, list[Judgment]] = defaultdict(list)
    for row in judgments:
        rows[row.record_id].append(row)
    return rows


def pair_orders(judgments: Iterable[Judgment]) -> list[tuple[Judgment, Judgment]]:
    """Return the ("ab", "ba") judgments of each record and sample that was judged in both orders."""
    keyed = _by_key(judgments)
    firsts = [row for row in keyed.values() if row.order == STORED_ORDER]
    return [(x, y) for x in firsts if (y := keyed.get((x.record_id, "ba", x.sample))) is not None]


def both_orders(judgments: Iterable[Judgment]) -> BothOrders:
    """Compare the verdicts of both orders, pair by pair.

    `agreement`: the same candidate is named in both orders, of all pairs; an unparsed verdict makes it a
    disagreement. `flip_rate`: another candidate is named, of the pairs readable in both orders. `accuracy`:
    the preferred candidate is named in both orders, of the labelled pairs.
    """
    return BothOrders(*map(as_rate, _pair_flags(judgments).values()))


def majority(judgments: Iterable[Judgment]) -> dict[str, Preferred | None]:
    """Return record id -> what has most votes over samples and orders: a candidate (1 or 2, as stored), or "tie".

    Unparsed verdicts abstain. A split or empty vote has no winner: None, never a coin flip.
    """
    return {name: _most_named(rows) for name, rows in by_record(judgments).items()}


def _most_named(rows: Iterable[Judgment]) -> Preferred | None:
    cast = Counter(row.choice for row in rows if row.choice is not None).most_common(2)
    return None if not cast or (len(cast) == 2 and cast[0][1] == cast[1][1]) else cast[0][0]


def candidate_margin(judgment: Judgment) -> float | None:
    """Return the score sum of candidate 1 minus that of candidate 2, as stored; None without scores."""
    sums = judgment.verdict.sums
    if len(sums) != 2:
        return None
    first, second = as_stored(sums, judgment.order)
    return first - second


def paired_test(a: Iterable[Judgment], b: Iterable[Judgment]) -> PairedTest:
    """Test exactly whether two models differ in accuracy, on the labelled rows that both judged.

    `p_mcnemar` is McNemar's exact test, binomial on the rows that only one gets right; it takes rows as
    independent. `p_value` flips the signs of whole clusters (the null: it does not matter which model is
    which), counted out exactly. It equals `p_mcnemar` where every cluster holds one row; where not, it is the
    one to quote.

    Raises:
        RecordError: the two sets disagree about the label of a record.
    """
    rows_a, rows_b = _by_key(a), _by_key(b)
    common = [(row, rows_b[key]) for key, row in rows_a.items() if key in rows_b]
    if wrong := [x.record_id for x, y in common if x.preferred != y.preferred]:
        raise RecordError(f"record {wrong[0]!r} has two labels; judge the same records file with both models")
    labelled = [(x, y) for x, y in common if x.correct is not None]
    only_a = sum(bool(x.correct and not y.correct) for x, y in labelled)
    only_b = sum(bool(y.correct and not x.correct) for x, y in labelled)
    differences = Counter[str]()
    for x, y in labelled:
        differences[x.cluster] += bool(x.correct) - bool(y.correct)
    return PairedTest(
        accuracy_a=rate((x for x, _ in labelled), "accuracy"),
        accuracy_b=rate((y for _, y in labelled), "accuracy"),
        only_a_right=only_a,
        only_b_right=only_b,
        p_value=sign_flip_p(list(differences.values())),
        p_mcnemar=sign_flip_p([1] * only_a + [-1] * only_b),
        unmatched_a=len(rows_a) - len(common),
        unmatched_b=len(rows_b) - len(common),
    )


def summarize(judgments: Iterable[Judgment]) -> dict[str, Any]:
    """Return every number of a run, ready for JSON; each rate as value, low, high, count and total.

    Accuracy is over judgments: where both orders were judged each counts once. `interval` says how the
    intervals come about; the cluster of a row is its `group`, or its record where that is empty.

    Returns:
        judgments, records, ties, unlabelled, errors: counts (the last three of judgments). overall and
        tasks[name]: all MEASURES. macro_accuracy: mean over tasks. both_orders[overall | task], where both
        were judged: agreement, flip_rate, accuracy. majority, where records have several judgments: accuracy
        of the vote, no winner being wrong. tie_threshold_fitted_on_these_rows, where labels hold ties, and its twin
        tie_threshold_cross_fitted. points, where scores were asked for: see `summarize_points`.
    """
    rows = list(_by_key(judgments).values())
    tasks = {task: [row for row in rows if row.task == task] for task in sorted({row.task for row in rows})}
    accuracies = {task: flags_of(part, "accuracy") for task, part in tasks.items()}
    summary: dict[str, Any] = {
        "judgments": len(rows),
        "records": len({row.record_id for row in rows}),
        "ties": sum(row.preferred == "tie" for row in rows),
        "unlabelled": sum(row.preferred is None for row in rows),
        "errors": sum(bool(row.error) for row in rows),
        "overall": _rates(rows),
        "tasks": {task: _rates(part) for task, part in tasks.items()},
        "macro_accuracy": macro_average(accuracies)._asdict(),
    }
    if pair_orders(rows):
        parts = {"overall": rows, **{task: part for task, part in tasks.items() if pair_orders(part)}}
        summary["both_orders"] = {name: _blocks(_pair_flags(part)) for name, part in parts.items()}
    voters = [row for row in rows if len(row.order) > 1]
    if len(voters) > len({row.record_id for row in voters}):
        votes, labelled = majority(voters), {row.record_id: row for row in voters if row.correct is not None}
        flags = [(row.cluster, votes[name] == row.preferred) for name, row in labelled.items()]
        summary["majority"] = block(flags)
    if any(row.form == POINTWISE.name for row in rows):
        summary["points"] = summarize_points(rows)
    if any(row.preferred == "tie" for row in voters):
        summary |= _tie_thresholds(voters)
    return summary


def _tie_thresholds(voters: Iterable[Judgment]) -> dict[str, Any]:
    pairs = [(row.cluster, candidate_margin(row), row.preferred) for row in voters if row.preferred is not None]
    best = tie_calibration([margin for _, margin, _ in pairs], [label for *_, label in pairs])
    fitted = {**best._asdict(), "accuracy": best.correct / best.total}
    return {"tie_threshold_fitted_on_these_rows": fitted, "tie_threshold_cross_fitted": cross_fitted_ties(pairs)}


def group_accuracy(judgments: Iterable[Judgment], groups: Mapping[str, str]) -> dict[str, Any]:
    """Return accuracy by the group that `groups` names for each record id, and the mean over groups.

    Returns:
        groups[name]: value, low, high, count and total. macro_groups: value, low and high.
    """
    parts: dict[str, list[Judgment]] = {name: [] for name in sorted(set(groups.values()))}
    for row in judgments:
        parts[groups[row.record_id]].append(row)
    flags = {name: flags_of(rows, "accuracy") for name, rows in parts.items()}
    return {"groups": _blocks(flags), "macro_groups": macro_average(flags)._asdict()}


def _rates(rows: Sequence[Judgment]) -> dict[str, Any]:
    return _blocks({measure: flags_of(rows, measure) for measure in MEASURES})


def _blocks(named: Mapping[str, Sequence[Flag]]) -> dict[str, Any]:
    return {name: block(flags) for name, flags in named.items()}


def flags_of(judgments: Iterable[Judgment], measure: str) -> list[Flag]:
    """Return the rows that `rate` counts, each with its cluster: its `group`, or its record where that is empty."""
    counts = MEASURES[measure]
    return [(row.cluster, flag) for row in judgments if (flag := counts(row)) is not None]


def _pair_flags(judgments: Iterable[Judgment]) -> dict[str, list[Flag]]:
    pairs = pair_orders(judgments)
    readable = [(x, y) for x, y in pairs if x.choice is not None and y.choice is not None]
    return {
        "agreement": [(x.cluster, x.choice is not None and x.choice == y.choice) for x, y in pairs],
        "flip_rate": [(x.cluster, x.choice != y.choice) for x, y in readable],
        "accuracy": [(x.cluster, bool(x.correct and y.correct)) for x, y in pairs if x.correct is not None],
    }


def _of_verdict(measure: str, judgment: Judgment) -> bool | None:
    style = judgment.settings.get("style", "cot")
    return None if judgment.error else VERDICT_MEASURES[measure](judgment.verdict, style, FORMS[judgment.form])


def _by_key(judgments: Iterable[Judgment]) -> dict[tuple[str, str, int], Judgment]:
    keyed: dict[tuple[str, str, int], Judgment] = {}
    for row in judgments:
        key = (row.record_id, row.order, row.sample)
        if key in keyed:
            raise RecordError(f"record {key[0]!r}: order {key[1]!r}, sample {key[2]} is judged twice; remove one row")
        keyed[key] = row
    return keyed
