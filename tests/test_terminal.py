"""What a stage prints, as a process: lines of ours and errors alone; those of libraries are in its log file."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.stages import TOY_PROMPTS, common
from unifiedreward_think.training.monitor.steps import StepLines

ROOT = Path(__file__).parents[1]
NUMBER = r"-?\d[\d.e-]*"
STEP = rf"run: step \d+/2, loss {NUMBER}"
LINES = {
    "sft": [rf"{STEP}, token accuracy {NUMBER}, \d\d:\d\d left", rf"{STEP}, token accuracy {NUMBER}, took \d\d:\d\d"],
    "grpo": [
        rf"{STEP}, reward {NUMBER}, readable {NUMBER}, strict {NUMBER}, \d\d:\d\d left",
        rf"{STEP}, reward {NUMBER}, readable {NUMBER}, strict {NUMBER}, took \d\d:\d\d",
    ],
}


@pytest.fixture
def run(models, toy_data, tmp_path):
    """Run a stage as its script does, and return the process that ended."""

    def start(stage, *flags, ranks=1, **changes):
        config = {
            "model_name_or_path": str(models["qwen2_5_vl"]),
            "output_dir": str(tmp_path / "run"),
            "train_files": [str(toy_data / ("cold_start.jsonl" if stage == "sft" else "train.jsonl"))],
            "prompts": str(TOY_PROMPTS),
            "frame_cache": str(toy_data / "frames"),
            "limit": 4,
            "dtype": "float32",
        }
        if stage != "rejection_sampling":
            # As a user has them: bars and deprecated names are not switched off.
            config |= {**common(), "disable_tqdm": False, "per_device_train_batch_size": 4 // ranks}
            config["gradient_checkpointing"] = config.pop("activation_checkpointing")
        config |= {"sft": {"max_length": None}, "grpo": {"num_generations": 2, "max_completion_length": 8}}.get(
            stage, {"samples": 2, "max_new_tokens": 8}
        )
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**config, **changes}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", port]
        command = [sys.executable, *(launcher if ranks > 1 else ()), "-m", f"unifiedreward_think.training.{stage}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        environment.pop("PYTHONWARNINGS", None)
        return subprocess.run(
            [*command, "--config", str(path), *flags], env=environment, capture_output=True, text=True, timeout=500
        )

    return start


def fits(lines, patterns):
    assert len(lines) == len(patterns), lines
    return [line for line, pattern in zip(lines, patterns, strict=True) if not re.fullmatch(pattern, line)] == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_stage_prints_lines_of_ours_alone_and_keeps_the_rest_in_its_log(stage, run, tmp_path):
    done = run(stage)
    assert done.returncode == 0, done.stderr
    end = rf"{stage}: finished -> {tmp_path / 'run'}"
    assert fits(done.stdout.splitlines(), [*LINES[stage], end]) and done.stderr == ""
    log = (tmp_path / "run" / "run.log").read_text()
    for noise in ("FutureWarning", "Writing model shards", "Loading weights", "{'loss'", "'train_runtime'"):
        assert noise in log, noise
    assert set(done.stdout.splitlines()) <= set(log.splitlines())
    assert "\r" not in log and log.count("Writing model shards") == 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rejection_sampling"])
def test_of_two_ranks_one_speaks_and_each_has_a_log(stage, run, tmp_path):
    done = run(stage, ranks=2)
    assert done.returncode == 0, done.stderr
    sampled = [rf"rejection_sampling: \d kept, \d hard of \d pairs -> {tmp_path / 'run'}"]
    expected = [*LINES["sft"], rf"sft: finished -> {tmp_path / 'run'}"] if stage == "sft" else sampled
    assert fits(done.stdout.splitlines(), expected) and done.stderr == ""
    assert "Loading weights" in (tmp_path / "run" / "run.rank1.log").read_text()


@pytest.mark.slow
def test_errors_and_notes_reach_the_terminal(run, toy_data, tmp_path):
    done = run("sft", train_files=[str(tmp_path / "gone.jsonl")])
    assert done.returncode == 1 and done.stdout == "" and re.fullmatch(r"error: .*gone\.jsonl.*\n", done.stderr)
    done = run("sft", "--learning_rate", "fast")
    assert done.returncode == 2 and re.fullmatch(r"error: .*fast.*--help_all lists all arguments\n", done.stderr)
    code = "import sys; from unifiedreward_think.training import run, sft; sft.load_rows = lambda *_: 1 / 0; "
    code += "run.run_stage(sft.main)"
    flags = ["--config", str(tmp_path / "config.yaml")]
    bug = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, cwd=ROOT)
    assert bug.returncode == 1 and "Traceback" in bug.stderr and "ZeroDivisionError" in bug.stderr


@pytest.mark.slow
def test_all_is_left_on_the_terminal_where_that_is_asked_for(run, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIFIEDREWARD_VERBOSE", "1")
    done = run("sft")
    assert "FutureWarning" in done.stderr and "{'loss'" in done.stdout
    assert not (tmp_path / "run" / "run.log").exists()


class State:
    """As much of a trainer's state as is read."""

    is_world_process_zero = True
    global_step, max_steps = 0, 100
    output_dir = "outputs/judge"


def test_a_line_stands_for_the_steps_since_the_last_one(capsys):
    seconds = iter([0, 10, 14, 26, 30, 40, 41]).__next__
    lines, state = StepLines(seconds), State()
    state.global_step = 50  # of the run that this one goes on from
    lines.on_train_begin(state, state, None)
    for step, loss in ((60, 1.0), (64, 2.0), (76, 4.0), (80, 5.0)):
        state.global_step = step
        lines.on_log(state, state, None, {"loss": loss, "reward": 1.0, "parse_rate": 0.5})
    lines.on_log(state, state, None, {"eval_accuracy": 0.75, "eval_parse_rate": 1.0})
    state.global_step = 100
    lines.on_log(state, state, None, {"train_runtime": 41.0})
    assert capsys.readouterr().out.splitlines() == [
        "judge: step 60/100, loss 1, reward 1.000, strict 0.500, 00:40 left",
        "judge: step 76/100, loss 3, reward 1.000, strict 0.500, 00:24 left",
        "judge: step 80/100, held-out pairs, accuracy 0.750, strict 1.000",
        "judge: step 100/100, loss 5, reward 1.000, strict 0.500, took 00:41",
    ]


def test_another_rank_prints_no_lines(capsys):
    state = State()
    state.is_world_process_zero = False
    lines = StepLines()
    lines.on_train_begin(state, state, None)
    lines.on_log(state, state, None, {"loss": 1.0})
    assert capsys.readouterr().out == ""


def test_the_note_about_a_moved_name_reaches_the_terminal_of_a_quiet_stage():
    code = (
        "from unifiedreward_think.entry import note_moved\n"
        "from unifiedreward_think.terminal import libraries_to_log\n"
        "with libraries_to_log():\n"
        "    print('of a library')\n"
        "    note_moved('--old', '--new')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("UNIFIEDREWARD_VERBOSE", "RANK")}
    environment["PYTHONPATH"] = str(ROOT / "src")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == "note: `--old` is now `--new`; the old name goes with version 0.3\n"
