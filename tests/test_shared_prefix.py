"""The shared-prefix trainer takes the steps that TRL's own passes take, whatever the options; the rest is refused."""

import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import GenerationConfig

from helpers import two_ranks
from helpers.processes import checked
from helpers.stages import data_arguments, mean_token, read_log, train_grpo, weights
from unifiedreward_think.engine import attention, packing, prefill
from unifiedreward_think.engine.packing_plan import plan_packing
from unifiedreward_think.errors import InputError
from unifiedreward_think.models import loading
from unifiedreward_think.models.families import FAMILIES
from unifiedreward_think.training import grpo

SHARED = [name for name, family in FAMILIES.items() if not family.not_shared]
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "up_proj", "down_proj"]}
# Means of means over micro-batches, which group other rows than TRL's where the gradient does not change by it.
MEANS = ("kl", "entropy")
TRAINED = ("loss", "grad_norm", "kl", "entropy")


def both(model, toy_data, folder, *, max_stream_tokens=None, **options):
    """Train on TRL's passes and on shared prefixes; return the two logs."""
    chosen = {"max_completion_length": 24, "max_steps": 3, **options}
    stock = train_grpo(model, toy_data, folder / "stock", shared_prefix=False, **chosen)
    return stock, train_grpo(model, toy_data, folder / "ours", max_stream_tokens=max_stream_tokens, **chosen)


def close(value, expected):
    return value == pytest.approx(expected, rel=1e-5, abs=2e-6)


def check_equal(stock, ours, *, leave_out=()):
    assert len(stock) == len(ours)
    for before, after in zip(stock, ours, strict=True):
        for key in before.keys() - set(leave_out):
            same = after[key] is None if before[key] is None else close(after[key], before[key])
            assert same, (before["step"], key, before[key], after[key])


def check_learned(log):
    assert any(row["reward_std"] > 0 and row["grad_norm"] > 0.01 for row in log)


@pytest.mark.parametrize("family", SHARED)
def test_every_covered_family_takes_the_steps_of_trl(family, models, toy_data, tmp_path):
    stock, ours = both(models[family], toy_data, tmp_path)
    check_equal(stock, ours)
    check_learned(ours)
    assert ours[-1]["kl"] > 0
    assert any(row["completions/min_length"] < row["completions/max_length"] for row in ours)


STEPS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"beta": 0.0, "loss_type": "grpo"},
        {"loss_type": "grpo", "num_iterations": 2},
        {"beta": 0.0, "num_iterations": 2, "importance_sampling_level": "sequence", "weight_decay": 0.1},
        {"loss_type": "grpo", "mask_truncated_completions": True},
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "freeze": False},
        {"freeze": False, "beta": 0.0, "num_iterations": 2},
        {"max_stream_tokens": 1},
        {"max_stream_tokens": 200, "activation_checkpointing": True},
        {"lora": LORA},
        {"lora": LORA, "activation_checkpointing": True, "num_iterations": 2},
        {"lora": {**LORA, "lora_target_modules": ["qkv", "q_proj"]}, "freeze": False},
        {"per_device_train_batch_size": 8, "num_generations": 4},
        {**STEPS, "steps_per_generation": 4, "loss_type": "bnpo"},  # two optimizer steps a rollout: TRL's shuffle
        {"beta": 0.0, "top_entropy_quantile": 0.5},
        {"beta": 0.0, "entropy_coef": 0.1},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},  # groups split over micro-batches
        {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
    ],
    ids=lambda options: (
        ",".join(f"{key}={value}" for key, value in options.items() if key != "lora") + "lora" * ("lora" in options)
    ),
)
def test_an_option_changes_nothing_between_trl_and_ours(options, models, toy_data, tmp_path):
    stock, ours = both(models["qwen2_5_vl"], toy_data, tmp_path, **options)
    check_equal(stock, ours)
    check_learned(ours)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_groups_stay_whole_in_the_micro_batches_of_one_step(loss_type, models, toy_data, tmp_path):
    stock, ours = both(models["qwen2_5_vl"], toy_data, tmp_path, loss_type=loss_type, **STEPS)
    check_equal(stock, ours, leave_out=MEANS)
    check_learned(ours)


