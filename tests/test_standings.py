"""What scores earn from a pair's preference alone: the rule, as a table and as properties, and the rows around it."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifiedreward_think.forms import PAIRWISE, POINTWISE
from unifiedreward_think.points import render_points
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.rewards import accuracy_reward
from unifiedreward_think.standings import STANDINGS, Sample, earned, earned_together, standing_of

SHARES = st.one_of(st.none(), st.integers(0, 27).map(lambda step: step / 27))
GROUP = st.lists(SHARES, min_size=1, max_size=8)
OPPOSITE = {"better": "worse", "worse": "better", "equal": "equal"}
PAIR = PreferenceRecord(id="k", task="image_generation", prompt="a kite", media=(("a",), ("b",)), preferred=1)


def together(first, second, standing, letters="ab"):
    a, b = letters
    samples = [Sample("k", a, standing, share) for share in first]
    return earned_together([*samples, *(Sample("k", b, OPPOSITE[standing], share) for share in second)])


@pytest.mark.parametrize(
    ("share", "others", "standing", "reward"),
    [
        (0.5, [0.25, 0.75, 0.5, 0.1], "better", 0.625),
        (0.5, [0.25, 0.75, 0.5, 0.1], "worse", 0.375),
        (0.5, [0.25, 0.75], "equal", 0.75),
        (0.5, [0.25, None, None], "better", 1.0),
        (1 / 3, [Fraction(1, 3) + Fraction(1, 10**9)], "better", 0.5),  # equal on scales that round otherwise
        (0.5, [None, None], "better", None),
        (None, [0.25], "better", 0.0),
        (None, [None], "equal", 0.0),
    ],
)
def test_a_sample_earns_what_the_table_says(share, others, standing, reward):
    assert earned(share, others, standing) == (None if reward is None else pytest.approx(reward))


@given(GROUP, GROUP, st.sampled_from(STANDINGS))
def test_it_makes_no_difference_which_candidate_is_stored_first(first, second, standing):
    rewards, alone = together(first, second, standing)
    swapped, _ = together(second, first, OPPOSITE[standing], letters="ba")
    assert alone == 0 and swapped == rewards[len(first) :] + rewards[: len(first)]


@given(GROUP, GROUP, st.sampled_from(STANDINGS))
def test_rewards_are_shares_and_none_only_beside_a_group_that_cannot_be_read(first, second, standing):
    rewards, _ = together(first, second, standing)
    for share, reward in zip(first, rewards, strict=False):
        if share is None:
            assert reward == 0
        elif all(other is None for other in second):
            assert reward is None
        else:
            assert 0 <= reward <= 1


@given(st.lists(SHARES.filter(lambda s: s is not None), min_size=1, max_size=8), GROUP)
def test_both_groups_of_a_readable_pair_have_the_same_mean_which_is_how_often_it_is_ordered_rightly(first, second):
    readable = [share for share in second if share is not None]
    if not readable:
        return
    rewards, _ = together(first, readable, "better")
    ordered = [1.0 if a > b else 0.5 if a == b else 0.0 for a in first for b in readable]
    for mine in (rewards[: len(first)], rewards[len(first) :]):
        assert sum(mine) / len(mine) == pytest.approx(sum(ordered) / len(ordered))


@given(GROUP, st.sampled_from(STANDINGS))
def test_equal_scores_earn_half_and_of_a_tie_all(shares, standing):
    same = [0.5 for _ in shares]
    assert together(same, same, standing)[0] == [1.0 if standing == "equal" else 0.5] * (2 * len(same))


def test_a_sample_without_the_other_candidate_earns_none_and_is_counted_other_pairs_not_looked_at():
    samples = [Sample("k", "a", "better", 0.5), Sample("m", "b", "worse", 0.1), Sample("k", "a", "better", None)]
    assert earned_together(samples) == ([None, None, None], 3)
    assert earned_together([*samples, Sample("k", "b", "worse", 0.2)]) == ([1.0, None, 0.0, 1.0], 1)


def test_the_solution_of_a_candidate_is_its_score_or_else_how_it_stands_to_the_other_one():
    assert [POINTWISE.solution_of(PAIR, order) for order in "ab"] == ["better", "worse"]
    assert [POINTWISE.solution_of(replace(PAIR, preferred="tie"), order) for order in "ab"] == ["equal", "equal"]
    scored = replace(PAIR, scores=(5, None), scale=(1, 5))  # not half by one label and half by another
    assert [POINTWISE.solution_of(scored, order) for order in "ab"] == ["1", None]
    assert [form.teaches(replace(PAIR, preferred=None)) for form in (PAIRWISE, POINTWISE)] == [False, False]
    assert [form.teaches(replace(PAIR, preferred="tie")) for form in (PAIRWISE, POINTWISE)] == [False, True]
    assert standing_of(PAIR, "ab") is None and PAIRWISE.solution_of(PAIR, "ba") == "Image 2 is better"
    assert all(POINTWISE.read_solution(standing) == standing for standing in STANDINGS)


def test_scores_of_a_pair_are_rewarded_among_rows_of_other_forms_and_labels():
    texts = [render_points([("Light", value)]) for value in (9, 3, 6, 8)]
    rows = {
        "solution": ["better", "worse", "0.5", "Image 1 is better"],
        "form": ["pointwise"] * 3 + ["pairwise"],
        "id": ["k", "k", "s", "p"],
        "order": ["a", "b", "a", "ab"],
        "task": ["image_generation"] * 4,
    }
    assert accuracy_reward(texts, **rows) == [1.0, 1.0, pytest.approx(0.944444), 0.0]
    worse = {**rows, "solution": ["worse", "better", *rows["solution"][2:]]}
    assert accuracy_reward(texts, **worse)[:2] == [0.0, 0.0]
    with pytest.raises(ValueError, match="add the columns `id` and `order`"):
        accuracy_reward(texts, **{key: cells for key, cells in rows.items() if key != "id"})


def test_a_score_whose_pair_is_elsewhere_has_no_reward_and_a_counted_warning(caplog):
    text, logged = render_points([("Light", 9)]), {}
    rows = {"solution": ["better", "better"], "form": ["pointwise"] * 2, "id": ["k", "m"], "order": ["a", "b"]}
    rewards = accuracy_reward([text] * 2, task=["image_generation"] * 2, log_metric=logged.__setitem__, **rows)
    assert rewards == [None, None] and logged == {"scores_without_their_pair": 1.0}
    assert "2 of 2 scores have no reward" in caplog.text and "shuffle_dataset false" in caplog.text
