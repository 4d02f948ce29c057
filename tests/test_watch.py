"""Watching a run changes nothing that is trained; held-out pairs are judged as an evaluation judges them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from helpers.processes import checked, free_port
from helpers.stages import TOY_PROMPTS, changed_keys, common, data_arguments, mean_token, read_log, weights
from unifiedreward_think.errors import InputError
from unifiedreward_think.evaluation.origin import read_config
from unifiedreward_think.evaluation.report import read_runs
from unifiedreward_think.evaluation.training_log import read_run
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.tasks import TASK_NAMES
from unifiedreward_think.training import grpo, sft
from unifiedreward_think.training.arguments import TrainingExtras
from unifiedreward_think.training.monitor import held_out as watch

STAGES = pytest.mark.parametrize("stage", [sft, grpo], ids=["sft", "grpo"])
TOKENS = 8


def config(stage, model, toy_data, output, **changes):
    """A config of a stage as small as it goes; gradient checkpointing is on."""
    cold = {"train_files": [str(toy_data / "cold_start.jsonl")], "max_length": None, "activation_checkpointing": True}
    hard = {"train_files": [str(toy_data / "train.jsonl")], "num_generations": 2, "beta": 0.04}
    hard |= {"max_completion_length": TOKENS, "activation_checkpointing": True}
    hard |= {"reward_funcs": ["format_reward", "accuracy_reward", f"{__name__}.reward"]}
    shared = {"prompts": str(TOY_PROMPTS), "frames": 8, "frame_cache": str(toy_data / "frames"), "limit": 4}
    shared |= {"model_name_or_path": str(model), "output_dir": str(output), "dtype": "float32"}
    return {**common(max_steps=3), **shared, **(cold if stage is sft else hard), **changes}


def judging(toy_data, **more):
    """Options that judge the held-out pairs after each step."""
    files = [str(toy_data / "heldout.jsonl")]
    steps = {"eval_strategy": "steps", "eval_steps": 1, "eval_max_new_tokens": TOKENS}
    return {"eval_files": files, **steps, "per_device_eval_batch_size": 8, **more}


def reward(**columns):
    """Differs between completions of a random model."""
    return mean_token(**columns)


@pytest.fixture
def train(models, toy_data, tmp_path, monkeypatch):
    """Run a stage's command; keyword arguments change the config."""

    def run(stage, name, **changes):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config(stage, models["qwen2_5_vl"], toy_data, tmp_path / name, **changes)))
        monkeypatch.setattr(sys, "argv", ["stage", "--config", str(path)])
        stage.main()
        return tmp_path / name

    return run


def completions(folder):
    """What an evaluation folder says of each record and order."""
    judgments, _ = read_runs([("run", folder)])
    return {(row.record_id, row.order): row.completion for row in judgments["run"]}


def judged_afresh(model, toy_data, tmp_path):
    """What an evaluation of a saved model says."""
    from unifiedreward_think.backends.transformers import TransformersBackend

    data = data_arguments(toy_data, "train")
    extras = TrainingExtras(
        **{k: v for k, v in judging(toy_data).items() if k in ("eval_files", "eval_max_new_tokens")}
    )
    args = SimpleNamespace(eval_strategy="steps", fsdp=None, metric_for_best_model=None)
    held_out = watch.load_held_out(data, extras, args)
    backend = TransformersBackend(str(model), batch_size=8, device="cpu")
    rows = judge(held_out.records, backend, held_out.config, tmp_path / "afresh.jsonl")
    return {(row.record_id, row.order): row.completion for row in rows}