def test_prompts_of_equal_text_keep_their_own_pictures(models, toy_data, tmp_path):
    rows, _ = grpo.load_rows(data_arguments(toy_data, "train", limit=1))
    swapped = {**rows[0], "images": rows[0]["images"][::-1]}
    stock, ours = both(models["qwen2_5_vl"], toy_data, tmp_path, rows=[rows[0], swapped])
    check_equal(stock, ours)
    twice = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path / "twice", rows=rows * 2, max_completion_length=24)
    assert [row["loss"] for row in twice] != [row["loss"] for row in ours[:2]]  # the pictures matter


def first_step_alone(completion_ids, trainer_state, **_):
    return mean_token(completion_ids) if trainer_state.global_step == 0 else [0.5] * len(completion_ids)


@pytest.mark.parametrize("reward", [two_ranks.pictures_alone, first_step_alone])
def test_rows_without_advantage_cost_no_pass_and_change_nothing(reward, models, toy_data, tmp_path, work):
    options = {"beta": 0.0, "weight_decay": 0.1, "num_iterations": 2, "max_steps": 6, "rewards": [reward]}
    stock, ours = both(models["qwen2_5_vl"], toy_data, tmp_path, **options)
    check_equal(stock, ours, leave_out=["entropy"])
    assert max(row["policy_tokens_skipped"] for row in ours) > 0.4
    before, after = weights(tmp_path / "stock"), weights(tmp_path / "ours")
    different = [(before[key] - after[key]).abs().gt(1e-4).float().mean() for key in before]
    assert max(different) < 0.01
    idle = [tokens for tokens in work["ours"].policy if tokens == 2]
    assert idle if reward is first_step_alone else not idle


def same_for_all(completion_ids, **_):
    return [0.3] * len(completion_ids)  # the float32 mean of eight of them is not 0.3


def test_equal_rewards_are_no_advantage_whatever_their_mean_rounds_to(models, toy_data, tmp_path):
    options = {"per_device_train_batch_size": 8, "num_generations": 8, "max_steps": 1, "beta": 0.0}
    (row,) = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, rewards=[same_for_all, mean_token], **options)
    assert row["grad_norm"] > 0
    (row,) = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path / "flat", rewards=[same_for_all], **options)
    assert row["policy_tokens_skipped"] == 1 and row["grad_norm"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_bfloat16_prompts_are_read_as_rows_are_written(dtype, models, toy_data, tmp_path, monkeypatch):
    reading, writing = [], []

    def noted(calls, function):
        return lambda *args: (calls.append(torch.is_autocast_enabled("cpu")), function(*args))[1]

    monkeypatch.setattr(prefill, "pack", noted(reading, prefill.pack))
    monkeypatch.setattr(attention, "attend_cached", noted(writing, attention.attend_cached))
    log = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, bf16=True, lora={"dtype": dtype})
    assert log[-1]["grad_norm"] > 0
    assert all(reading) and all(writing) and reading and writing


def test_a_second_trainer_of_one_model_changes_nothing(models):
    network = loading.load_model(models["qwen2_5_vl"], dtype="float32")
    packing.enable(network)
    packing.enable(network)
    assert len(network.base_model._forward_hooks) == 1


def sampled_without_chance(monkeypatch):
    """Let completions depend on the prompt alone; an import that another test has done changes nothing."""
    monkeypatch.setattr(torch, "multinomial", torch.multinomial)  # the import changes it: put it back afterwards
    from helpers import second_choice

    torch.multinomial = second_choice.pick


