"""GRPO of scores from pair labels, and runs of pairs and scores: rows, their order, what is refused, and a toy run."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from helpers.processes import REPO
from helpers.stages import TOY_PROMPTS, data_arguments, mean_token, read_log, train_grpo
from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.data.formats.loading import load_records
from unifiedreward_think.data.side_by_side import in_twos, units_of
from unifiedreward_think.errors import InputError
from unifiedreward_think.points import parse_points
from unifiedreward_think.rewards import swap_agreement_reward
from unifiedreward_think.training import grpo, sft
from unifiedreward_think.training.arguments import SharedPrefixArguments
from unifiedreward_think.training.memory.architecture import load_architecture
from unifiedreward_think.training.memory.job import make_job
from unifiedreward_think.training.plan import report

UNITS = st.lists(st.sampled_from([1, 2]), min_size=1, max_size=40)


def points_of(toy_data, *, limit=4, split="train", **changes):
    data = data_arguments(toy_data, split, limit=limit)
    return dataclasses.replace(data, form="pointwise", prompts=str(TOY_PROMPTS / "pointwise"), **changes)


def numbered(sizes):
    """Units of rows numbered from 0 on."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


@given(UNITS, st.integers(1, 5))
def test_no_batch_of_an_even_number_of_prompts_cuts_a_unit(sizes, half):
    units = numbered(sizes)
    order = list(in_twos(units))
    assert sorted(order) == list(range(sum(sizes)))
    for unit in units:
        assert len({order.index(number) // (2 * half) for number in unit}) == 1
    assert list(in_twos(numbered([1] * len(sizes)))) == list(range(len(sizes)))


def test_a_pair_with_a_preference_is_two_rows_side_by_side_and_a_tie_teaches_too(toy_data, tmp_path):
    rows, counts = grpo.load_rows(points_of(toy_data))
    records = load_records([str(toy_data / "train.jsonl")]).rows[:4]
    assert [(row["id"], row["order"]) for row in rows] == [(record.id, order) for record in records for order in "ab"]
    for record, pair in zip(records, zip(rows[::2], rows[1::2], strict=True), strict=True):
        assert pair[record.preferred - 1]["solution"] == "better" and pair[2 - record.preferred]["solution"] == "worse"
        assert {row["form"] for row in pair} == {"pointwise"}
        assert (pair[0]["prompt"], pair[0]["images"]) != (pair[1]["prompt"], pair[1]["images"])
    assert counts["pairs"] == 4 and counts["rows"] == 8 and units_of(rows) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    labelled = [json.loads(line) for line in (toy_data / "train.jsonl").read_text().splitlines()[:3]]
    labelled[0]["preferred"], labelled[1]["preferred"] = "tie", None
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    data = points_of(toy_data, train_files=[str(tmp_path / "rows.jsonl")], media_root=str(toy_data))
    rows, counts = grpo.load_rows(data)
    assert [row["solution"] for row in rows[:2]] == ["equal", "equal"] and len(rows) == 4
    assert counts["ties left out"] == 0 and counts["unlabelled pairs left out"] == 1
    (tmp_path / "rows.jsonl").write_text(json.dumps(labelled[1]) + "\n")
    with pytest.raises(DataError, match=r"no record has `scores` with their `scale` \(or `preferred` of two"):
        grpo.load_rows(data)


def test_both_orders_of_a_pair_are_kept_together_where_they_are_compared(toy_data):
    rows, _ = grpo.load_rows(dataclasses.replace(data_arguments(toy_data, "train"), orders="both"))
    args = batches(per_device=4)
    assert grpo.kept_together(rows, [mean_token], args, SharedPrefixArguments()) is None
    units = grpo.kept_together(rows, [swap_agreement_reward], args, SharedPrefixArguments())
    assert units == [(0, 1), (2, 3), (4, 5), (6, 7)]


def batches(*, per_device, steps=1, ranks=1):
    whole = per_device * steps * ranks
    sizes = {"per_device_train_batch_size": per_device, "steps_per_generation": steps, "generation_batch_size": whole}
    return SimpleNamespace(num_generations=2, **sizes)


@pytest.mark.parametrize(
    ("sizes", "dynamic", "message"),
    [
        ({"per_device": 4}, 2, None),
        ({"per_device": 2, "steps": 2}, 0, None),
        ({"per_device": 2, "ranks": 2}, 0, None),
        ({"per_device": 6}, 0, r"generation_batch_size: 3 prompts .* must be even; change per_device_train_batch_size"),
        ({"per_device": 2}, 0, "generation_batch_size: 1 prompts"),
        ({"per_device": 2, "ranks": 2}, 2, "dynamic_sampling: 1 prompts of a generation batch on each process"),
    ],
)
def test_batches_that_would_cut_pairs_are_refused_by_name(sizes, dynamic, message, toy_data):
    rows, _ = grpo.load_rows(points_of(toy_data))
    pairs, _ = grpo.load_rows(data_arguments(toy_data, "train"))
    prefix = SharedPrefixArguments(dynamic_sampling=dynamic)
    assert grpo.kept_together(pairs, [], batches(**sizes), prefix) is None
    if message is None:
        assert len(grpo.kept_together(rows, [], batches(**sizes), prefix)) == 4
    else:
        with pytest.raises(InputError, match=message):
            grpo.kept_together(rows, [], batches(**sizes), prefix)


def test_the_plan_counts_one_candidate_and_says_when_pairs_would_be_cut():
    keys = yaml.safe_load((REPO / "configs" / "toy" / "grpo_points.yaml").read_text()) | {"max_pixels": 100_000}
    shape = load_architecture(str(REPO / "src" / "unifiedreward_think" / "toy" / "base"))
    whole, torn = (make_job({**keys, **more}, 1) for more in ({}, {"per_device_train_batch_size": 8}))
    assert whole.pictures == 4 and "would be refused" not in report(shape, whole)
    assert torn.cuts_pairs and "an odd number of prompts" in report(shape, torn)
    pairs = make_job({**keys, "form": "pairwise", "per_device_train_batch_size": 8}, 1)
    assert pairs.pictures == 8 and not pairs.cuts_pairs
    with pytest.raises(InputError, match="form 'score' is none of pairwise, pointwise"):
        make_job({**keys, "form": "score"}, 1)


def mixed(toy_data, share, *, split="train", limit=None, **changes):
    return dataclasses.replace(data_arguments(toy_data, split, limit=limit), point_share=share, **changes)


def test_a_share_of_the_pairs_is_asked_for_scores_whichever_rows_are_used(toy_data):
    records = load_records([str(toy_data / "train.jsonl")]).rows
    many = [dataclasses.replace(records[0], id=f"r{i}") for i in range(400)]
    chosen = {}
    for share in (0.0, 0.25, 0.5, 1.0):
        data = mixed(toy_data, share)
        chosen[share] = {record.id for record in many if data.form_of(record).name == "pointwise"}
    assert [len(chosen[share]) for share in (0.0, 1.0)] == [0, 400] and chosen[0.25] < chosen[0.5]
    assert 75 < len(chosen[0.25]) < 125 and 170 < len(chosen[0.5]) < 230
    other = mixed(toy_data, 0.5, order_seed=7)
    assert {record.id for record in many if other.form_of(record).name == "pointwise"} != chosen[0.5]
    with pytest.raises(InputError, match=r"point_share: 0\.5 of a run of scores alone"):
        points_of(toy_data, point_share=0.5)


def test_rows_of_pairs_and_scores_are_mixed_for_grpo(toy_data):
    data = mixed(toy_data, 0.5)
    rows, counts = grpo.load_rows(data)
    asked = {record.id: data.form_of(record).name for record in load_records([str(toy_data / "train.jsonl")]).rows}
    assert set(asked.values()) == {"pairwise", "pointwise"}
    assert all(row["form"] == asked[row["id"]] for row in rows)
    scored = sum(form == "pointwise" for form in asked.values())
    assert counts["pairs"] == len(asked) and counts["rows"] == len(asked) + scored
    ends = {(row["form"], row["prompt"][0]["content"][-1]["text"].splitlines()[-1]) for row in rows}
    assert ends == {("pairwise", "Think, then answer."), ("pointwise", "Think, then score.")}
    units = units_of(rows)
    assert sum(len(unit) == 2 for unit in units) == scored and len(units) == len(asked)


def test_traces_of_a_share_of_the_pairs_are_cut_into_scores_for_sft(toy_data, tmp_path):
    data = mixed(toy_data, 0.5, split="cold_start")
    rows, counts = sft.load_rows(data)
    pairs, _ = sft.load_rows(mixed(toy_data, 0.0, split="cold_start"))
    scores = [row for row in rows if parse_points(row["completion"][0]["content"][0]["text"], "Image").strict]
    others = [row for row in rows if row not in scores]
    assert scores and others and all(row in pairs for row in others)
    assert len(scores) == 2 * (len(pairs) - len(others)) == 2 * counts["traces of pairs cut into scores"]
    wrong = (toy_data / "cold_start.jsonl").read_text().replace("=12", "=13").replace("=16", "=17")
    (tmp_path / "wrong.jsonl").write_text(wrong)
    data = mixed(toy_data, 1.0, train_files=[str(tmp_path / "wrong.jsonl")], media_root=str(toy_data))
    with pytest.raises(DataError, match="cannot be cut"):
        sft.load_rows(data)


def test_the_order_of_rows_is_that_of_trl_where_each_stands_alone_and_keeps_pairs_whole(toy_data):
    import torch
    from trl.trainer.utils import RepeatSampler

    from unifiedreward_think.training.trainers.resume import EpochSampler
    from unifiedreward_think.training.trainers.side_by_side import SideBySideSampler

    def orders(units, **options):
        stock = RepeatSampler(range(sum(map(len, units))), mini_repeat_count=2, batch_size=4, repeat_count=3, **options)
        ours = EpochSampler(SideBySideSampler(stock, units), seed=5)
        return stock, ours

    stock, ours = orders(numbered([1] * 21), seed=5)
    assert list(ours) == list(stock) and len(ours) == len(stock) == len(list(ours))
    units = numbered([2, 1, 2, 2, 1, 1, 2, 2, 1, 2, 1])
    _, ours = orders(units, seed=5)
    epochs = []
    for epoch in range(3):
        ours.set_epoch(epoch)
        epochs.append(list(ours))
        batches = [epochs[-1][i : i + 8] for i in range(0, len(ours), 8)]
        assert all(batch == batches[3 * (i // 3)] for i, batch in enumerate(batches)) and len(batches) == 12
        assert all(set(unit) <= set(batch) or not set(unit) & set(batch) for batch in batches for unit in units)
    assert epochs[0] != epochs[1] and len({number for epoch in epochs for number in epoch}) == 17
    _, unshuffled = orders(units, shuffle=False)
    assert list(unshuffled)[:8:2] == [0, 1, 3, 4] and isinstance(ours._sampler.generator, torch.Generator)


@pytest.mark.slow
def test_the_toy_config_trains_scores_from_preferences(toy_data, tmp_path, monkeypatch):
    """The command of docs/scores.md, two steps long, on the model that cold_start_points.yaml begins with."""
    monkeypatch.chdir(Path(__file__).parents[1])
    words = ["--config", "configs/toy/grpo_points.yaml", "--model_name_or_path", "src/unifiedreward_think/toy/base"]
    words += ["--train_files", str(toy_data / "train.jsonl"), "--frame_cache", str(tmp_path / "frames")]
    words += ["--max_steps", "2", "--num_generations", "2", "--per_device_train_batch_size", "4", "--warmup_steps", "0"]
    words += ["--max_completion_length", "16", "--save_strategy", "no", "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["grpo", *words])
    grpo.main()
    steps = read_log(tmp_path / "run")
    assert len(steps) == 2 and all(row["scores_without_their_pair"] == 0 for row in steps)
    counts = json.loads((tmp_path / "run" / "run.json").read_text())["counts"]
    assert counts["rows"] == 2 * counts["pairs"]
    monkeypatch.setattr("sys.argv", ["grpo", *words, "--per_device_train_batch_size", "6"])
    with pytest.raises(InputError, match="generation_batch_size: 3 prompts"):
        grpo.main()


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_pairs_and_scores_are_trained_in_one_run(shared, models, toy_data, tmp_path):
    rows, _ = grpo.load_rows(mixed(toy_data, 0.5))
    together, calls = {}, []

    def watched(completion_ids, id, order, solution, **_):
        calls.append(list(zip(id, order, solution, strict=True)))
        return mean_token(completion_ids)

    options = {"rewards": [watched, grpo.load_reward("accuracy_reward")], "per_device_train_batch_size": 8}
    steps = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, rows=rows, shared_prefix=shared, **options)
    for name, order, solution in (row for call in calls for row in call):
        if solution in ("better", "worse"):
            together.setdefault(name, set()).add(order)
    assert together and all(orders == {"a", "b"} for orders in together.values())
    assert all(row.get("scores_without_their_pair", 0) == 0 for row in steps)


@pytest.mark.slow
def test_groups_of_a_pair_are_replaced_together_and_only_when_both_are_dead(models, toy_data, tmp_path):
    rows, _ = grpo.load_rows(points_of(toy_data, limit=None))
    calls = []

    def half_dead(completion_ids, id, order, trainer_state, **_):
        """Of each pair one group is lively, at most; of the last pair of a step's first rollout none."""
        names = list(dict.fromkeys(id))
        first = not calls or calls[-1][0] != trainer_state.global_step
        calls.append((trainer_state.global_step, names))
        dead = names[-1] if first else None
        spread = [name != dead and letter == "a" for name, letter in zip(id, order, strict=True)]
        return [i % 2 if lively else 0.5 for i, lively in enumerate(spread)]

    options = {"rewards": [half_dead], "dynamic_sampling": 3, "per_device_train_batch_size": 8, "max_steps": 2}
    steps = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, rows=rows, **options)
    for step, row in enumerate(steps):
        (_, before), (_, fresh) = [call for call in calls if call[0] == step]
        assert len(before) == 2 and len(fresh) == 1
        assert row["dynamic_sampling/groups_replaced"] == 2 and row["dynamic_sampling/groups_left_dead"] == 0
