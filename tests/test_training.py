"""The training stages as their commands run them, in this process, on the toy data with a random model."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import yaml
from stages import TOY_PROMPTS, changed_keys, common, read_log, train_grpo, weights

from unifiedreward_think.models import loading
from unifiedreward_think.training import grpo, rejection_sampling, run, sft

LENGTH = {sft: {"max_length": None}, grpo: {"num_generations": 2, "beta": 0.04, "max_completion_length": 8}}
SPLIT = {sft: "cold_start.jsonl", grpo: "train.jsonl"}
STAGES = pytest.mark.parametrize("stage", [sft, grpo], ids=["sft", "grpo"])


@pytest.fixture
def call(models, toy_data, tmp_path, monkeypatch):
    """Run a stage's command with a config of its own; keyword arguments change the config, strings are flags."""

    def run(stage, *flags, **changes):
        config = {
            "model_name_or_path": str(models["qwen2_5_vl"]),
            "output_dir": str(tmp_path / "run"),
            "train_files": [str(toy_data / SPLIT.get(stage, "train.jsonl"))],
            "prompt_dir": str(TOY_PROMPTS),
            "frames": 8,
            "frame_cache": str(toy_data / "frames"),
            "limit": 4,
            "dtype": "float32",
            **(common() if stage in LENGTH else {}),
            **LENGTH.get(stage, {}),
            **changes,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        monkeypatch.setattr(sys, "argv", ["stage", "--config", str(tmp_path / "config.yaml"), *flags])
        stage.main()
        return tmp_path / "run"

    return run


@pytest.fixture
def no_model(monkeypatch):
    """Fail the test where a model is loaded."""
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))


def interrupt(trainer, after, monkeypatch):
    """Kill runs of this trainer class in the training step that follows `after` others."""
    step = trainer.training_step
    calls = []

    def training_step(self, *args, **kwargs):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", training_step)


