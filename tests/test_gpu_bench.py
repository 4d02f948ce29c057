"""gpu.sh on a CPU at tiny sizes: every item writes what it measures, and one that dies costs no other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
BENCH = REPO / "scripts" / "bench"
KILLED = """
import os, signal, sys
if sys.orig_argv[1].endswith("gpu_items.py") and sys.orig_argv[2] == "sft":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def gpu_sh(folder, *words, **variables):
    command = ["bash", BENCH / "gpu.sh", "--size", "tiny", "--device", "cpu", "--output", folder, *words]
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_item_of_the_gpu_day_writes_results_a_table_and_plots(tmp_path):
    done = gpu_sh(tmp_path, "--minutes", "18")
    assert done.returncode == 0, done.stdout + done.stderr
    machine, *rest = lines(tmp_path)
    assert machine["device"] == "CPU" and machine["commit"] and machine["versions"]["torch"]
    ended = {(line["item"], line["model"]): line["status"] for line in rest if "status" in line}
    installed = {"flash_attention", "vllm"}  # neither is in the test environment
    assert {item for (item, _), status in ended.items() if status == "skipped"} == installed
    measured = [line for line in rest if "status" not in line]
    assert not [line for line in measured if "error" in line]
    for key in ended:
        if key[0] not in installed:
            impls = {line["impl"] for line in measured if (line["item"], line["model"]) == key}
            assert len(impls - {"ours_float32"}) == 2 and "ours" in impls, key
    exact = [line for line in measured if line["impl"] == "ours_float32"]
    assert len(exact) == 2
    for line in exact:  # the same step: so is what is measured of both in bfloat16
        assert max(value for key, value in line.items() if key.endswith("_error")) < 1e-5
    rounded = [line for line in measured if line["item"] == "precision" and line["impl"] == "trl"]
    assert all(1e-4 < line["gradient_error"] < 0.1 for line in rounded)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in done.stdout
    assert table.count("error of the gradient |") == 2 and "at most 1.5" in table
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "step_qwen2_5_vl_3b.png",
        "step_qwen3_vl_2b.png",
        "policy_qwen2_5_vl_3b.png",
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_item_that_is_killed_or_runs_out_of_time_is_written_down_and_the_others_go_on(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(KILLED, encoding="utf-8")
    words = ["--minutes", "15", "--items", "precision", "policy", "sft", "decode", "--models", "qwen2_5_vl_3b"]
    done = gpu_sh(tmp_path, *words, "--limit", "precision=1", "decode=0", PYTHONPATH=str(code))
    assert done.returncode == 1, done.stdout + done.stderr
    ended = {line["item"]: line for line in lines(tmp_path)[1:] if "status" in line}
    assert {item: line["status"] for item, line in ended.items()} == {
        "precision": "timed out",
        "policy": "done",
        "decode": "timed out",
        "sft": "failed",
    }
    assert ended["precision"]["reason"] == "after 1 s" and "signal 9" in ended["sft"]["reason"]
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| precision | qwen2_5_vl_3b | timed out after 1 s |" in table
    assert "| policy | qwen2_5_vl_3b | 8 tokens | seconds |" in table


@pytest.mark.slow
def test_items_without_time_are_left_out_and_a_missing_gpu_is_said(tmp_path):
    done = gpu_sh(tmp_path, "--minutes", "0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    reasons = {line["item"]: line["reason"] for line in lines(tmp_path)[1:]}
    assert reasons["precision"] == "no time left" and reasons["vllm"] == "vllm is not installed"
    done = gpu_sh(tmp_path, "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and "torch sees no GPU" in done.stderr


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def test_a_measurement_that_fails_is_a_line_and_the_item_goes_on(bench, capsys):
    import gpu_items

    def broken():
        raise RuntimeError("CUDA error: out of memory\nand a long story")

    assert gpu_items.attempt(broken) == {"error": "RuntimeError: CUDA error: out of memory"}
    assert "long story" in capsys.readouterr().err
    measured = gpu_items.attempt(lambda: {"seconds": [3.0, 2.0], "log": [1]})
    assert measured == {"seconds": 2.0, "all_seconds": [3.0, 2.0]}


def test_the_table_says_what_reached_its_goal_and_what_failed(bench):
    import gpu_table

    policy = {"trl": {"seconds": 4.0}, "ours": {"seconds": 1.0, "token_bound": 4.5}}
    assert list(gpu_table.comparisons(policy)) == [
        ("seconds", 4.0, 1.0, 4.0, ""),
        ("share of the token bound", None, 4.0 / 4.5, None, "at least 0.9: NO"),
    ]
    errors = {
        "trl": {"gradient_error": 0.01},
        "ours": {"gradient_error": 0.014},
        "ours_float32": {"gradient_error": 1.0},
    }
    assert [row[-1] for row in gpu_table.comparisons(errors)] == ["above 0.001", "at most 1.5: yes"]
    written = {"generate": {"tokens_per_second": 100.0}, "ours": {"tokens_per_second": 150.0}}
    assert list(gpu_table.comparisons(written)) == [("tokens a second", 100.0, 150.0, 1.5, "")]
    assert list(gpu_table.comparisons({"trl": {"error": "no"}, "ours": {"seconds": 1.0}})) == [
        ("seconds", None, 1.0, None, "")
    ]


def test_the_sizes_are_those_of_the_released_models(bench, tmp_path):
    import real_sizes
    import torch
    import transformers

    # the parameters of Qwen/Qwen2.5-VL-3B-Instruct and Qwen/Qwen3-VL-2B-Instruct
    for name, parameters in {"qwen2_5_vl_3b": 3_754_622_976, "qwen3_vl_2b": 2_127_532_032}.items():
        real_sizes.write(name, tmp_path / name)
        config = transformers.AutoConfig.from_pretrained(tmp_path / name)
        with torch.device("meta"):
            network = transformers.AutoModelForImageTextToText.from_config(config)
        assert sum(weight.numel() for weight in network.parameters()) == parameters
        assert network.get_input_embeddings().weight is network.lm_head.weight
        assert network.lm_head.out_features == 151_936


def test_missing_packages_are_named_with_the_wheels_to_bring(bench, monkeypatch, capsys):
    import gpu_packages

    assert gpu_packages.missing() == {}
    version = gpu_packages.metadata.version

    def other(name):
        if name == "dill":  # datasets needs it
            raise gpu_packages.metadata.PackageNotFoundError(name)
        return "5.17.0" if name == "transformers" else version(name)

    monkeypatch.setattr(gpu_packages.metadata, "version", other)
    with pytest.raises(SystemExit, match=r"WHEELS=wheels bash scripts/bench/gpu.sh") as ended:
        gpu_packages.main()
    assert "-d wheels dill==" in str(ended.value) and "transformers==5.23" in str(ended.value)
    told = capsys.readouterr().err
    assert "dill: not installed (datasets needs it)" in told
    assert "transformers: 5.17.0 is installed, pyproject.toml needs <5.24,>=5.23" in told
