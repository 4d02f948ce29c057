"""What a user types: the stage scripts through bash, and every `python -m` entry point's --help."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unifiedreward_think"
SCRIPTS = sorted(path for folder in ("scripts", "benchmark_evaluation") for path in ROOT.glob(f"{folder}/*.sh"))
STAGES = {
    "0.cold_start.sh": ("configs/toy/cold_start.yaml", "unifiedreward_think.training.sft"),
    "1.rejection_sampling.sh": ("configs/toy/rejection_sampling.yaml", "unifiedreward_think.training.sft"),
    "grpo.sh": ("configs/toy/grpo.yaml", "unifiedreward_think.training.grpo"),
}
SAMPLING = "unifiedreward_think.training.rejection_sampling --config configs/toy/rejection_sampling.yaml"
# Every module that `python -m` runs; those a user types most, with arguments that the help has to name.
RUNNABLE = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__main__")
    for path in PACKAGE.rglob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text() and path.stem != "decoding_process"  # no command
)
ARGUMENTS = {
    "training.sft": ["--config", "--train-files", "--freeze-vision", "--help_all"],
    "training.grpo": ["--config", "--train-files", "--reward-funcs", "--help_all"],
    "training.rejection_sampling": [
        "--config",
        "--samples",
        "--keep",
        "--hard-below",
        "--backend",
        "--tensor-parallel-size",
    ],
    "training.plan": ["--gpus", "--gpu-memory", "--model", "--prompt-tokens", "--completion-tokens"],
    "evaluation": [
        "--model",
        "--input",
        "--output",
        "--orders",
        "--limit",
        "--skip-bad",
        "--max-pixels",
        "--backend",
        "--samples",
    ],
    "evaluation.report": ["--run", "--output"],
    "evaluation.rescore": ["--compare", "--write", "--calibration"],
    "evaluation.calibrate": ["judgments", "--output", "--probabilities"],
    "evaluation.compare": ["A", "B", "--style"],
    "evaluation.training_report": ["--run", "--before", "--after", "--output"],
    "data.loading": ["--kind", "--media-root", "--frames"],
    "data.rows": ["--input", "--output", "--style"],
    "toy.dataset": ["--output", "--seed"],
    "toy.base": ["--output", "--seed"],
    "toy.judge": ["--run", "--output"],
    "models.tiny": ["--output", "--family"],
}


def bash(script, *arguments, cwd=ROOT, **environment):
    """Run a stage script on a machine without a GPU, as DRY_RUN unless told otherwise."""
    own = ("NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "HOSTFILE")
    clean = {key: value for key, value in os.environ.items() if key not in own and not key.startswith("SLURM_")}
    return subprocess.run(
        ["bash", ROOT / "scripts" / script, *arguments],
        cwd=cwd,
        env={**clean, "CUDA_VISIBLE_DEVICES": "", "DRY_RUN": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def printed(script, *arguments, **options):
    """The commands a dry run prints."""
    result = bash(script, *arguments, **options)
    assert result.returncode == 0, result.stderr
    return [line.strip() for line in result.stdout.splitlines()]


def training(script, launcher, **options):
    """What a stage prints for training, after the sampling of stage 1, which several nodes do on a port of its own."""
    config, module = STAGES[script]
    lines = printed(script, config, **options)
    expected = f"{launcher} -m {module} --config {config.replace('rejection_sampling', 'rejection_sft')}"
    if script.startswith("1."):
        assert lines == [f"{launcher} -m {SAMPLING}", expected.replace("--master_port 29500", "--master_port 29501")]
    else:
        assert lines == [expected]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_has_no_syntax_error(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_nothing():
    checker = Path(sys.executable).with_name("shellcheck")
    result = subprocess.run([checker, "-x", *SCRIPTS, ROOT / ".ci" / "run"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", STAGES)
def test_a_stage_runs_in_one_process_without_a_gpu(script):
    training(script, "python")


@pytest.mark.parametrize("script", STAGES)
def test_a_stage_runs_in_as_many_processes_as_asked_or_as_gpus_are_visible(script):
    training(script, "torchrun --standalone --nproc_per_node 8", NPROC="8")
    training(script, "torchrun --standalone --nproc_per_node 2", CUDA_VISIBLE_DEVICES="0,3")
    training(script, "torchrun --standalone --nproc_per_node 1", CUDA_VISIBLE_DEVICES="5")


def test_torchrun_hands_on_the_signals_of_preemption_and_waits_for_a_checkpoint(tmp_path):
    (tmp_path / "torchrun").write_text("#!/bin/sh\necho $TORCH_ELASTIC_SHUTDOWN_TIMEOUT $PET_SIGNALS_TO_HANDLE\n")
    (tmp_path / "torchrun").chmod(0o755)
    command = f"PATH={tmp_path}:$PATH; . scripts/launch.sh; NPROC=2 launch module"
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    assert int(said[0]) >= 600 and {"SIGTERM", "SIGUSR1"} <= {*said[1].split(",")}


EIGHT = "torchrun --nnodes 8 --node_rank 3 --nproc_per_node 8 --master_addr 10.0.0.1 --master_port 29500"


@pytest.mark.parametrize("script", STAGES)
def test_a_stage_runs_as_this_nodes_share_of_eight(script):
    node = {"NNODES": "8", "NODE_RANK": "3", "MASTER_ADDR": "10.0.0.1"}
    training(script, EIGHT, NPROC="8", **node)
    training(script, EIGHT, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7", **node)
    for missing in ("NODE_RANK", "MASTER_ADDR"):
        result = bash(script, STAGES[script][0], **{k: v for k, v in node.items() if k != missing})
        assert result.returncode != 0 and missing in result.stderr and not result.stdout


def test_a_deepspeed_hostfile_names_the_nodes(tmp_path):
    hosts = [f"10.0.0.{i + 1} slots={4 + i}" for i in range(8)]
    file = tmp_path / "hostfile"
    file.write_text("# our nodes\n\n" + "\n".join(hosts))
    fourth = EIGHT.replace("--nproc_per_node 8", "--nproc_per_node 7")
    training("grpo.sh", fourth, HOSTFILE=str(file), NODE_RANK="3")
    training("grpo.sh", EIGHT, HOSTFILE=str(file), NODE_RANK="3", NPROC="8")
    file.write_text("\n".join([*hosts[:3], f"{socket.gethostname()} slots=8", *hosts[4:]]) + "\n")
    training("grpo.sh", EIGHT, HOSTFILE=str(file))
    training("grpo.sh", "torchrun --standalone --nproc_per_node 2", HOSTFILE=str(file), NNODES="1", NPROC="2")
    file.write_text(f"{socket.gethostname()} slots=2")
    training("grpo.sh", "torchrun --standalone --nproc_per_node 2", HOSTFILE=str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1 slots=8\n10.0.0.2 slots=8\n", "does not name this machine"),
        ("10.0.0.1 slots=8\n10.0.0.2\n", "expected 'host slots=8', found '10.0.0.2 '"),
        ("10.0.0.1 slots=0\n", "expected 'host slots=8'"),
        ("# nobody\n", "names no host"),
    ],
)
def test_a_hostfile_that_cannot_be_used_is_refused(text, message, tmp_path):
    (tmp_path / "hostfile").write_text(text)
    result = bash("grpo.sh", STAGES["grpo.sh"][0], HOSTFILE=str(tmp_path / "hostfile"))
    assert (result.returncode, result.stdout) == (2, "") and message in result.stderr


def test_slurm_names_the_nodes(tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[1-8]" ] && printf "10.0.0.1\\n10.0.0.2\\n"\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_NNODES": "8", "SLURM_NODEID": "3", "SLURM_JOB_NODELIST": "node[1-8]", "SLURM_NTASKS": "8"}
    slurm |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NPROC": "8"}
    training("grpo.sh", EIGHT, **slurm)
    training("grpo.sh", EIGHT.replace("10.0.0.1", "10.1.0.1"), MASTER_ADDR="10.1.0.1", **slurm)
    training("grpo.sh", "torchrun --standalone --nproc_per_node 8", **{**slurm, "SLURM_NNODES": "1"})
    many = bash("grpo.sh", STAGES["grpo.sh"][0], **{**slurm, "SLURM_NTASKS": "64"})
    assert many.returncode == 2 and "srun --ntasks-per-node 1" in many.stderr
    alone = bash("grpo.sh", STAGES["grpo.sh"][0], **{k: v for k, v in slurm.items() if k != "SLURM_NODEID"})
    assert alone.returncode != 0 and "srun" in alone.stderr and not alone.stdout


def test_arguments_are_passed_on_as_they_are():
    config = STAGES["grpo.sh"][0]
    (line,) = printed("grpo.sh", config, "--output_dir", "a b", "--run_name", "$x;'")
    tail = line.partition("grpo.yaml ")[2]
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {tail}"], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines() == ["--output_dir", "a b", "--run_name", "$x;'"]


def test_stage_1_gives_sampling_and_training_their_own_arguments():
    config = STAGES["1.rejection_sampling.sh"][0]
    lines = printed("1.rejection_sampling.sh", config, "--samples", "8", "--", "--max_steps", "5")
    assert lines[0] == f"python -m {SAMPLING} --samples 8"
    assert lines[1].endswith("rejection_sft.yaml --max_steps 5")
    lines = printed("1.rejection_sampling.sh", config, "--", "--max_steps", "5")
    assert lines[0] == f"python -m {SAMPLING}" and lines[1].endswith("rejection_sft.yaml --max_steps 5")


EACH_GROUP = {
    ("--tensor_parallel_size", "2"): 4,
    ("--tensor-parallel-size=4",): 2,
    ("--tensor_parallel_size", "2", "--tensor-parallel-size", "8"): 1,
    ("--tensor_parallel_size", "3"): 2,  # two GPUs are left over
    ("--tensor_parallel_size", "none"): 8,
    ("--samples", "2"): 8,
}


@pytest.mark.parametrize(("words", "ranks"), EACH_GROUP.items(), ids=map(" ".join, EACH_GROUP))
def test_stage_1_samples_with_a_rank_for_each_group_of_gpus_and_trains_on_all(words, ranks, tmp_path):
    config = STAGES["1.rejection_sampling.sh"][0]
    eight = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    sampling, training = printed("1.rejection_sampling.sh", config, *words, **eight)
    assert sampling.startswith(f"torchrun --standalone --nproc_per_node {ranks} -m {SAMPLING} ")
    assert training.startswith("torchrun --standalone --nproc_per_node 8 ")
    (tmp_path / "hostfile").write_text(f"{socket.gethostname()} slots=8\nother slots=8\n")
    lines = printed("1.rejection_sampling.sh", config, *words, HOSTFILE=str(tmp_path / "hostfile"))
    assert [f"--nproc_per_node {count} " in line for count, line in zip((ranks, 8), lines, strict=True)] == [True, True]
    assert "--nproc_per_node 5 " in printed("1.rejection_sampling.sh", config, *words, NPROC="5", **eight)[0]


def test_the_group_of_a_rank_is_read_from_the_config_and_its_overlay(tmp_path):
    config, overlay = tmp_path / "mine.yaml", tmp_path / "more.yaml"
    config.write_text("tensor_parallel_size: 2  # GPUs\n")
    overlay.write_text("tensor_parallel_size: 4\n")
    visible = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "SAMPLE_ONLY": "1"}
    for words, ranks in (((), 4), (("--overlay", str(overlay)), 2), ((f"--overlay={overlay}", "--samples", "2"), 2)):
        (line,) = printed("1.rejection_sampling.sh", str(config), *words, **visible)
        assert line.startswith(f"torchrun --standalone --nproc_per_node {ranks} "), words
    few = bash("1.rejection_sampling.sh", str(config), CUDA_VISIBLE_DEVICES="3", SAMPLE_ONLY="1")
    assert (few.returncode, few.stdout) == (2, "") and "a process takes 2 GPUs, and 1 are visible here" in few.stderr


@pytest.mark.parametrize("only", [["--check_data", "true"], ["--check_data=true"], ["--help"]])
def test_stage_1_does_not_train_when_it_was_asked_for_a_look_only(only):
    config = STAGES["1.rejection_sampling.sh"][0]
    assert printed("1.rejection_sampling.sh", config, *only, NPROC="2") == [f"python -m {SAMPLING} {' '.join(only)}"]


def test_stage_1_samples_only_where_it_is_told_to():
    (line,) = printed("1.rejection_sampling.sh", STAGES["1.rejection_sampling.sh"][0], SAMPLE_ONLY="1")
    assert line == f"python -m {SAMPLING}"


@pytest.mark.parametrize("script", STAGES)
def test_a_stage_without_a_config_prints_its_usage_and_fails(script):
    result = bash(script)
    assert result.returncode != 0 and not result.stdout
    assert f"usage: bash scripts/{script} CONFIG.yaml" in result.stderr


@pytest.mark.parametrize("script", STAGES)
def test_a_stage_says_that_its_config_is_not_there(script):
    result = bash(script, "configs/none.yaml")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no config file configs/none.yaml" in result.stderr


@pytest.mark.parametrize("script", STAGES)
def test_help_prints_how_a_stage_is_called(script):
    lines = printed(script, "--help")
    assert lines[0].startswith("Stage ")
    assert any(line.startswith(f"bash scripts/{script} configs/") for line in lines)


@pytest.mark.parametrize("script", STAGES)
def test_a_stage_works_from_another_directory(script, tmp_path):
    training(script, "python", cwd=tmp_path)  # a path from the repository root
    config = STAGES[script][0]
    beside = printed(script, Path(config).name, cwd=ROOT / "configs" / "toy")  # a path from here
    assert beside == printed(script, config) == printed(script, str(ROOT / config), cwd=tmp_path)
    mine = tmp_path / "mine.yaml"
    mine.write_text("")
    assert f"--config {mine}" in printed(script, "mine.yaml", cwd=tmp_path)[0]


def test_a_stage_stops_at_the_first_command_that_fails(tmp_path):
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\nexit 3\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path), "DRY_RUN": ""}
    result = bash("1.rejection_sampling.sh", STAGES["1.rejection_sampling.sh"][0], **environment)
    assert result.returncode == 3
    assert (tmp_path / "calls").read_text().count("\n") == 1


def cpu_seconds(*arguments):
    """CPU time of a fresh interpreter, the best of a few runs as the machine may be busy, and what it printed."""
    best = float("inf")
    for _ in range(3):
        before = os.times()
        result = subprocess.run([sys.executable, *arguments], check=False, cwd=ROOT, capture_output=True, text=True)
        after = os.times()
        assert result.returncode == 0, result.stderr
        used = after.children_user + after.children_system - before.children_user - before.children_system
        best = min(best, used)
    return best, result.stdout


@pytest.fixture(scope="module")
def bare():
    return cpu_seconds("-c", "pass")[0]


@pytest.mark.parametrize("name", RUNNABLE)
def test_help_is_quick_and_names_the_arguments(name, bare):
    seconds, text = cpu_seconds("-m", f"unifiedreward_think.{name}", "--help")
    assert seconds - bare <= 0.3
    assert not [flag for flag in ARGUMENTS.get(name, ["usage: "]) if flag not in text]


@pytest.mark.parametrize("name", RUNNABLE)
def test_help_loads_no_heavy_library(name):
    command = [sys.executable, "-X", "importtime", "-m", f"unifiedreward_think.{name}", "--help"]
    result = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "argparse" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "trl", "datasets", "deepspeed"})


def test_every_entry_point_a_user_types_is_there():
    assert ARGUMENTS.keys() <= set(RUNNABLE)