def test_groups_without_advantage_give_their_place_to_fresh_prompts(models, toy_data, tmp_path, monkeypatch):
    sampled_without_chance(monkeypatch)
    rows, _ = grpo.load_rows(data_arguments(toy_data, "train"))
    rollouts = {}

    def recorded(completion_ids, id, task, trainer_state, **_):
        found = two_ranks.pictures_alone(completion_ids, task)
        groups = [(name, found[2 * i] == found[2 * i + 1]) for i, name in enumerate(id[::2])]
        rollouts.setdefault(trainer_state.global_step, []).append(groups)
        return found

    options = {"max_steps": 3, "max_completion_length": 16, "shuffle_dataset": False}
    ours = train_grpo(
        models["qwen2_5_vl"], toy_data, tmp_path / "ours", rows=rows, rewards=[recorded], dynamic_sampling=9, **options
    )
    named = {row["id"]: row for row in rows}
    trained = []
    for first, *others in rollouts.values():
        batch = list(first)
        for fresh in others:
            dead = [place for place, (_, flat) in enumerate(batch) if flat]
            for place, group in zip(dead, fresh, strict=True):
                batch[place] = group
        assert not any(flat for _, flat in batch)
        trained += [named[name] for name, _ in batch]
    stock = train_grpo(
        models["qwen2_5_vl"], toy_data, tmp_path / "stock", rows=trained, shared_prefix=False,
        rewards=[two_ranks.pictures_alone], **options,
    )  # fmt: skip
    check_equal([{key: row[key] for key in TRAINED} for row in stock], ours)
    check_learned(stock)
    assert [row["dynamic_sampling/rollouts"] for row in ours] == [len(calls) - 1 for calls in rollouts.values()]
    assert sum(row["dynamic_sampling/groups_replaced"] for row in ours) >= 2


def test_dynamic_sampling_stops_at_its_bound_and_says_what_is_left(models, toy_data, tmp_path):
    def flat(completion_ids, **_):
        return [0.5] * len(completion_ids)

    options = {"rewards": [flat], "dynamic_sampling": 2, "beta": 0.0, "max_steps": 1}
    (row,) = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, **options)
    found = {key.split("/")[1]: value for key, value in row.items() if "dynamic" in key}
    assert found == {"rollouts": 2, "groups_replaced": 0, "groups_left_dead": 2}


def test_dynamic_sampling_is_refused_where_a_group_depends_on_others(models, toy_data, tmp_path):
    with pytest.raises(InputError, match=r"dynamic_sampling: .* set scale_rewards: group"):
        train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, dynamic_sampling=1, scale_rewards="batch")


class Watched:
    """What went through the model and the processor in one run."""

    def __init__(self):
        self.policy, self.counts = [], Counter()


@pytest.fixture
def work(monkeypatch):
    """Work of the runs to come, by the name of their output folder's kind."""
    runs = {}
    load_model, load_processor = loading.load_model, loading.load_processor

    def watch_model(*args, **kwargs):
        name = "ours" if "stock" in runs else "stock"
        seen = runs[name] = Watched()
        model = load_model(*args, **kwargs)

        def tokens(_, args, kwargs):
            rows, length = kwargs["inputs_embeds"].shape[:2]
            if torch.is_grad_enabled():
                seen.policy.append(rows * length)
            elif length > 1:
                seen.counts["prefill"] += rows * length

        def patches(_, args, kwargs):
            seen.counts["patches"] += len(args[0])

        model.model.language_model.register_forward_pre_hook(tokens, with_kwargs=True)
        model.model.visual.register_forward_pre_hook(patches, with_kwargs=True)
        return model

    def watch_processor(*args, **kwargs):
        processor = load_processor(*args, **kwargs)

        class Counting(type(processor.image_processor)):
            def __call__(self, images, *args, **kwargs):
                flat = [one for i in images for one in (i if isinstance(i, list) else [i])]
                list(runs.values())[-1].counts["pictures"] += len(flat)
                return super().__call__(images, *args, **kwargs)

        processor.image_processor.__class__ = Counting
        return processor

    monkeypatch.setattr(loading, "load_model", watch_model)
    monkeypatch.setattr(loading, "load_processor", watch_processor)
    return runs


