"""The rewards and rows work under stock TRL, without this project's trainer."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pairwise", "pointwise"])
def test_the_command_trl_grpo_takes_our_rows_and_rewards(form, models, toy_data, tmp_path):
    bin_folder = Path(sys.executable).parent
    paths = os.pathsep.join([str(REPO / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    rows = [
        *(sys.executable, "-m", "unifiedreward_think.data.rows", "--input", toy_data / "train.jsonl"),
        *("--output", tmp_path / "rows", "--frames", "4", "--form", form),
    ]
    train = [
        *(bin_folder / "trl", "grpo", "--model_name_or_path", models["qwen2_5_vl"], "--dtype", "float32"),
        *("--dataset_name", tmp_path / "rows", "--output_dir", tmp_path / "run"),
        *("--reward_funcs", "unifiedreward_think.rewards.format_reward", "unifiedreward_think.rewards.accuracy_reward"),
        *("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_steps", "2", "--logging_steps", "1"),
        *("--per_device_train_batch_size", "4", "--num_generations", "2", "--max_completion_length", "8"),
        *("--activation_checkpointing", "false", "--save_steps", "2"),
        *(("--shuffle_dataset", "false") if form == "pointwise" else ()),  # so the rows of a pair stay side by side
    ]
    for command in (rows, train):
        done = subprocess.run(
            [str(part) for part in command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    log = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert len(log) == 2
    for row in log:
        assert math.isfinite(row["loss"])
        assert {"rewards/format_reward/mean", "rewards/accuracy_reward/mean"} <= set(row)
        assert row.get("scores_without_their_pair") == (0 if form == "pointwise" else None)
