"""The speed benchmarks at a small size: all implementations take the same steps, ours with the work of one row."""

import importlib
from argparse import Namespace
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from unifiedreward_think.models import tiny

    folder = tmp_path_factory.mktemp("bench") / "model"
    tiny.build("qwen2_5_vl", folder, corpus=["semantic consistency image better score"], size=tiny.Size(patch=14))
    return folder


@pytest.fixture
def measuring(monkeypatch):
    """What the benchmarks share; they import it by its bare name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("measuring")


def test_a_grpo_step_of_all_three_is_the_same_and_ours_works_once_for_a_group(model, measuring):
    common = {"model": model, "new_tokens": 4, "group": 4, "groups": 1, "words": 6, "pictures": 2, "side": 56}
    common |= {"steps": 3, "beta": 0.04, "lora": False, "dead": 0.0, "place": measuring.Place()}
    step = importlib.import_module("grpo_step")
    found = {name: step.measure(Namespace(only=name, **common)) for name in ("original", "trl", "ours")}
    for name in ("original", "ours"):
        assert measuring.difference(found[name]["log"], found["trl"]["log"], step.LEAST) < measuring.LIMIT
    assert found["trl"]["log"][-1]["grad_norm"] > 0.01
    assert found["ours"]["waited_seconds"] < found["trl"]["waited_seconds"]
    stock, ours = found["trl"]["work_per_step"], found["ours"]["work_per_step"]
    assert stock["pictures processed"] == 2 * 4 * ours["pictures processed"]
    assert stock["vision patches"] == 3 * 4 * ours["vision patches"]  # generation, reference, policy
    prompt = stock["prefill tokens"] // 4
    assert ours["prefill tokens"] == prompt
    assert stock["policy tokens"] == stock["reference tokens"] == 4 * (prompt + 4)
    assert ours["policy tokens"] == ours["reference tokens"] == prompt - 1 + 4 * 4


def test_a_policy_pass_has_the_gradients_of_trl(model, measuring):
    common = {"model": model, "new_tokens": 6, "group": 3, "words": 6, "pictures": 1, "repeats": 1}
    common["place"] = measuring.Place()
    policy = importlib.import_module("policy_pass")
    found = {name: [policy.measure(Namespace(only=name, **common))] for name in ("original", "trl", "ours")}
    for (run,) in found.values():
        run["peak_memory_mib"] = 1.0  # one process for all three says nothing
    table = measuring.compare(found, least=0.01)  # gradients of so small a model are small
    assert table["original"]["equal"] and table["ours"]["equal"]
    assert len(found["ours"][0]["log"][0]) > 50
    found["ours"][0]["log"][0]["mean log-probability"] += 1e-3
    assert not measuring.compare(found, least=0.01)["ours"]["equal"]