@STAGES
def test_judging_held_out_pairs_changes_nothing_and_keeps_the_best(stage, train, models, toy_data, tmp_path):
    plain = train(stage, "plain")
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    judged = train(stage, "judged", **judging(toy_data), **best, **saving)
    last = judged / "checkpoint-3"
    assert changed_keys(models["qwen2_5_vl"], plain) and not changed_keys(plain, last)
    assert read_log(plain) == read_log(judged)

    # No answer of a random model can be read: all steps are equally good, and the first of them is the best.
    assert {path.name for path in judged.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3"}
    assert changed_keys(judged, last) and not changed_keys(judged, judged / "checkpoint-1")
    about = json.loads((judged / "run.json").read_text())
    kept = str(judged / "checkpoint-1")
    assert about["best"] == {"metric": "accuracy", "value": 0.0, "checkpoint": kept, "loaded": True}
    card = (judged / "README.md").read_text()
    assert "| 3 | 0.000 |" in card and "those of the best step" in card
    assert json.loads((plain / "run.json").read_text())["best"] is None

    folders = sorted((judged / "held_out").iterdir())
    assert [folder.name for folder in folders] == ["step_000001", "step_000002", "step_000003"]
    found = completions(folders[-1])
    assert len(found) == 8 and found == judged_afresh(last, toy_data, tmp_path)
    assert completions(folders[0]) == judged_afresh(judged, toy_data, tmp_path / "first")
    logged = [row for row in read_run(judged).history if "eval_accuracy" in row]
    results = json.loads((folders[-1] / "results.json").read_text())
    assert [row["step"] for row in logged] == [1, 2, 3]
    for name in ("parse_rate", "readable_rate", "truncation_rate"):
        assert logged[-1][f"eval_{name}"] == results["overall"][name]["value"]
    assert logged[-1]["eval_accuracy_high"] == results["overall"]["accuracy"]["high"] > 0.3
    assert logged[-1]["eval_agreement"] == results["both_orders"]["overall"]["agreement"]["value"]
    files = [each["file"] for each in read_config(folders[-1])["data"]]
    assert files == about["arguments"]["eval_files"] == read_config(folders[-1])["arguments"]["input"]
    assert (judged / "health.jsonl").read_text() == "" == (plain / "health.jsonl").read_text()


def test_the_adapter_that_is_merged_is_the_one_of_the_best_step(train, models, toy_data):
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "up_proj"]}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    judged = train(sft, "judged", **judging(toy_data), **best, **lora, save_strategy="steps", save_steps=1)
    first, last = (judged / f"checkpoint-{step}" / "adapter_model.safetensors" for step in (1, 3))
    kept = (judged / "adapter" / "adapter_model.safetensors").read_bytes()
    assert kept == first.read_bytes() != last.read_bytes()
    assert changed_keys(models["qwen2_5_vl"], judged)


def test_the_cost_of_a_run_and_the_rewards_of_each_task_are_logged(train):
    rows = [row for row in read_run(train(grpo, "run", max_steps=4)).history if "loss" in row]
    assert "tokens_per_second" not in rows[0] and all(row["tokens_per_second"] > 0 for row in rows[1:])
    assert all(row["memory_gib"] > 0.05 and 0 < row["memory_share"] < 1 for row in rows)
    for row in rows:
        for part, whole in (("reward", "reward"), ("rewards/reward", "rewards/reward/mean")):
            values = [row[f"{part}/{task}"] for task in TASK_NAMES if f"{part}/{task}" in row]
            assert len(values) == 2 and sum(values) / 2 == pytest.approx(row[whole])  # a step has pairs of two tasks


@pytest.mark.parametrize(
    ("extras", "args", "message"),
    [
        ({}, {"eval_strategy": "steps"}, "eval_strategy: needs eval_files"),
        ({"eval_files": ["a"]}, {}, "eval_files: would never be judged; set eval_strategy"),
        ({"eval_files": ["a", "trained"]}, {"eval_strategy": "steps"}, "eval_files: some are trained on"),
        ({"eval_files": ["a"]}, {"eval_strategy": "steps", "fsdp": "full_shard"}, "FSDP is not covered"),
        ({"eval_files": ["a"]}, {"eval_strategy": "steps", "metric_for_best_model": "loss"}, "'loss' is not measured"),
        (
            {"eval_files": ["a"], "eval_orders": "one"},
            {"eval_strategy": "steps", "metric_for_best_model": "eval_agreement"},
            "agreement needs eval_orders: both",
        ),
    ],
)
def test_options_of_an_evaluation_that_do_not_fit_are_refused(extras, args, message):
    given = {"eval_strategy": "no", "fsdp": None, "metric_for_best_model": None, **args}
    data = SimpleNamespace(train_files=["trained"])
    with pytest.raises(InputError) as error:
        watch.load_held_out(data, TrainingExtras(**extras), SimpleNamespace(**given))
    assert message in str(error.value)


