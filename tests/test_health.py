"""Health: a healthy log draws no warning, and each sick log exactly its own."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unifiedreward_think.errors import InputError
from unifiedreward_think.training.monitor.health import Watch
from unifiedreward_think.training.monitor.thresholds import BANDS, HELD_OUT, table, with_limits

HEALTHY = {
    "loss": 0.1,
    "parse_rate": 0.95,
    "completions/clipped_ratio": 0.02,
    "frac_reward_zero_std": 0.3,
    "rewards/accuracy_reward/mean": 0.7,
    "first_position_rate": 0.5,
    "entropy": 0.1,
    "kl": 0.05,
    "grad_norm": 0.6,
    "mean_token_accuracy": 0.9,
    "tokens_per_second": 3000.0,
    "memory_share": 0.6,
}
# A value outside each band, where the rows before are HEALTHY.
SICK = {
    "parse_rate>=": 0.5,
    "completions/clipped_ratio<=": 0.4,
    "frac_reward_zero_std<=": 0.95,
    "rewards/accuracy_reward/mean>=": 0.4,
    "first_position_rate>=": 0.1,
    "first_position_rate<=": 0.9,
    "entropy>=": 0.001,
    "entropy<=": 4.0,
    "kl<=": 2.0,
    "grad_norm<=": 6.0,
    "mean_token_accuracy>=": 0.3,
    "tokens_per_second>=": 500.0,
    "memory_share<=": 0.99,
    f"{HELD_OUT}>=": 0.6,
}
INSIDE = {
    **{
        "loss": (-9, 9),
        "parse_rate": (0.8, 1),
        "completions/clipped_ratio": (0, 0.1),
        "frac_reward_zero_std": (0, 0.8),
    },
    **{"rewards/accuracy_reward/mean": (0.7, 1), "first_position_rate": (0.2, 0.8), "entropy": (0.01, 2)},
    **{"kl": (0, 0.5), "grad_norm": (1, 5), "mean_token_accuracy": (0.8, 1), "tokens_per_second": (33, 99)},
    **{"memory_share": (0, 0.95)},
}


def watched(rows, **options):
    """Number the rows as steps, and return the episodes as (band, first, until) and those that each row began."""
    watch = Watch(**options)
    begun = [watch.see({**row, "step": step}) for step, row in enumerate(rows, start=1)]
    return [(e.symptom.band.name, e.first, e.until) for e in watch.episodes], begun


def test_every_band_has_a_sick_log_and_a_healthy_value():
    assert SICK.keys() == {band.name for band in BANDS}
    assert {band.metric for band in BANDS} == HEALTHY.keys() - {"loss"} | {HELD_OUT}


@settings(deadline=None)
@given(st.lists(st.fixed_dictionaries({k: st.floats(*ends) for k, ends in INSIDE.items()}), max_size=60), st.data())
def test_no_log_inside_the_bands_draws_a_warning(rows, data):
    judged = data.draw(st.lists(st.floats(0.9, 1.0), max_size=5))
    rows = rows + [{HELD_OUT: value} for value in judged]
    assert watched(rows, window=data.draw(st.integers(1, 12))) == ([], [[] for _ in rows])


@pytest.mark.parametrize("name", SICK)
def test_a_sick_log_draws_exactly_its_warning_once(name):
    metric = name[:-2]
    if metric == HELD_OUT:
        before, sick, back = [{HELD_OUT: 0.8}] * 3, [{HELD_OUT: SICK[name]}] * 3, [{HELD_OUT: 0.78}]
    else:
        before, sick, back = [HEALTHY] * 40, [{**HEALTHY, metric: SICK[name]}] * 12, [HEALTHY] * 12
    episodes, begun = watched([*before, *sick, *back])
    assert [band for band, *_ in episodes] == [name]
    _, first, until = episodes[0]
    assert len(before) < first <= len(before) + len(sick) < until <= len(before) + len(sick) + len(back)
    assert [step for step, new in enumerate(begun, start=1) if new] == [first]
    again, _ = watched([*before, *sick, *back, *sick])
    assert [band for band, *_ in again] == [name, name] and again[1][2] is None


def test_one_odd_step_and_a_young_run_say_nothing():
    odd = {**HEALTHY, "parse_rate": 0.0, "kl": 2.0}
    assert watched([HEALTHY] * 9 + [odd] + [HEALTHY] * 9)[0] == []
    assert watched([odd] * 9)[0] == []
    assert {band for band, *_ in watched([odd] * 10)[0]} == {"parse_rate>=", "kl<="}


def test_a_value_that_is_no_number_counts_at_once():
    for value in (math.nan, math.inf):
        assert watched([{**HEALTHY, "grad_norm": value}])[0] == [("grad_norm<=", 1, None)]
    episodes, _ = watched([HEALTHY] * 30 + [{**HEALTHY, "grad_norm": math.nan}] + [HEALTHY] * 30)
    assert episodes == [("grad_norm<=", 31, 41)]


def test_gradients_that_begin_after_dead_groups_are_no_spike():
    assert watched([{"loss": 0, "grad_norm": 0.0}] * 30 + [{"loss": 0, "grad_norm": 0.5}] * 9)[0] == []


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from([*HEALTHY, HELD_OUT]), st.none() | st.floats() | st.integers(-9, 9)),
        max_size=30,
    ),
    st.integers(1, 4),
)
def test_any_log_gives_episodes_that_can_be_written(rows, window):
    watch = Watch(window=window)
    for step, row in enumerate(rows):
        watch.see({**row, "step": step})
    for episode in watch.episodes:
        row = json.loads(json.dumps(episode.to_json(), allow_nan=False))
        assert row["until"] is None or row["until"] > row["first"]
        assert all(row[key] for key in ("metric", "band", "cause", "fix")) and episode.headline


def test_limits_of_ones_own_replace_those_of_the_bands():
    strict = with_limits(["kl <= 0.01", "parse_rate>=0"])
    assert [(b.name, b.limit) for b in strict if b not in BANDS] == [("parse_rate>=", 0.0), ("kl<=", 0.01)]
    assert [name for name, *_ in watched([HEALTHY] * 10, bands=strict)[0]] == ["kl<="]
    assert watched([{**HEALTHY, "kl": 1e9}] * 10, bands=with_limits(["kl<=inf"]))[0] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("kl", "no limit; write it like 'kl<=0.5'"),
        ("kl<=high", "'kl<=high' is no limit"),
        ("kl<=nan", "is no limit"),
        ("kl>=0.1", "there is no band kl>=; there are parse_rate>="),
        ("kll<=0.1", "there is no band kll<="),
    ],
)
def test_a_limit_that_means_nothing_is_refused(change, message):
    with pytest.raises(InputError, match="health_bands") as error:
        with_limits([change])
    assert message in str(error.value)


def test_the_documented_table_is_that_of_the_code():
    text = Path(__file__).parents[1].joinpath("docs", "health.md").read_text(encoding="utf-8")
    command = "python -m unifiedreward_think.training.monitor.thresholds"
    assert table() in text, f"write the output of `{command}` into docs/health.md"
