import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from unifiedreward_think.intervals import Rate, block, cluster_bootstrap, interval, macro_average, sign_flip_p, wilson


def test_the_wilson_interval_is_the_textbook_one():
    # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = .5, n = 4, z = 1.959964
    assert wilson(2, 4) == pytest.approx((0.15004, 0.84996), abs=1e-4)
    assert str(Rate(505, 600)) == "84.2% [81.0, 86.9]"


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_rate_lies_in_its_interval_and_both_in_0_1(pair):
    share = Rate(*pair)
    assert 0 <= share.low <= share.value + 1e-12 <= share.high + 2e-12 <= 1 + 2e-12


def test_single_row_clusters_get_wilson_and_others_a_bootstrap_that_is_wider():
    single = [(str(i), i % 4 > 0) for i in range(400)]
    doubled = [(str(i), i % 4 > 0) for i in range(400) for _ in range(2)]
    assert interval(single)[1:] == wilson(300, 400)
    low, high = interval(doubled)[1:]
    assert high - low == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 400) ** 0.5, rel=0.08)
    assert high - low > 1.3 * (wilson(600, 800)[1] - wilson(600, 800)[0])


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_is_that_of_scipy(pair):
    expected = binomtest(*pair).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(*pair) == pytest.approx(tuple(expected), abs=1e-12)


def test_a_bootstrap_without_spread_falls_back_on_one_trial_per_cluster():
    all_right = [(name, True) for name in "abcdefghij" for _ in range(2)]
    assert interval(all_right) == (1.0, *wilson(10, 10))
    assert interval([(name, not flag) for name, flag in all_right]) == (0.0, *wilson(0, 10))
    always_first = [(name, order == "ab") for name in "abcdefghij" for order in ("ab", "ba")]
    assert interval(always_first) == (0.5, *wilson(5, 10))
    assert interval(always_first[:2]) == (0.5, *wilson(0.5, 1))


def test_the_macro_average_weighs_tasks_alike():
    strata = {
        "large": [(str(i), i < 90) for i in range(100)],
        "small": [(str(i), i < 5) for i in range(10)],
        "none": [],
    }
    result = macro_average(strata)
    assert result.value == pytest.approx((0.9 + 0.5) / 2)
    # variance of the mean of two independent means: (.09/100 + .25/10) / 4
    assert (result.high - result.low) / 3.92 == pytest.approx(((0.0009 + 0.025) / 4) ** 0.5, rel=0.1)


def test_an_empty_bootstrap_is_not_available():
    assert cluster_bootstrap([]) == (None, None, None)


rows_of_clusters = st.lists(st.tuples(st.sampled_from("abcdefg"), st.booleans()), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(rows_of_clusters, st.randoms(), st.integers(0, 2**40))
def test_a_bootstrap_depends_on_the_seed_alone(rows, random, seed):
    shuffled = random.sample(rows, len(rows))
    first = cluster_bootstrap(rows, seed=seed, resamples=200)
    assert first == cluster_bootstrap(shuffled, seed=seed, resamples=200)
    assert 0 <= first.low <= first.high <= 1


def test_another_seed_gives_another_bootstrap():
    rows = [(str(i % 37), (i * i) % 7 / 7) for i in range(100)]
    assert cluster_bootstrap(rows, seed=1) != cluster_bootstrap(rows, seed=2)


def test_a_block_holds_the_interval_of_the_clusters_and_the_counts():
    flags = [(str(i // 2), i % 8 > 1) for i in range(80)]
    assert block(flags) == {**interval(flags)._asdict(), "count": 60, "total": 80}


# --- exact tests ---


@given(st.integers(0, 60), st.integers(0, 60))
def test_differences_of_one_give_the_exact_binomial_p_value(ups, downs):
    expected = binomtest(ups, ups + downs).pvalue if ups + downs else 1.0
    assert sign_flip_p([1] * ups + [-1] * downs + [0]) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=9))
def test_the_p_value_is_the_share_of_all_signs_that_reach_as_far(differences):
    sums = [0]
    for size in differences:
        sums = [total + sign * size for total in sums for sign in (1, -1)]
    reached = sum(abs(total) >= abs(sum(differences)) for total in sums)
    assert sign_flip_p(differences) == pytest.approx(reached / len(sums))
