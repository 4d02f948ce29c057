"""Packed SFT takes the steps of TRL's padded rows; answers of one prompt share it and see nothing of each other."""

import hashlib
import inspect
import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.stages import data_arguments, train_sft
from unifiedreward_think.data.rows import to_dataset
from unifiedreward_think.engine import packing
from unifiedreward_think.errors import InputError
from unifiedreward_think.models.families import FAMILIES
from unifiedreward_think.models.loading import load_model, load_processor
from unifiedreward_think.training import sft
from unifiedreward_think.training.arguments import StreamArguments
from unifiedreward_think.training.trainers.sft import SFTTrainer
from unifiedreward_think.training.trainers.shared_prefix_sft import PackingCollator

SHARED = [name for name, family in FAMILIES.items() if not family.not_shared]
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "up_proj", "down_proj"]}
OPTIONS = {"max_steps": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def rows(toy_data):
    """Rows of the four tasks, with 2 images, 16 frames, 1 image and 8 frames."""
    return sft.load_rows(data_arguments(toy_data, "cold_start"))[0]


def answered(row, text):
    return {**row, "completion": [{"role": "assistant", "content": [{"type": "text", "text": text}]}]}


def siblings(rows):
    """Eight rows: two prompts with four answers each, of several lengths."""
    texts = ["<think>one</think>", "<think>a longer chain of thought, 9 + 8 = 17</think>", "no", "<answer>1</answer>"]
    return [answered(row, text) for row in rows[:2] for text in texts]


def sampler_of(rows):
    """The order in which `training.sft` has rows with the trainer's default seed."""
    return sft.row_sampler(rows, None, StreamArguments(shared_prefix=True), SimpleNamespace(seed=42, data_seed=None))


def check_equal(stock, ours):
    assert len(stock) == len(ours) == OPTIONS["max_steps"]
    for before, after in zip(stock, ours, strict=True):
        assert after == pytest.approx(before, rel=1e-5, abs=1e-6)
    assert ours[0]["grad_norm"] > 0.01


@pytest.mark.parametrize("family", SHARED)
def test_every_covered_family_takes_the_steps_of_trl(family, models, toy_data, tmp_path):
    stock, ours = (
        train_sft(models[family], toy_data, tmp_path / str(on), shared_prefix=on, **OPTIONS) for on in (False, True)
    )
    check_equal(stock, ours)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"freeze": False, "activation_checkpointing": True},
        {"lora": LORA, "activation_checkpointing": True, "loss_type": "dft"},
    ],
    ids=["accumulation", "tower", "lora"],
)
def test_answers_of_one_prompt_take_the_steps_of_trl(options, models, toy_data, rows, tmp_path):
    both = siblings(rows)
    order = list(sampler_of(both))
    stock = train_sft(
        models["qwen2_5_vl"], toy_data, tmp_path / "stock", rows=[both[row] for row in order * 2],
        train_sampling_strategy="sequential", **{**OPTIONS, **options, "max_steps": 2},
    )  # fmt: skip
    ours = train_sft(
        models["qwen2_5_vl"], toy_data, tmp_path / "ours", rows=both, shared_prefix=True,
        **{**OPTIONS, **options, "max_steps": 2},
    )  # fmt: skip
    for before, after in zip(stock, ours, strict=True):
        assert {**after, "epoch": 0} == pytest.approx({**before, "epoch": 0}, rel=1e-5, abs=1e-6)
        assert after["grad_norm"] > 0.005


def test_a_prompt_with_four_answers_is_processed_encoded_and_read_once(models, rows):
    network, processor = load_model(models["qwen2_5_vl"], dtype="float32"), load_processor(models["qwen2_5_vl"])
    batch = PackingCollator(processor)(list(to_dataset(siblings(rows)[:4])))
    ((fields, answers),) = batch["groups"]
    prompt = packing.make_prompt(network, fields)
    packed = packing.pack([(prompt, answers)], encoded=False)
    assert len(answers) == 4 and batch["labels"].numel() == sum(map(len, answers))
    assert batch["attention_mask"].sum() == sum(fields["input_ids"].shape[1] + len(answer) for answer in answers)
    assert packed["input_ids"].numel() == len(prompt.ids) - 1 + sum(map(len, answers))
    assert len(packed["image_grid_thw"]) == len(rows[0]["images"])


def test_equal_text_with_other_pictures_is_another_prompt(models, rows):
    swapped = {**rows[0], "images": rows[0]["images"][::-1]}
    batch = PackingCollator(load_processor(models["qwen2_5_vl"]))(list(to_dataset([rows[0], swapped])))
    assert len(batch["groups"]) == 2


