"""GRPO with `use_vllm: true` and `shared_prefix: true`, as far as a CPU goes: one step on what a real vLLM writes."""

import pytest

from helpers.processes import checked
from helpers.stages import changed_keys, read_log
from helpers.vllm_cpu import PYTHON, SERVABLE, vllm_environment
from unifiedreward_think.models import tiny
from unifiedreward_think.prompting import load_prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_a_step_on_completions_of_vllm_equals_trls_own(needs_vllm, toy_data, tmp_path):
    model, steps = tmp_path / "model", {}
    tiny.build("qwen2_5_vl", model, corpus=load_prompts("cot").values(), size=SERVABLE)
    for shared in ("true", "false"):
        command = (PYTHON, "-m", "helpers.vllm_grpo", model, toy_data, tmp_path / shared, shared)
        checked(command, **vllm_environment())
        (steps[shared],) = read_log(tmp_path / shared)
        assert changed_keys(model, tmp_path / shared)
    shared, stock = steps["true"], steps["false"]
    # What vLLM gave its own tokens is what the policy gives them: prompts, pictures and weights are the same.
    assert shared["sampling/sampling_logp_difference/max"] < 1e-3
    for key in ("loss", "grad_norm", "kl", "reward", "completions/mean_length"):
        assert shared[key] == pytest.approx(stock[key], rel=1e-4, abs=1e-5), key
    assert shared["grad_norm"] > 0.1 and shared["reward_std"] > 0