@STAGES
def test_an_interrupted_run_goes_on_and_a_finished_one_is_not_repeated(stage, call, tmp_path, monkeypatch, capsys):
    import trl

    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = call(stage, **saving).rename(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(trl.SFTTrainer if stage is sft else trl.GRPOTrainer, 3, patch)
        with pytest.raises(KeyboardInterrupt):
            call(stage, **saving)
    assert not json.loads((tmp_path / "run" / "run.json").read_text())["finished"]
    assert (tmp_path / "run" / "checkpoint-2").is_dir() and not (tmp_path / "run" / "log_history.json").exists()
    output = call(stage, **saving)
    assert not changed_keys(whole, output)
    assert [row["loss"] for row in read_log(output)] == [row["loss"] for row in read_log(whole)]

    capsys.readouterr()
    before = (output / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(SystemExit) as stop:
        call(stage, **saving)
    assert stop.value.code == 0 and "is finished already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"finished already, with other arguments \(learning_rate: 0.001 -> 0.002\)"):
        call(stage, **saving, learning_rate=2e-3)
    assert (output / "model.safetensors").stat().st_mtime_ns == before


@STAGES
def test_resume_never_trains_afresh_only_where_it_may_delete(stage, call, tmp_path, no_model):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")
    for flags in ([], ["--resume", "never"], ["--resume", "never", "--overwrite", "true"]):
        with pytest.raises(SystemExit, match="is not empty and holds no run of ours"):
            call(stage, *flags)
    (folder / "run.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"is not empty.*add --overwrite true"):
        call(stage, "--resume", "never")
    assert (folder / "notes.txt").read_text() == "keep me"
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        call(stage, "--resume", "never", "--overwrite", "true")
    assert [file.name for file in folder.iterdir()] == ["run.json"]


@pytest.mark.parametrize("stage", [sft, grpo, rejection_sampling])
def test_check_data_stops_before_anything_is_loaded_or_written(stage, call, tmp_path, no_model, capsys):
    call(stage, "--check_data")
    assert "data checked" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@STAGES
def test_data_can_be_checked_with_a_config_for_gpus_on_a_machine_without(stage, call, no_model, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wants_gpus = {"use_cpu": False, "bf16": True, "deepspeed": str(TOY_PROMPTS.parents[1] / "deepspeed" / "zero3.json")}
    call(stage, "--check_data", "true", **wants_gpus)
    assert "data checked" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="deepspeed needs a launcher"):
        call(stage, "--check_data", "false", **wants_gpus)


@pytest.mark.parametrize("stage", [sft, grpo, rejection_sampling])
def test_an_unknown_key_is_named(stage, call, no_model):
    with pytest.raises(ValueError, match="learning_rat_"):
        call(stage, learning_rat_=1.0)


@pytest.mark.parametrize("stage", [sft, grpo, rejection_sampling])
def test_bad_data_fails_before_a_model_is_loaded(stage, call, toy_data, tmp_path, no_model, capsys):
    lines = (toy_data / SPLIT.get(stage, "train.jsonl")).read_text().splitlines()
    row = json.loads(lines[0])
    row.get("record", row)["media"][0] = "gone.png"
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    shutil.copytree(toy_data / "media", tmp_path / "media")
    with pytest.raises(ValueError, match=r"bad\.jsonl.*1.*gone\.png"):
        call(stage, train_files=[str(bad)])
    assert not (tmp_path / "run").exists()
    call(stage, "--check_data", train_files=[str(bad)], skip_bad=True, limit=None)
    assert "gone.png" in capsys.readouterr().err


def test_rewards_and_truncation_are_logged_and_ties_counted(call, toy_data, tmp_path):
    rows = [json.loads(line) for line in (toy_data / "train.jsonl").read_text().splitlines()]
    tied = tmp_path / "tied.jsonl"
    rows[1]["preferred"] = "tie"
    tied.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(toy_data / "media", tmp_path / "media")
    logging = {"log_completions": True, "num_completions_to_print": 0}
    output = call(grpo, train_files=[str(tied)], limit=None, **logging)
    log = read_log(output)
    for name in ("format_reward", "accuracy_reward", "truncated"):
        assert all(0 <= row[f"rewards/{name}/mean"] <= 1 for row in log)
    assert all({"parse_rate", "readable_rate", "arithmetic_rate", "kl"} <= set(row) for row in log)
    files = sorted((output / "completions").glob("*.parquet"))
    table = pyarrow.parquet.read_table(files[0]).to_pydict()
    assert {"completion", "format_reward", "accuracy_reward", "truncated", "winner", "problems"} <= set(table)
    assert set(table["truncated"]) <= {0.0, 1.0} and max(table["truncated"]) == 1.0
    run = json.loads((output / "run.json").read_text())
    assert run["counts"]["ties left out"] == 1 and run["counts"]["rows"] == len(rows) - 1
    assert run["arguments"]["reward_funcs"] == ["format_reward", "accuracy_reward"]
    assert run["arguments"]["reward_weights"] is None


def test_the_mark_of_truncation_adds_nothing_to_the_reward(models, toy_data, tmp_path):
    log = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path)
    for row in log:
        parts = [row[f"rewards/{name}/mean"] for name in ("format_reward", "accuracy_reward", "mean_token")]
        assert row["rewards/truncated/mean"] > 0 and row["reward"] == pytest.approx(sum(parts), abs=1e-5)


def test_completions_that_hit_the_limit_are_marked():
    mark = grpo.truncation_marker(4, {7, 8})
    assert mark([[1, 2, 3, 4], [1, 2, 3, 7], [1, 2, 8]]) == [1.0, 0.0, 0.0]


def test_a_row_without_gold_is_left_out_of_the_sum(models, toy_data, tmp_path):
    """Rows of a data set of one's own may lack `solution`: accuracy_reward is None there, and only there."""
    from stages import data_arguments

    rows, _ = grpo.load_rows(data_arguments(toy_data, "train"))
    rows[0]["solution"] = None
    seen = []

    def watched_accuracy(completions, solution, **columns):
        values = grpo.load_reward("accuracy_reward")(completions, solution, **columns)
        seen.extend((gold is None, value is None) for gold, value in zip(solution, values, strict=True))
        return values

    funcs = [grpo.load_reward("format_reward"), watched_accuracy]
    log = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path, rows=rows, rewards=funcs)
    assert {(True, True), (False, False)} == set(seen)
    assert all(row["reward"] >= 0 for row in log)


def test_reward_weights_must_match_the_rewards(call):
    with pytest.raises(ValueError, match="reward_weights has 1 entries for 2 reward_funcs"):
        call(grpo, reward_weights=[1.0])


def test_an_unknown_reward_is_named(call, no_model):
    with pytest.raises(ValueError, match="has no function 'accurate_reward'"):
        call(grpo, reward_funcs=["accurate_reward"])


@pytest.mark.parametrize(
    ("keys", "rewards"),
    [
        ({}, [0, 0, -0.5, -1]),  # the limit is max_completion_length, the margin a quarter of it
        ({"length_limit": 16}, [0, -1, -1, -1]),
        ({"length_margin": 24}, [0, -1 / 3, -5 / 6, -1]),
        ({"length_limit": 40, "length_margin": 40}, [-0.2, -0.4, -0.7, -0.8]),
    ],
)
def test_the_length_reward_takes_its_limit_from_the_config(keys, rewards):
    own = grpo.RewardArguments(reward_funcs=["format_reward", "length_reward"], **keys)
    form, length = grpo.reward_functions(own, 32)
    assert form is grpo.load_reward("format_reward") and length.__name__ == "length_reward"  # the name that TRL logs
    tokens = [[0] * count for count in (8, 16, 28, 32)]
    assert length(completion_ids=tokens, task=None) == pytest.approx(rewards)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"length_limit": 64}, "have no effect without length_reward"),
        ({"reward_funcs": ["length_reward"], "length_limit": 64, "length_margin": 65}, "between 1 and length_limit"),
        ({"reward_funcs": ["length_reward"], "length_margin": 0}, "between 1 and length_limit"),
    ],
)
def test_limits_of_the_length_reward_that_do_nothing_are_refused(keys, message, call, no_model):
    with pytest.raises(ValueError, match=message):
        call(grpo, **keys)