def test_a_row_keeps_its_loss_whatever_else_is_in_the_packed_sequence(models, rows):
    network, processor = load_model(models["qwen2_5_vl"], dtype="float32"), load_processor(models["qwen2_5_vl"])
    packing.enable(network)
    groups = PackingCollator(processor)(list(to_dataset([*siblings(rows), rows[2], rows[3]])))["groups"]
    read = [(packing.encode_prompt(network, packing.make_prompt(network, f)), own) for f, own in groups]

    def hidden(chosen):
        with torch.no_grad():
            return network.model(**packing.pack(chosen)).last_hidden_state[0]

    together = hidden(read).split([len(answer) for _, own in read for answer in own])
    alone = [hidden([(prompt, [answer])]) for prompt, own in read for answer in own]
    assert len(alone) == 10
    for shared, single in zip(together, alone, strict=True):
        assert torch.allclose(shared, single, atol=1e-5)


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 9))
def test_every_row_comes_once_beside_its_siblings_in_an_order_of_its_epoch(prompts, epoch):
    sampler = sampler_of([{"prompt": prompt, "images": []} for prompt in prompts])
    if len(set(prompts)) == len(prompts):
        assert sampler is None  # any order will do: transformers'
        return
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(sampler))) and order == list(sampler)
    changes = sum(prompts[a] != prompts[b] for a, b in itertools.pairwise(order))
    assert changes == len(set(prompts)) - 1


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_rows_are_grouped_by_the_lengths_they_will_have(family, models, rows):
    processor = load_processor(models[family])
    lengths = sft.row_lengths(rows, processor)
    collate = PackingCollator(processor)
    exact = [
        len(fields["input_ids"][0]) + len(own[0])
        for row in to_dataset(rows)
        for fields, own in collate([row])["groups"]
    ]
    ends = {full - told for full, told in zip(exact, lengths, strict=True)}
    assert len(ends) == 1 and len(set(lengths)) > 1  # the end of a turn is as long in every row


def test_a_run_on_length_groups_is_resumed_in_the_order_of_its_epoch(models, toy_data, tmp_path, monkeypatch):
    seen = []

    class Noting(SFTTrainer):
        def training_step(self, model, inputs, *args):
            seen.append(inputs["input_ids"].shape)
            return super().training_step(model, inputs, *args)

    monkeypatch.setattr("unifiedreward_think.training.trainers.sft.SFTTrainer", Noting)
    options = {**OPTIONS, "max_steps": 7, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 5}
    options |= {"train_sampling_strategy": "group_by_length"}
    train_sft(models["qwen2_5_vl"], toy_data, tmp_path / "run", **options)
    shapes = seen.copy()
    assert len(set(shapes[:4])) == 4  # an epoch, whose rows differ in length
    seen.clear()
    train_sft(
        models["qwen2_5_vl"], toy_data, tmp_path / "run", checkpoint=str(tmp_path / "run/checkpoint-5"), **options
    )
    assert seen == shapes[5:]


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("qwen3_5", {}, "model_type 'qwen3_5' is not covered"),
        ("qwen2_5_vl", {"completion_only_loss": False}, "completion_only_loss: false is not covered"),
        ("qwen2_5_vl", {"train_sampling_strategy": "group_by_length"}, "nor needed without padding"),
    ],
)
def test_what_is_not_covered_is_refused_by_the_name_of_the_key(family, options, reason, models, toy_data, tmp_path):
    with pytest.raises(InputError, match=reason) as caught:
        train_sft(models[family], toy_data, tmp_path, shared_prefix=True, **options)
    assert "shared_prefix: false" in str(caught.value)


# What SFT on packed sequences overrides or imitates, as it was when the two were last compared line by line.
READ = {
    ("SFTTrainer", "compute_loss"): "ca448211ff65",
    ("DataCollatorForVisionLanguageModeling", "_collate_prompt_completion"): "df889399c8d0",
}


@pytest.mark.parametrize(("owner", "name"), READ)
def test_the_methods_of_trl_are_those_that_were_read(owner, name):
    from trl.trainer import sft_trainer

    method = getattr(getattr(sft_trainer, owner, None), name, None)
    assert method, f"TRL has no {owner}.{name} any more: see what shared_prefix_sft.py makes of it"
    found = hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:12]
    assert found == READ[owner, name], (
        f"TRL changed {owner}.{name}: read it beside shared_prefix_sft.py, let the equality tests above pass, "
        f"then write {found} here"
    )
