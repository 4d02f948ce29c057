import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from unifiedreward_think.metrics import (
    MEASURES,
    both_orders,
    candidate_margin,
    group_accuracy,
    majority,
    pair_orders,
    paired_test,
    rate,
    summarize,
)
from unifiedreward_think.records import Judgment
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.tie_threshold import cross_fitted_ties, tie_calibration
from unifiedreward_think.verdict import parse, render

TASK = "image_generation"


def judged(
    record="r",
    candidate=1,
    *,
    order="ab",
    sample=0,
    preferred=1,
    text=None,
    task=TASK,
    style="cot",
    scores=(9, 4),
    **more,
):
    """One judgment in which `candidate` (as stored; None: unreadable) wins with the larger of `scores`."""
    noun = TASKS[task].noun
    if text is None and candidate is None:
        text = "<think>hm</think>"
    if text is None:
        shown = candidate if order == "ab" else 3 - candidate
        text = render(shown, [("Clarity", *(scores if shown == 1 else scores[::-1]))], noun=noun)
    return Judgment(
        record_id=record,
        order=order,
        sample=sample,
        completion=text,
        verdict=parse(text, noun, style=style),
        preferred=preferred,
        task=task,
        **more,
    )


def failed(record):
    """A row whose item failed before the model answered."""
    verdict = parse("", "Image")
    return Judgment(
        record_id=record,
        order="ab",
        completion=None,
        verdict=verdict,
        preferred=1,
        task=TASK,
        error="no such file",
    )


# --- rates ---


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (
            "accuracy",
            (2, 6),
        ),  # the tie and the unlabelled row are left out; unparsed, cut and failed rows are wrong
        ("parse_rate", (5, 7)),
        ("readable_rate", (5, 7)),
        ("truncation_rate", (1, 7)),
        ("arithmetic_rate", (4, 7)),
        ("first_position_rate", (3, 5)),
        ("error_rate", (1, 8)),
    ],
)
def test_every_rate_has_its_own_denominator(measure, expected):
    wrong_sum = render(1, [("Clarity", 9, 4)], noun="Image").replace("9=9", "9=8")
    rows = [
        judged("right", 1),
        judged("wrong", 2),
        judged("right, shown second, wrong sum", text=wrong_sum, order="ba", preferred=2),
        judged("tie", 2, preferred="tie"),
        judged("unlabelled", 1, preferred=None),
        judged("unparsed", None),
        judged("cut", text="<think>Image 1", finish_reason="length"),
        failed("failed"),
    ]
    assert rate(rows, measure) == expected


def test_a_direct_answer_has_no_sums_to_be_wrong():
    row = judged(text="<answer>Image 1 is better</answer>", style="direct", settings={"style": "direct"})
    assert rate([row], "arithmetic_rate") == (0, 0)
    assert rate([row], "parse_rate") == (1, 1)


def test_a_rate_without_rows_is_not_available():
    empty = rate([], "accuracy")
    assert (empty.value, empty.low, empty.high, str(empty)) == (None, None, None, "n/a")


# --- both orders and votes ---


def test_an_unparsed_verdict_is_a_disagreement_but_no_flip():
    rows = [
        *(judged("stable", 1, order=order) for order in ("ab", "ba")),
        *(judged("stable and wrong", 2, order=order) for order in ("ab", "ba")),
        judged("flips", 1, order="ab"),
        judged("flips", 2, order="ba"),
        judged("half read", 1, order="ab"),
        judged("half read", None, order="ba"),
        *(judged("unread", None, order=order) for order in ("ab", "ba")),
        *(judged("a tie", 2, order=order, preferred="tie") for order in ("ab", "ba")),
        judged("one order only", 1),
    ]
    result = both_orders(rows)
    assert result.agreement == (3, 6)
    assert result.flip_rate == (1, 4)
    assert result.accuracy == (1, 5)


def test_orders_are_paired_sample_by_sample():
    rows = [judged(sample=0, order="ab"), judged(sample=1, order="ba"), judged(sample=1, order="ab")]
    assert [(x.sample, y.sample) for x, y in pair_orders(rows)] == [(1, 1)]


def test_the_same_row_twice_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'kite'.*'ba', sample 3 is judged twice"):
        summarize([judged("kite", order="ba", sample=3)] * 2)


def test_a_vote_counts_candidates_over_orders_and_lets_unparsed_abstain():
    rows = [
        judged("two to one", 2, order="ab"),
        judged("two to one", 2, order="ba"),
        judged("two to one", 1, order="ab", sample=1),
        judged("one vote", None),
        judged("one vote", 1, sample=1),
        judged("split", 1),
        judged("split", 2, sample=1),
        judged("empty", None),
    ]
    assert majority(rows) == {"two to one": 2, "one vote": 1, "split": None, "empty": None}


# --- ties ---


