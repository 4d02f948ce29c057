"""SFT on streams takes the steps of TRL's padded rows; answers of one prompt share it and see nothing of each other."""

import hashlib
import inspect
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stages import data_arguments, train_sft

from unifiedreward_think.data.rows import to_dataset
from unifiedreward_think.engine import streams as shared_prefix
from unifiedreward_think.errors import InputError
from unifiedreward_think.models.loading import load_model, load_processor
from unifiedreward_think.training import sft
from unifiedreward_think.training.trainers.sft import SFTTrainer
from unifiedreward_think.training.trainers.shared_prefix_sft import SiblingSampler, StreamCollator

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


def check_equal(stock, ours):
    assert len(stock) == len(ours) == OPTIONS["max_steps"]
    for before, after in zip(stock, ours, strict=True):
        assert after == pytest.approx(before, rel=1e-5, abs=1e-6)
    assert ours[0]["grad_norm"] > 0.01


@pytest.mark.parametrize("family", shared_prefix.FAMILIES)
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
    order = list(SiblingSampler([0] * 4 + [1] * 4, seed=42))  # 42 is the trainer's default
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
    batch = StreamCollator(processor)(list(to_dataset(siblings(rows)[:4])))
    ((fields, answers),) = batch["groups"]
    prompt = shared_prefix.read_prompt(network, fields)
    stream = shared_prefix.stream_inputs([(prompt, answers)], encoded=False)
    assert len(answers) == 4 and batch["labels"].numel() == sum(map(len, answers))
    assert stream["input_ids"].numel() == len(prompt.ids) - 1 + sum(map(len, answers))
    assert len(stream["image_grid_thw"]) == len(rows[0]["images"])


def test_equal_text_with_other_pictures_is_another_prompt(models, rows):
    swapped = {**rows[0], "images": rows[0]["images"][::-1]}
    batch = StreamCollator(load_processor(models["qwen2_5_vl"]))(list(to_dataset([rows[0], swapped])))
    assert len(batch["groups"]) == 2


def test_a_row_keeps_its_loss_whatever_else_is_in_the_stream(models, rows):
    network, processor = load_model(models["qwen2_5_vl"], dtype="float32"), load_processor(models["qwen2_5_vl"])
    shared_prefix.enable(network)
    groups = StreamCollator(processor)(list(to_dataset([*siblings(rows), rows[2], rows[3]])))["groups"]
    read = [(shared_prefix.encode_pictures(network, shared_prefix.read_prompt(network, f)), own) for f, own in groups]

    def hidden(chosen):
        with torch.no_grad():
            return network.model(**shared_prefix.stream_inputs(chosen)).last_hidden_state[0]

    together = hidden(read).split([len(answer) for _, own in read for answer in own])
    alone = [hidden([(prompt, [answer])]) for prompt, own in read for answer in own]
    assert len(alone) == 10
    for shared, single in zip(together, alone, strict=True):
        assert torch.allclose(shared, single, atol=1e-5)


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 9))
def test_every_row_comes_once_beside_its_siblings_in_an_order_of_its_epoch(prompts, epoch):
    sampler = SiblingSampler(prompts, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(sampler))) and order == list(sampler)
    changes = sum(prompts[a] != prompts[b] for a, b in itertools.pairwise(order))
    assert changes == max(0, len(set(prompts)) - 1)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_rows_are_grouped_by_the_lengths_they_will_have(family, models, rows):
    processor = load_processor(models[family])
    lengths = sft.row_lengths(rows, processor)
    collate = StreamCollator(processor)
    exact = [
        len(fields["input_ids"][0]) + len(own[0])
        for row in to_dataset(rows)
        for fields, own in collate([row])["groups"]
    ]
    ends = {full - told for full, told in zip(exact, lengths, strict=True)}
    assert len(ends) == 1 and len(set(lengths)) > 1  # the end of a turn is as long in every row


def test_length_groups_come_in_the_order_of_their_epoch(models, toy_data, tmp_path, monkeypatch):
    seen = []

    class Noting(SFTTrainer):
        def _get_train_sampler(self, train_dataset=None):
            sampler = super()._get_train_sampler(train_dataset)
            for epoch in (0, 1, 0):
                self.state.epoch = epoch
                seen.append(list(sampler))
            return sampler

    monkeypatch.setattr("unifiedreward_think.training.trainers.sft.SFTTrainer", Noting)
    options = {**OPTIONS, "max_steps": 1, "per_device_train_batch_size": 2}
    train_sft(models["qwen2_5_vl"], toy_data, tmp_path, train_sampling_strategy="group_by_length", **options)
    assert seen[0] == seen[2] and seen[0] != seen[1] and sorted(seen[0]) == [0, 1, 2, 3]


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


# What SFT on streams overrides or imitates, as it was when the two were last compared line by line.
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