def test_held_out_pairs_without_a_label_are_refused(toy_data, tmp_path):
    rows = [json.loads(line) for line in (toy_data / "heldout.jsonl").read_text().splitlines()]
    tied = tmp_path / "tied.jsonl"
    tied.write_text("".join(json.dumps({**row, "preferred": "tie"}) + "\n" for row in rows))
    data = data_arguments(toy_data, "train")
    data.media_root = str(toy_data)
    args = SimpleNamespace(eval_strategy="steps", fsdp=None, metric_for_best_model=None)
    with pytest.raises(InputError, match="no record has a winner"):
        watch.load_held_out(data, TrainingExtras(eval_files=[str(tied)]), args)


@pytest.mark.parametrize(
    ("extras", "message"),
    [({"health_bands": ["kl"]}, "health_bands: 'kl' is no limit"), ({"health_window": 0}, "health_window: 0 rows")],
)
def test_bands_and_windows_that_cannot_be_read_are_refused_before_a_model_is_loaded(extras, message):
    args = SimpleNamespace(eval_strategy="no", fsdp=None, metric_for_best_model=None)
    with pytest.raises(InputError, match=message):
        watch.load_held_out(SimpleNamespace(train_files=[]), TrainingExtras(**extras), args)


def test_a_warning_is_printed_once_and_kept_and_not_repeated_on_resume(tmp_path, capsys):
    def trainer(history):
        watched = watch.Watched()
        watched.args = SimpleNamespace(output_dir=str(tmp_path), eval_strategy="no")
        watched.state = SimpleNamespace(log_history=list(history))
        watched.is_world_process_zero = lambda: True
        watched.add_callback = lambda _: None
        watched.watch(watched.args, TrainingExtras(health_window=2, health_bands=["kl<=0.1"]), None)
        return watched

    def log(watched, step, kl):
        watched.state.log_history.append({"step": step, "loss": 0.0, "kl": kl})
        watched._look()

    watched = trainer([])
    for step, kl in enumerate([0.05, 0.05, 0.3, 0.3, 0.3], start=1):
        log(watched, step, kl)
    said = capsys.readouterr().err
    assert said.count("health, step 3: kl is 0.175, should be <= 0.1. Likely: the policy is far") == 1
    assert said.count("health") == 2  # the other one names the page
    resumed = trainer(watched.state.log_history)
    log(resumed, 6, 0.3)
    assert capsys.readouterr().err == ""
    log(resumed, 7, 0.0)
    log(resumed, 8, 0.0)
    kept = [json.loads(line) for line in Path(tmp_path, "health.jsonl").read_text().splitlines()]
    assert [(row["metric"], row["first"], row["until"]) for row in kept] == [("kl", 3, 8)]


@pytest.mark.slow
def test_two_ranks_with_zero3_judge_every_pair_with_whole_weights(models, toy_data, tmp_path):
    source, output = models["qwen2_5_vl"], tmp_path / "two"
    own = config(sft, source, toy_data, output, **judging(toy_data, eval_steps=2, eval_on_start=True), max_steps=2)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({**own, "per_device_train_batch_size": 2}))
    command = ["bash", "scripts/0.cold_start.sh", str(path), "--deepspeed", "configs/deepspeed/zero3_cpu.json"]
    checked(command, NPROC="2", MASTER_PORT=free_port())
    assert {folder.name for folder in (output / "held_out").iterdir()} == {"step_000000", "step_000002"}
    (tmp_path / "last").mkdir()
    for step, model, scratch in (("step_000000", source, tmp_path), ("step_000002", output, tmp_path / "last")):
        assert completions(output / "held_out" / step) == judged_afresh(model, toy_data, scratch)
    assert changed_keys(source, output) and len(weights(output)) > 20
    assert [row["step"] for row in read_run(output).history if "eval_accuracy" in row] == [0, 2]
