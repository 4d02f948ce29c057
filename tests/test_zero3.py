"""DeepSpeed ZeRO-3 through the real scripts: two ranks do what one process does and save the released key names."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stages import (
    changed_keys,
    check_output,
    common,
    data_arguments,
    mean_token,
    read_log,
    train_grpo,
    train_sft,
    weights,
)

REPO = Path(__file__).parents[1]


def environment():
    """For a process of its own: this checkout's package, this interpreter's commands first."""
    paths = [str(REPO / "src"), str(REPO / "tests"), os.environ.get("PYTHONPATH", "")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PATH": path, "DS_ACCELERATOR": "cpu"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def checked(command, **more):
    done = subprocess.run(
        command, cwd=REPO, env={**environment(), **more}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.mark.slow
def test_key_names_survive_a_load_under_zero3(models, tmp_path):
    checked([sys.executable, "tests/zero3_keys.py", tmp_path, *models.values()], MASTER_PORT=free_port())
    found = json.loads((tmp_path / "keys.json").read_text())
    for family, source in models.items():
        names = sorted(weights(source))
        assert found[f"{source} ours"]["keys"] == names, family
        assert found[f"{source} stock"]["keys"] != names, family
        assert found[f"{source} ours"]["frozen"] > 10_000  # numel() of a partitioned parameter is 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_zero3_on_two_ranks_equals_one_process(stage, models, toy_data, tmp_path, monkeypatch):
    source, data = models["qwen2_5_vl"], data_arguments(toy_data, "cold_start" if stage == "sft" else "train")
    own = {"prompt_dir": data.prompt_dir, "frames": 8, "frame_cache": data.frame_cache, "limit": 4, "dtype": "float32"}
    own |= {"model_name_or_path": str(source), "train_files": data.train_files, "output_dir": str(tmp_path / "two")}
    own |= common(learning_rate=1e-4, per_device_train_batch_size=2)
    if stage == "sft":
        own |= {"max_length": None}
        log = train_sft(source, toy_data, tmp_path / "one", learning_rate=1e-4)
    else:
        monkeypatch.setattr(torch, "multinomial", torch.multinomial)  # the import changes it: put it back afterwards
        import second_choice

        torch.multinomial = second_choice.pick  # an import that another test has done changes nothing
        own |= {"beta": 0.04, "num_generations": 2, "max_completion_length": 8}
        own |= {"reward_funcs": ["second_choice.mean_token"]}
        log = train_grpo(source, toy_data, tmp_path / "one", rewards=[mean_token], learning_rate=1e-4)
        assert all(row["reward_std"] > 0 and row["grad_norm"] > 0.1 for row in log)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(own))  # JSON is YAML
    script = {"sft": "scripts/0.cold_start.sh", "grpo": "scripts/grpo.sh"}[stage]
    command = ["bash", script, str(config), "--deepspeed", "configs/deepspeed/zero3_cpu.json"]
    checked(command, NPROC="2", MASTER_PORT=free_port())
    check_output(tmp_path / "two", source)
    assert not [key for key in changed_keys(source, tmp_path / "two") if "visual." in key]
    ranks = read_log(tmp_path / "two")
    for key in ("loss", "grad_norm", *(("kl", "reward") if stage == "grpo" else ())):
        assert [row[key] for row in ranks] == pytest.approx([row[key] for row in log], abs=1e-4, rel=1e-4), key
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)