@pytest.mark.parametrize(
    ("margins", "labels", "expected"),
    [
        ([], [], (-1, 0, 0)),
        ([1, 1], ["tie", 1], (-1, 1, 2)),  # equal margins move together: 1 of 2, whatever the order of rows
        ([1, 1], [1, "tie"], (-1, 1, 2)),
        ([3, 5], [1, 1], (-1, 2, 2)),  # never calling a tie is a choice
        ([0, 0, -4], ["tie", "tie", 2], (0, 3, 3)),
        ([0, -4], [1, 2], (-1, 1, 2)),  # a margin of 0 names nobody
        ([2, -3, 9, None], ["tie", "tie", 1, 1], (3, 3, 4)),  # no scores: wrong at every threshold
        ([0.1 + 0.2, 0.3, 0.3], ["tie", 1, 1], (-1, 2, 3)),  # decimals that differ in the last bit are equal
    ],
)
def test_the_tie_threshold_of_small_tables(margins, labels, expected):
    assert tie_calibration(margins, labels) == pytest.approx(expected)


def test_an_unlabelled_row_cannot_be_calibrated():
    with pytest.raises(ValueError, match="neither 1, 2 nor 'tie'"):
        tie_calibration([1.0], [None])


pairs = st.lists(
    st.tuples(st.none() | st.integers(-6, 6).map(lambda m: m / 2), st.sampled_from([1, 2, "tie"])),
    max_size=25,
)


@given(pairs, st.randoms())
def test_the_tie_threshold_is_the_optimum_of_all_thresholds_and_ignores_the_order_of_rows(rows, random):
    def right(threshold, margin, label):
        if margin is None:
            return False
        said = "tie" if abs(margin) <= threshold else 1 if margin > 0 else 2 if margin < 0 else None
        return said == label

    best = tie_calibration([m for m, _ in rows], [label for _, label in rows])
    brute = {t: sum(right(t, *row) for row in rows) for t in [-1, *(x / 4 for x in range(14))]}
    assert best.correct == max(brute.values()) == brute[best.threshold]
    shuffled = random.sample(rows, len(rows))
    assert best == tie_calibration([m for m, _ in shuffled], [label for _, label in shuffled])


def test_a_cross_fitted_tie_threshold_does_not_look_at_the_labels_that_it_scores():
    pairs = [(f"pair {i}", float(i % 5), "tie" if i % 5 < 2 else 1) for i in range(60)]
    assert cross_fitted_ties(pairs) | {"thresholds": None} == {
        "accuracy": 1.0,
        "correct": 60,
        "total": 60,
        "thresholds": None,
    }
    assert set(cross_fitted_ties(pairs)["thresholds"]) == {1.0}
    # One cluster has all the ties: who scores it has seen none, so none is called; fitted on them, all are right.
    alone = [("alone" if label == "tie" else name, margin, label) for name, margin, label in pairs]
    assert tie_calibration([m for _, m, _ in alone], [label for *_, label in alone]).correct == 60
    assert cross_fitted_ties(alone)["correct"] == 36


def test_the_margin_of_a_swapped_pair_is_turned_back():
    rows = [judged(candidate=2, order=order, scores=(9, 4)) for order in ("ab", "ba")]
    assert [candidate_margin(row) for row in rows] == [-5, -5]
    assert candidate_margin(judged(candidate=None)) is None


# --- two models ---


def test_the_paired_test_is_mcnemars_on_independent_rows():
    # 1 record only A gets right, 6 only B: p = 2 * (C(7,0) + C(7,1)) / 2^7 = 0.125
    a = [judged(str(i), 1 if i in (0, 8) else 2) for i in range(9)]
    b = [judged(str(i), 1 if 0 < i < 7 or i == 8 else 2) for i in range(9)]
    result = paired_test(a, [*b, judged("only b judged it")])
    assert (result.accuracy_a, result.accuracy_b) == ((2, 9), (7, 9))
    assert (result.only_a_right, result.only_b_right) == (1, 6)
    assert result.p_value == pytest.approx(0.125) and result.p_mcnemar == pytest.approx(0.125)
    assert (result.unmatched_a, result.unmatched_b) == (0, 1)


def test_the_paired_test_takes_both_orders_of_a_pair_as_one_observation():
    # B is right in both orders of 5 pairs that A gets wrong in both: 5 coin flips, not 10
    a = [judged(str(i), 2, order=order) for i in range(5) for order in ("ab", "ba")]
    b = [judged(str(i), 1, order=order) for i in range(5) for order in ("ab", "ba")]
    result = paired_test(a, b)
    assert result.p_mcnemar == pytest.approx(2 / 2**10)
    assert result.p_value == pytest.approx(2 / 2**5)