def test_a_group_is_processed_encoded_prefilled_and_forwarded_once(models, toy_data, tmp_path, work):
    copies, length = 8, 4
    options = {"per_device_train_batch_size": 8, "num_generations": copies, "max_completion_length": length}
    rows, _ = grpo.load_rows(data_arguments(toy_data, "train", limit=1))  # nothing more to read ahead
    options |= {"beta": 0.0, "generation_kwargs": {"min_new_tokens": length}, "max_steps": 1, "rows": rows}
    both(models["qwen2_5_vl"], toy_data, tmp_path, **options)
    stock, ours = work["stock"], work["ours"]
    prompt = stock.counts["prefill"] // copies
    assert stock.counts["pictures"] == 2 * copies * ours.counts["pictures"] > 0
    assert stock.counts["patches"] == 2 * copies * ours.counts["patches"] > 0  # generation and policy
    assert ours.counts["prefill"] == prompt
    assert stock.policy == [copies * (prompt + length)]
    assert ours.policy == [prompt - 1 + copies * length]


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("qwen3_5", {"shared_prefix": True}, "model_type 'qwen3_5' is not covered"),
        ("qwen2_5_vl", {"lora": {**LORA, "lora_dropout": 0.05}}, "set lora_dropout: 0.0"),
        ("qwen2_5_vl", {"shared_prefix": False, "max_stream_tokens": 9}, "max_stream_tokens: has no effect"),
        ("qwen2_5_vl", {"shared_prefix": False, "dynamic_sampling": 1}, "dynamic_sampling: has no effect"),
    ],
)
def test_what_is_not_covered_is_refused_by_the_name_of_the_key(family, options, reason, models, toy_data, tmp_path):
    with pytest.raises(InputError, match=reason) as caught:
        train_grpo(models[family], toy_data, tmp_path, **options)
    assert "shared_prefix: false" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"per_device_train_batch_size": 6}, "groups stay on one device"),
        ({"is_fsdp_enabled": True}, "FSDP"),
        ({"is_deepspeed_enabled": True, "ds3_gather_for_generation": False}, "ds3_gather_for_generation"),
        ({"rollout_func": print}, "rollout functions"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams"),
        ({"generation_config": GenerationConfig(cache_implementation="static")}, "cache_implementation"),
        ({"generation_config": GenerationConfig(use_cache=False)}, "use_cache: false"),
        ({"generation_config": None, "use_vllm": True}, None),
    ],
)
def test_what_would_split_groups_or_leave_ranks_waiting_is_named(changed, reason):
    options = {"per_device_train_batch_size": 4, "steps_per_generation": 1, "ds3_gather_for_generation": True}
    options |= {"num_generations": 4, "is_fsdp_enabled": False, "is_deepspeed_enabled": False, "rollout_func": None}
    options |= {"use_vllm": False, "generation_config": GenerationConfig(top_k=5, min_new_tokens=3)}
    options |= {"tools": [], "environment_factories": None, **changed}
    trainer = SimpleNamespace(**options, args=SimpleNamespace(**options))
    from unifiedreward_think.training.trainers.shared_prefix_grpo import SharedPrefixGRPOTrainer

    found = SharedPrefixGRPOTrainer._why_not(trainer)
    assert found is None if reason is None else reason in found


def test_a_row_without_pictures_is_refused(models, toy_data, tmp_path):
    rows, _ = grpo.load_rows(data_arguments(toy_data, "train", limit=1))
    bare = {**rows[0], "images": [], "prompt": [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}]}
    with pytest.raises(InputError, match="needs images"):
        train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, rows=[bare, bare])


lengths = st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), max_size=4)), min_size=1, max_size=3)


