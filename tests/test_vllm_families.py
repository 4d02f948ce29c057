"""Models of every family in a real vLLM: the prompt tokens and greedy completions of transformers."""

import json
import re

import pytest

from helpers.stages import train_sft
from helpers.vllm_cpu import SERVABLE, asked, compared, held_out, judge_offline, prompt_rows, prompt_tokens
from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.models import tiny
from unifiedreward_think.models.loading import load_processor
from unifiedreward_think.prompting import load_prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
# Why vLLM 0.30 does not take a family: patterns of its message.
REFUSED = {
    # The CPU build has its linear attention for bfloat16 alone; the second is what processors without AVX-512 say.
    "qwen3_5": r"causal_conv1d_fwd_kernel_impl\" not implemented for 'Float'|CPU GDN attention requires BF16",
    # Its module of Pixtral, which LLaVA's imports, asks transformers 5.23 for a name that is gone.
    "llava_onevision": r"Model architectures \['LlavaOnevisionForConditionalGeneration'\] failed to be inspected",
}
SMALL = {"qwen2_5_vl small": "qwen2_5_vl", "qwen3_vl small": "qwen3_vl"}  # with pictures that are scaled down
MAX_PIXELS = SERVABLE.patch**2 * 4  # one token
COUNT, NEW_TOKENS = 2, 24  # pairs of each task, each in both orders
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "up_proj", "down_proj"]}


@pytest.fixture(scope="module")
def checkpoints(needs_vllm, toy_data, tmp_path_factory):
    """Name -> folder of a random model of each family, and of one trained with LoRA, merged."""
    folder = tmp_path_factory.mktemp("families")
    for family in tiny.FAMILIES:
        tiny.build(family, folder / family, corpus=load_prompts("cot").values(), size=SERVABLE)
    train_sft(folder / "qwen2_5_vl", toy_data, folder / "lora", lora=LORA)
    return {name: folder / name for name in [*tiny.FAMILIES, "lora"]}


@pytest.fixture(scope="module")
def offline(checkpoints, toy_world, tmp_path_factory):
    """Name -> folder of what vLLM answers, one model after another in one process."""
    job = {"world": str(toy_world), "count": COUNT, "layouts": ["one_line"], "new_tokens": NEW_TOKENS, "misfits": False}
    jobs = {name: {**job, "model": str(folder)} for name, folder in checkpoints.items()}
    jobs |= {name: {**jobs[family], "max_pixels": MAX_PIXELS} for name, family in SMALL.items()}
    return judge_offline(jobs, tmp_path_factory.mktemp("offline"), VLLM_ENABLE_V1_MULTIPROCESSING="0")


@pytest.mark.parametrize("name", [*tiny.FAMILIES, "lora", *SMALL])
def test_a_model_loads_in_vllm_and_answers_as_in_transformers(name, checkpoints, offline, toy_world, tmp_path):
    if name in REFUSED:
        assert re.search(REFUSED[name], (offline[name] / "error.txt").read_text())
        return
    assert not (offline[name] / "error.txt").exists(), (offline[name] / "error.txt").read_text()
    model, pairs = str(checkpoints[SMALL.get(name, name)]), held_out(toy_world, COUNT)
    max_pixels = MAX_PIXELS if name in SMALL else None
    protocol = asked("one_line", toy_world, sampling=Sampling(max_new_tokens=NEW_TOKENS))
    backend = TransformersBackend(model, dtype="float32", device="cpu", max_pixels=max_pixels)
    rows = judge(pairs, backend, protocol, tmp_path / "local.jsonl")
    assert len({row.completion for row in rows}) > len(rows) / 2
    assert compared(load_judgments(offline[name] / "one_line.jsonl").values()) == compared(rows)
    processor = load_processor(model, max_pixels=max_pixels)
    tokens = [prompt_tokens(processor, row) for _, row in prompt_rows(pairs, protocol)]
    seen = json.loads((offline[name] / "tokens.json").read_text())["one_line"]
    assert sorted(prompt for prompt, _ in seen) == sorted(tokens)
