"""What a real vLLM draws has the distribution of transformers: token by token, and in the winners that come out."""

import shutil
from collections import Counter

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import chi2_contingency

from helpers.vllm_cpu import JUDGE, NAME, NEW_TOKENS, asked, held_out, prompt_rows, vllm_serving
from unifiedreward_think.backends import with_images
from unifiedreward_think.backends.parts import image_part
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.models.loading import load_model, load_processor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
DRAWS, ITEMS = 2000, 40
SMALLER = 0.6  # logits
CHANCE = 1e-3  # of equal distributions to be told apart


@pytest.fixture(scope="module")
def hesitant(needs_vllm, tmp_path_factory):
    """The toy judge with smaller logits: sure of itself, it would win alike at any temperature."""
    folder = tmp_path_factory.mktemp("hesitant")
    shutil.copytree(JUDGE, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] *= SMALLER
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def server(hesitant, tmp_path_factory):
    with vllm_serving(hesitant, tmp_path_factory.mktemp("vllm") / "log.txt") as running:
        yield running


def drawn_tokens(server, row, seed):
    """Prompt and completion of a draw, as token numbers, and the log-probabilities that vLLM gives the latter."""
    body = {"model": NAME, "messages": with_images(row, image_part), "temperature": SMALLER, "seed": seed}
    body |= {"max_tokens": NEW_TOKENS, "logprobs": True, "return_token_ids": True}
    reply = httpx.post(f"{server.url}/chat/completions", json=body, timeout=600).raise_for_status().json()
    choice = reply["choices"][0]
    return reply["prompt_token_ids"], choice["token_ids"], [one["logprob"] for one in choice["logprobs"]["content"]]


def log_probabilities(network, processor, row, completion):
    """What transformers gives the tokens of a completion after the prompt, and the prompt's tokens."""
    chat = with_images(row, lambda image: {"type": "image", "image": image})
    inputs = processor.apply_chat_template(
        [chat], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    prompt = inputs["input_ids"][0].tolist()
    answer = torch.tensor([completion])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
    for key, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        inputs[key] = torch.cat([inputs[key], torch.full_like(answer, fill)], dim=1)
    with torch.no_grad():
        logits = network(**inputs).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, answer.T)[:, 0].tolist(), prompt


def test_log_probabilities_of_drawn_tokens_are_those_of_transformers(server, hesitant, toy_world):
    network, processor = load_model(str(hesitant), dtype="float32").eval(), load_processor(str(hesitant))
    count, unlikely = 0, 0
    for (record, _), row in prompt_rows(held_out(toy_world, 2), asked("one_line", toy_world)):
        prompt, tokens, given = drawn_tokens(server, row, seed=count)
        expected, own_prompt = log_probabilities(network, processor, row, tokens)
        assert prompt == own_prompt and given == pytest.approx(expected, abs=1e-3, rel=0), record.id
        count += len(tokens)
        unlikely += sum(value < -0.7 for value in given)
    assert count > 1000 and unlikely > 20  # draws, not the likeliest tokens only


def winners(backend, world, output, temperature, seed):
    """Winners of draws, in the places shown, None where none can be read."""
    sampling = Sampling(temperature=temperature, max_new_tokens=NEW_TOKENS, seed=seed)
    protocol = asked("one_line", world, sampling=sampling, orders="one", samples=DRAWS // ITEMS)
    rows = judge(held_out(world, ITEMS // 4), backend, protocol, output)
    assert len(rows) == DRAWS and not any(row.error for row in rows)
    return Counter(str(row.verdict.winner) for row in rows)


def same(first, second):
    """How likely so different counts are in draws from one distribution."""
    kinds = sorted(first | second)
    return chi2_contingency([[counts[kind] for kind in kinds] for counts in (first, second)]).pvalue


def test_winners_of_2000_draws_are_those_of_transformers_and_another_temperature_shows(
    server, hesitant, toy_world, tmp_path
):
    local = TransformersBackend(str(hesitant), dtype="float32", device="cpu", batch_size=8)
    served = ServerBackend(NAME, server=server.url, max_retries=0, stop=True, concurrency=64)
    reference = winners(local, toy_world, tmp_path / "local.jsonl", 0.7, seed=1)
    assert same(winners(served, toy_world, tmp_path / "served.jsonl", 0.7, seed=2), reference) > CHANCE
    assert same(winners(local, toy_world, tmp_path / "warmer.jsonl", 0.8, seed=3), reference) < CHANCE