@given(lengths, st.integers(0, 2**31))
def test_a_packed_sequence_attends_as_a_mask_of_its_layout_would(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    total = sum(prefix + sum(segments) for prefix, segments in groups)
    query, key, value = (torch.randn(1, heads, total, 4, generator=generator) for heads in (4, 2, 2))
    mask, start, predicting = torch.zeros(total, total, dtype=torch.bool), 0, []
    for prefix, segments in groups:
        shared = slice(start, start + prefix)
        mask[shared, shared] = True
        start += prefix
        for length in segments:
            own = slice(start, start + length)
            mask[own, own] = mask[own, shared] = True
            predicting += range(start, start + length)
            start += length
        if not segments:
            predicting.append(start - 1)
    mask &= torch.ones_like(mask).tril()
    dense = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    layout = attention.PackedLayout(groups)
    output, _ = attention.attend(None, query, key, value, None, prefix_layout=layout)
    assert torch.allclose(output.transpose(1, 2), dense, atol=1e-5)
    assert layout.predicting_positions("cpu").tolist() == predicting


def test_the_bias_that_gpus_take_is_the_mask_of_the_cpu():
    layout, device = attention.PackedLayout([]), torch.device("cpu")
    for queries, keys in ((1, 5), (3, 7), (4, 4)):
        bias = layout.mask(queries, keys, torch.device("cuda"))
        assert bias._materialize(device).equal(layout.mask(queries, keys, device))


rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=12)


@given(rows, st.lists(st.integers(2, 20), min_size=4, max_size=4), st.integers(1, 60) | st.none(), st.integers(1, 12))
def test_a_plan_holds_every_row_once_and_keeps_to_its_limits(rows, prompts, most_tokens, most_rows):
    owners, sizes = [owner for owner, _ in rows], [size for _, size in rows]
    plan = plan_packing(owners, sizes, prompts, most_tokens=most_tokens, most_rows=most_rows)
    planned = [(owner, row) for packed in plan for owner, own in packed.items() for row in own]
    assert sorted(planned) == sorted((owner, row) for row, (owner, size) in enumerate(rows) if size)
    for packed in plan:
        count = sum(len(own) for own in packed.values())
        tokens = sum(prompts[owner] + sum(sizes[row] for row in own) for owner, own in packed.items())
        assert count <= most_rows
        assert count == 1 or most_tokens is None or tokens <= most_tokens


# What the shared-prefix trainer overrides or imitates, as it was when the two were last compared line by line.
@pytest.fixture(scope="module")
def on_one(models, toy_data, tmp_path_factory):
    """What one process logs of the runs of two ranks, with TRL's own passes where these can do the same."""
    folder, logs = tmp_path_factory.mktemp("one"), {}
    with pytest.MonkeyPatch.context() as patch:
        sampled_without_chance(patch)
        for name in two_ranks.RUNS:
            alone = {} if name == "dynamic" else {"shared_prefix": False, "max_stream_tokens": None}
            logs[name] = two_ranks.train(name, models["qwen2_5_vl"], toy_data, folder, **alone)
    return logs


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [[], ["configs/deepspeed/zero3_cpu.json"]], ids=["ddp", "zero3"])
def test_two_ranks_take_the_steps_of_trl_on_one(deepspeed, on_one, models, toy_data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    checked([*command, "tests/helpers/two_ranks.py", models["qwen2_5_vl"], toy_data, tmp_path / "two", *deepspeed])
    for name, stock in on_one.items():
        ours = read_log(tmp_path / "two" / name)
        if name == "dynamic":  # both ranks roll out as often, whichever needs it: more completions, equal gradients
            stock = [{key: row[key] for key in row if key in TRAINED or "dynamic" in key} for row in stock]
            assert sum(row["dynamic_sampling/groups_replaced"] for row in ours) > 0
        else:
            check_learned(stock)
        check_equal(stock, ours, leave_out=["entropy"] if name == "dead" else [])
    stock = two_ranks.train_siblings(models["qwen2_5_vl"], toy_data, tmp_path / "one")
    for before, after in zip(stock, read_log(tmp_path / "two" / "sft"), strict=True):
        assert all(close(after[key], before[key]) for key in ("loss", "grad_norm", "num_tokens", "learning_rate"))