def test_the_stages_follow_each_other(call, toy_data, tmp_path):
    """Cold start, sampling, GRPO on the hard pairs: each reads what the one before wrote."""
    output = call(sft)
    assert read_log(output)[1]["loss"] < read_log(output)[0]["loss"]
    cold = output.rename(tmp_path / "cold")
    sampling = {"samples": 2, "max_new_tokens": 8, "batch_size": 4, "model_name_or_path": str(cold)}
    found = call(rejection_sampling, **sampling).rename(tmp_path / "sampling")
    counts = json.loads((found / "manifest.json").read_text())["counts"]
    assert counts["pairs"] == 4 and counts["samples"] == 8 and counts["kept"] + counts["hard"] >= 4
    trained = call(grpo, train_files=[str(found / "hard.jsonl")], model_name_or_path=str(cold))
    assert all(torch.isfinite(tensor).all() for tensor in weights(trained).values())
    assert str(cold) in (trained / "README.md").read_text()


# A module that cannot be taken apart stands for Gloo's threads, which abort a process that ends slowly once in a while.
ENDING = """
import atexit, os, sys
from unifiedreward_think.errors import InputError
from unifiedreward_think.training.run import run_stage

class Odd:
    def __del__(self, abort=os.abort):
        abort()

def main():
    atexit.register(print, "closed")
    ended = {"well": None, "stopped": SystemExit(0), "refused": SystemExit("no"), "wrong": InputError("a bad row")}
    if error := ended[sys.argv[1]]:
        raise error

if sys.argv[2] == "odd":
    odd = Odd()
run_stage(main)
"""


@pytest.mark.parametrize(
    ("how", "odd", "rank", "status", "said"),
    [
        ("well", True, True, 0, ""),
        ("stopped", True, True, 0, ""),
        ("well", True, False, -signal.SIGABRT, ""),  # the abort is real
        ("refused", False, True, 1, "no\n"),
        ("wrong", False, True, 1, "error: a bad row\n"),
    ],
)
def test_a_rank_that_is_done_ends_before_python_is_taken_apart_and_a_failure_stays_one(how, odd, rank, status, said):
    environment = {**os.environ, "PYTHONPATH": str(Path(run.__file__).parents[2])} | ({"RANK": "0"} if rank else {})
    command = [sys.executable, "-c", ENDING, how, "odd" if odd else ""]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "closed\n") and done.stderr.endswith(said), done.stderr