def test_equal_models_differ_with_p_1():
    rows = [judged(str(i), 1 + i % 2) for i in range(6)]
    assert paired_test(rows, rows).p_value == paired_test(rows, rows).p_mcnemar == 1.0
    assert paired_test(rows, []).accuracy_a == (0, 0)


def test_two_sets_with_different_labels_are_not_compared():
    with pytest.raises(ValueError, match="'r' has two labels"):
        paired_test([judged(preferred=1)], [judged(preferred=2)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_sign_flip_p_value_equals_the_binomial_one_and_is_symmetric(rights):
    a = [judged(str(i), 1 if right else 2) for i, (right, _) in enumerate(rights)]
    b = [judged(str(i), 1 if right else 2) for i, (_, right) in enumerate(rights)]
    result = paired_test(a, b)
    assert result.p_value == pytest.approx(result.p_mcnemar)
    assert result.p_value == pytest.approx(paired_test(b, a).p_value)
    if n := result.only_a_right + result.only_b_right:
        assert result.p_mcnemar == pytest.approx(binomtest(result.only_a_right, n).pvalue)


# --- the summary ---


def test_the_summary_of_a_small_run():
    rows = [
        judged("a", 1, order="ab", group="g"),
        judged("a", 1, order="ba", group="g"),
        judged("b", 1, order="ab", group="g"),
        judged("b", 2, order="ba", group="g"),
        judged("c", 2, task="video_understanding"),
        judged("d", 1, task="video_understanding", preferred="tie", scores=(6, 5)),
        judged("e", 1, task="video_understanding", preferred=None),
        failed("f"),
    ]
    result = summarize(rows)
    counts = {key: result[key] for key in ("judgments", "records", "ties", "unlabelled", "errors")}
    assert counts == {"judgments": 8, "records": 6, "ties": 1, "unlabelled": 1, "errors": 1}
    accuracy = result["overall"]["accuracy"]
    assert (accuracy["count"], accuracy["total"], accuracy["value"]) == (3, 6, 0.5)
    assert result["tasks"]["video_understanding"]["accuracy"]["value"] == 0
    assert result["macro_accuracy"]["value"] == pytest.approx((3 / 5 + 0) / 2)
    assert set(result["overall"]) == set(MEASURES)
    assert set(result["both_orders"]) == {"overall", TASK}
    assert result["both_orders"]["overall"]["agreement"]["value"] == 0.5
    assert result["majority"]["count"] == 1 and result["majority"]["total"] == 4
    # margins 5, 5, 5, -5 (all labelled 1), -5 (labelled 1), 1 (tie), none for the failed row
    best = result["tie_threshold_fitted_on_these_rows"]
    assert best == {"threshold": 1, "correct": 4, "total": 7, "accuracy": 4 / 7}
    assert result["tie_threshold_cross_fitted"]["total"] == 7


def test_one_order_of_one_sample_has_no_pair_and_no_vote():
    result = summarize([judged("a"), judged("b", 2)])
    assert not {"both_orders", "majority", "tie_threshold_fitted_on_these_rows"} & set(result)


def test_an_empty_run_has_a_summary_without_values():
    result = summarize([])
    assert result["judgments"] == 0
    assert result["overall"]["accuracy"] == {"value": None, "low": None, "high": None, "count": 0, "total": 0}


runs = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([1, 2, None]), st.sampled_from(["ab", "ba"])),
    max_size=12,
    unique_by=lambda row: (row[0], row[2]),
)


@settings(max_examples=30, deadline=None)
@given(runs, st.randoms())
def test_all_rates_are_shares_and_the_order_of_rows_does_not_matter(run, random):
    rows = [judged(str(name), candidate, order=order, group=str(name // 2)) for name, candidate, order in run]
    result = summarize(rows)
    for block in [result["overall"], *result["tasks"].values(), *result.get("both_orders", {}).values()]:
        for estimate in block.values():
            if estimate["total"]:
                low, value, high = estimate["low"], estimate["value"], estimate["high"]
                assert -1e-12 <= low <= value + 1e-12 <= high + 2e-12 <= 1 + 3e-12
    assert result == summarize(random.sample(rows, len(rows)))


def test_accuracy_by_group_and_the_mean_of_groups():
    rows = [judged("a"), judged("b", 2), judged("c"), judged("d", preferred="tie"), failed("e")]
    result = group_accuracy(rows, {"a": "x", "b": "x", "c": "y", "d": "y", "e": "x", "never judged": "z"})
    assert {name: (block["count"], block["total"]) for name, block in result["groups"].items()} == {
        "x": (1, 3),  # the failed row counts, the tie does not
        "y": (1, 1),
        "z": (0, 0),
    }
    assert result["macro_groups"]["value"] == pytest.approx((1 / 3 + 1) / 2)  # an empty group does not count


def test_importing_the_metrics_loads_nothing_heavy():
    code = "import sys, unifiedreward_think.metrics; print({'numpy', 'scipy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
