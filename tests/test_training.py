# ruff: noqa: F811 - a fixture is imported
"""The training stages as their commands run them, in this process, on the toy data with a random model."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import torch

from helpers.stages import (  # noqa: F401 - a fixture
    SPLIT,
    STAGES,
    TOY_PROMPTS,
    call,
    changed_keys,
    common,
    data_arguments,
    interrupt,
    read_log,
    train_grpo,
    weights,
)
from unifiedreward_think.checksums import file_sha256
from unifiedreward_think.in_use import LOCK
from unifiedreward_think.models import loading
from unifiedreward_think.training import grpo, rejection_sampling, run, sft
from unifiedreward_think.training.arguments import DataArguments, TrainingExtras
from unifiedreward_think.training.output import describe


@pytest.fixture
def no_model(monkeypatch):
    """Fail the test where a model is loaded."""
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))


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
    assert {file.name for file in folder.iterdir()} - {LOCK} == {"run.json"}


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
    for name in ("rewards/format_reward/mean", "rewards/accuracy_reward/mean", "completions/clipped_ratio"):
        assert all(0 <= row[name] <= 1 for row in log)
    assert all({"parse_rate", "readable_rate", "arithmetic_rate", "kl"} <= set(row) for row in log)
    files = sorted((output / "completions").glob("*.parquet"))
    table = pyarrow.parquet.read_table(files[0]).to_pydict()
    assert {"completion", "format_reward", "accuracy_reward", "winner", "problems"} <= set(table)
    run = json.loads((output / "run.json").read_text())
    assert run["counts"]["ties left out"] == 1 and run["counts"]["rows"] == len(rows) - 1
    assert run["arguments"]["reward_funcs"] == ["format_reward", "accuracy_reward"]
    assert run["arguments"]["reward_weights"] is None
    assert run["data"] == [{"file": str(tied), "sha256": file_sha256(tied)}] and run["started"] <= run["ended"]
    assert run["defaults"]["train_files"] == [] and "reward_funcs" not in run["defaults"]


def test_the_defaults_of_arguments_that_have_another_value_are_kept_beside_them():
    row = describe(DataArguments(frames=4, limit=None), TrainingExtras(resume="never"), stage="sft", finished=False)
    assert row["defaults"] == {"frames": 8, "resume": "auto"}
    assert row["arguments"]["frames"] == 4 and row["arguments"]["limit"] is None


def test_ties_and_unlabelled_pairs_are_left_out_and_counted(toy_data, tmp_path):
    rows = [json.loads(line) for line in (toy_data / "train.jsonl").read_text().splitlines()]
    labels = ["tie", None, None, *(row["preferred"] for row in rows[3:])]
    file = tmp_path / "mixed.jsonl"
    mixed = [{**row, "preferred": label} for row, label in zip(rows, labels, strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in mixed))
    data = data_arguments(toy_data, "train", limit=None)
    data.train_files, data.media_root = [str(file)], str(toy_data)
    left, counts = grpo.load_rows(data)
    assert [row["id"] for row in left] == [row["id"] for row in rows[3:]]
    assert counts == {
        **{"pairs": len(left), "rows": len(left), "bad rows left out": 0},
        **{"ties left out": 1, "unlabelled pairs left out": 2},
    }


def test_fresh_prompts_of_dynamic_sampling_are_the_same_in_every_process():
    from unifiedreward_think.training.trainers.dynamic_sampling import DynamicSamplingGRPOTrainer

    run = {"args": SimpleNamespace(seed=1), "train_dataset": range(50), "num_generations": 2}
    trainer = SimpleNamespace(**run, state=SimpleNamespace(global_step=2))
    draw = functools.partial(DynamicSamplingGRPOTrainer._draw, trainer)
    assert draw(1, 0, 4) == [48, 48, 32, 32, 44, 44, 8, 8]  # whatever PYTHONHASHSEED is
    assert draw(1, 2, 2) == [44, 44, 8, 8]  # a rank after one that needs two
    assert draw(2, 0, 4) != draw(1, 0, 4)


def test_an_attention_that_the_shared_prefix_replaces_is_named_with_its_own(call, capsys):
    call(grpo, attn_implementation="eager", max_steps=1)
    (note,) = {line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")}
    assert "shared_prefix has an attention of its own" in note and "attn_implementation 'eager'" in note
    call(grpo, attn_implementation="eager", max_steps=1, shared_prefix=False, resume="never", overwrite=True)
    assert "note:" not in capsys.readouterr().err


def test_what_completions_say_is_logged_whichever_rewards_are_chosen(call):
    logging = {"log_completions": True, "num_completions_to_print": 0}
    output = call(grpo, reward_funcs=["accuracy_reward"], **logging)
    for row in read_log(output):
        assert {"parse_rate", "readable_rate", "arithmetic_rate"} <= set(row)
        assert {key.split("/")[1] for key in row if key.startswith("rewards/")} == {"accuracy_reward"}
    table = pyarrow.parquet.read_table(next((output / "completions").glob("*.parquet"))).to_pydict()
    assert {"winner", "problems", "task", "id", "order"} <= set(table)


def test_the_rewards_of_a_run_are_those_that_were_asked_for_and_cut_completions_are_counted(models, toy_data, tmp_path):
    log = train_grpo(models["qwen2_5_vl"], toy_data, tmp_path)
    names = ("format_reward", "accuracy_reward", "mean_token")
    for row in log:
        assert {key.split("/")[1] for key in row if key.startswith("rewards/")} == set(names)
        assert row["reward"] == pytest.approx(sum(row[f"rewards/{name}/mean"] for name in names), abs=1e-5)
        assert 0 < row["completions/clipped_ratio"] <= 1


def calls_of(run, names):
    """The pairs (caller, callee) among functions of these names while something runs."""
    stack, pairs = [], []

    def note(frame, event, _):
        if frame.f_code.co_name in names and event == "call":
            if not stack or stack[-1] != frame.f_code.co_name:  # an override that calls the one after it
                pairs.append((next(iter(stack[-1:]), None), frame.f_code.co_name))
            stack.append(frame.f_code.co_name)
        elif frame.f_code.co_name in names and event == "return":
            stack.pop()

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return pairs


def test_a_step_calls_what_the_map_of_the_trainer_says_in_its_order(call, toy_data, monkeypatch):
    import trl

    from unifiedreward_think.training.trainers import grpo as trainer

    path, expected = [], []
    for indent, name in re.findall(r"^    ( *)(\w+)(?:  .*)?$", trainer.__doc__, re.MULTILINE):
        path[len(indent) // 2 :] = [name]
        expected.append((path[-2] if len(path) > 1 else None, name))
    assert ("_generate", "_generate_single_turn") in expected
    options = {"max_completion_length": 4, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    options |= {"eval_files": [str(toy_data / "heldout.jsonl")], "eval_steps": 1, "eval_limit": 1}
    options |= {"eval_max_new_tokens": 2}
    with monkeypatch.context() as patch:
        interrupt(trl.GRPOTrainer, 1, patch)
        with pytest.raises(KeyboardInterrupt):
            call(grpo, **options)
    pairs = calls_of(lambda: call(grpo, **options), {name for _, name in expected})
    assert [pair for pair in dict.fromkeys(pairs) if pair in expected] == expected


def test_a_row_without_gold_is_left_out_of_the_sum(models, toy_data, tmp_path):
    """Rows of a data set of one's own may lack `solution`: accuracy_reward is None there, and only there."""
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
        ({"reward_funcs": ["length_reward"], "length_margin": 0}, "length_margin is 0; expected a whole number"),
            {"reward_funcs": ["length_reward"], "length_margin": 0},
            "length_margin is 0; expected a whole number, 1 or more",
        ),
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
    ended |= {"usage": SystemExit(2), "bug": KeyError("a bug")}
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
        ("refused", True, True, 1, "no\n"),
        ("wrong", True, True, 1, "error: a bad row\n"),
        ("usage", True, True, 2, ""),
        ("bug", True, True, 1, "KeyError: 'a bug'\n"),
        ("bug", False, False, 1, "KeyError: 'a bug'\n"),
    ],
)
def test_a_rank_ends_before_python_is_taken_apart_with_the_status_that_it_had(how, odd, rank, status, said):
    environment = {**os.environ, "PYTHONPATH": str(Path(run.__file__).parents[2])} | ({"RANK": "0"} if rank else {})
    command = [sys.executable, "-c", ENDING, how, "odd" if odd else ""]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "closed\n") and done.stderr.endswith(said), done.stderr


def test_no_stage_destroys_a_process_group():
    """It waits for Gloo's thread and keeps the lock that this needs: one rank in ten hung after it had finished."""
    for file in Path(run.__file__).parents[1].rglob("*.py"):
        code = file.read_text(encoding="utf-8")
        assert not re.search(r"\bdestroy_process_group\(|\btrainer\.end\(|\bend_training\(", code), file
