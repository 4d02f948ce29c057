"""Rollouts sample what `generate` samples with the same random numbers, whatever the options; the rest is refused."""

import pytest
import torch
from transformers import GenerationConfig

from helpers.stages import data_arguments
from unifiedreward_think.data.rows import to_dataset
from unifiedreward_think.engine import packing, rollouts
from unifiedreward_think.engine.prefill import left_pad
from unifiedreward_think.models.families import FAMILIES
from unifiedreward_think.models.loading import load_model, load_processor
from unifiedreward_think.training import grpo
from unifiedreward_think.training.trainers.prefetch import Reader

SHARED = [name for name, family in FAMILIES.items() if not family.not_shared]
COPIES = 3


@pytest.fixture(scope="module")
def prompted(models, toy_data):
    """A model of a family with two prompts of unequal length: as fields of the processor, and as our prompts."""

    def made(family):
        network = load_model(models[family], dtype="float32").eval()
        packing.enable(network)
        reader = Reader(load_processor(models[family]))
        rows = to_dataset(grpo.load_rows(data_arguments(toy_data, "train"))[0][:2])
        fields = [reader.read(row).fields for row in rows]
        return network, fields, [packing.encode_prompt(network, packing.make_prompt(network, one)) for one in fields]

    return made


def options(**changes):
    """What TRL gives `generate`; every twelfth token ends a completion, since a random model would not end one."""
    chosen = {"max_new_tokens": 12, "do_sample": True, "pad_token_id": 0, "eos_token_id": list(range(1, 500, 12))}
    chosen |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
    return GenerationConfig(**{**chosen, **changes}, disable_compile=True)


def generated(network, fields, config, seed):
    """Return what `generate` writes for left-padded rows of their own, and the state of the random numbers."""
    repeated = [one for one in fields for _ in range(COPIES)]
    fillers = {"input_ids": config.pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
    inputs = {
        key: left_pad([one[key][0] for one in repeated], fillers[key])
        if key in fillers
        else torch.cat([one[key] for one in repeated])
        for key in fields[0]
    }
    torch.manual_seed(seed)
    with torch.no_grad():
        output = network.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
    ends = set(config.eos_token_id)
    cut = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in output]
    return [row[:end] for row, end in zip(output, cut, strict=True)], torch.get_rng_state()


def rolled_out(network, prompts, config, seed):
    torch.manual_seed(seed)
    completions = rollouts.rollout(network, prompts, COPIES, config=config, ends=set(config.eos_token_id))
    return completions, torch.get_rng_state()


@pytest.mark.parametrize("family", SHARED)
def test_a_rollout_draws_the_tokens_and_random_numbers_that_generate_draws(family, prompted):
    network, fields, prompts = prompted(family)
    for seed in range(3):
        wanted, state = generated(network, fields, options(), seed)
        completions, ours = rolled_out(network, prompts, options(), seed)
        assert completions == wanted and state.equal(ours)
    assert len({len(row) for row in completions}) > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"do_sample": False, "temperature": None, "top_p": None, "top_k": None},
        {"temperature": 0.6},
        {"top_k": 7},
        {"top_p": 0.4},
        {"min_p": 0.2},
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 2, "temperature": 0.3},
        {"min_new_tokens": 6},
        {"suppress_tokens": list(range(40, 200))},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "min_new_tokens": 3},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_an_option_of_sampling_does_what_it_does_in_generate(changes, prompted):
    network, fields, prompts = prompted("qwen2_5_vl")
    plain, _ = rolled_out(network, prompts, options(), 1)
    wanted, state = generated(network, fields, options(**changes), 1)
    completions, ours = rolled_out(network, prompts, options(**changes), 1)
    assert completions == wanted and state.equal(ours)
    assert completions != plain


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"num_beams": 1, "use_cache": True}, None),
        ({"num_beams": 2}, "num_beams: 2"),
        ({"cache_implementation": "static"}, 'cache_implementation: "static"'),
        ({"use_cache": False}, "use_cache: false"),
        ({"stop_strings": ["</answer>"]}, "stop_strings:"),
        ({"typical_p": 0.5}, "typical_p: 0.5"),
        ({"bad_words_ids": [[1]]}, "bad_words_ids:"),
    ],
)
def test_an_option_that_rollouts_would_not_honour_is_named(changes, reason):
    found = rollouts.why_not(options(**changes))
    assert found is None if reason is None else reason in found
