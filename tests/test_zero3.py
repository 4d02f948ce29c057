"""Two ranks and two nodes through the real scripts: ZeRO-3 trains, saves, resumes and samples as one process does."""

import json
import re
import shutil
import sys
import time

import psutil
import pytest
import torch

from helpers.processes import PATIENCE, REPO, checked, free_port, started
from helpers.stages import (
    changed_keys,
    check_output,
    common,
    data_arguments,
    mean_token,
    read_log,
    shapes,
    train_grpo,
    train_sft,
    weights,
)
from unifiedreward_think.training import rejection_sampling
from unifiedreward_think.training.memory.architecture import load_architecture
from unifiedreward_think.training.memory.estimate import plan
from unifiedreward_think.training.memory.job import make_job
from unifiedreward_think.training.survival.checkpoints import flaw, read_seal

DEEPSPEED = "configs/deepspeed/zero3_cpu.json"
# What vLLM makes of the names in a Qwen2.5-VL checkpoint (`hf_to_vllm_mapper` in its models/qwen2_5_vl.py),
# and the modules that the names must then lead to.
VLLM_PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.": "language_model.model.",
}
VLLM_MODULES = (
    *("visual.patch_embed.", "visual.blocks.", "visual.merger.", "language_model.lm_head."),
    *(f"language_model.model.{part}." for part in ("embed_tokens", "layers", "norm")),
)


def two_nodes():
    """The variables of two nodes that are both this machine."""
    shared = {"NNODES": "2", "NPROC": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [{**shared, "NODE_RANK": rank} for rank in "01"]


def vllm_name(name):
    for prefix, new in VLLM_PREFIXES.items():
        if name.startswith(prefix):
            name = new + name.removeprefix(prefix)
    return name


@pytest.mark.slow
def test_names_and_shapes_of_all_weights_survive_a_load_under_zero3(models, tmp_path):
    checked([sys.executable, "tests/helpers/zero3_keys.py", tmp_path, *models.values()], MASTER_PORT=free_port())
    found = json.loads((tmp_path / "keys.json").read_text())
    for family, source in models.items():
        assert found[f"{source} ours"]["shapes"] == {name: list(shape) for name, shape in shapes(source).items()}, (
            family
        )
        assert found[f"{source} stock"]["shapes"].keys() != shapes(source).keys(), family
        assert found[f"{source} ours"]["frozen"] > 10_000  # numel() of a partitioned parameter is 0


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE)
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_zero3_on_two_ranks_equals_one_process(stage, models, toy_data, tmp_path, monkeypatch):
    source, data = models["qwen2_5_vl"], data_arguments(toy_data, "cold_start" if stage == "sft" else "train")
    own = {"prompts": data.prompts, "frames": 8, "frame_cache": data.frame_cache, "limit": 4, "dtype": "float32"}
    own |= {"model_name_or_path": str(source), "train_files": data.train_files, "output_dir": str(tmp_path / "two")}
    own |= common(learning_rate=1e-4, per_device_train_batch_size=2)
    if stage == "sft":
        own |= {"max_length": None}
        log = train_sft(source, toy_data, tmp_path / "one", learning_rate=1e-4)
    else:
        monkeypatch.setattr(torch, "multinomial", torch.multinomial)  # the import changes it: put it back afterwards
        from helpers import second_choice

        torch.multinomial = second_choice.pick  # an import that another test has done changes nothing
        own |= {"beta": 0.04, "num_generations": 2, "max_completion_length": 8}
        own |= {"reward_funcs": ["helpers.second_choice.mean_token"]}
        log = train_grpo(source, toy_data, tmp_path / "one", rewards=[mean_token], learning_rate=1e-4)
        assert all(row["reward_std"] > 0 and row["grad_norm"] > 0.1 for row in log)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(own))  # JSON is YAML
    script = {"sft": "scripts/0.cold_start.sh", "grpo": "scripts/grpo.sh"}[stage]
    command = ["bash", script, config, "--deepspeed", DEEPSPEED]
    command += ["--save_strategy", "steps", "--save_steps", "1"]
    two = tmp_path / "two"
    checked(command, NPROC="2")
    check_output(two, source)
    assert not [key for key in changed_keys(source, two) if "visual." in key]
    ranks = read_log(two)
    for key in ("loss", "grad_norm", *(("kl", "reward") if stage == "grpo" else ())):
        assert [row[key] for row in ranks] == pytest.approx([row[key] for row in log], abs=1e-4, rel=1e-4), key
    one, after = weights(tmp_path / "one"), weights(two)
    assert all(torch.allclose(one[key], after[key], atol=1e-4) for key in one)
    for step in ("checkpoint-1", "checkpoint-2"):  # gathered from the ranks
        assert set(weights(two / step)) == set(one) and all(vllm_name(key).startswith(VLLM_MODULES) for key in one)
    assert all(tensor.equal(after[key]) for key, tensor in weights(two / "checkpoint-2").items())

    job = make_job({**own, "max_pixels": 1024, "deepspeed": str(REPO / DEEPSPEED)}, 2)
    planned = plan(load_architecture(str(source)), job).always["optimizer"]
    assert optimizer_bytes(two / "checkpoint-2") == pytest.approx(planned, rel=0.01)  # padded to even sizes

    shape = {"processes": 2, "rows a step": 4, "rows a rollout": 4 if stage == "grpo" else None}
    check_seals(two, {**shape, "optimizer in pieces": True})
    before = logged(two)
    seen = damaged_by_a_kill(two) if stage == "sft" else spoilt(two, command)
    said = checked(command, NPROC="2")
    assert seen in said and f"going on from {two / 'checkpoint-1'}" in said
    again = weights(two)
    assert logged(two) == before
    assert all(again[key].equal(after[key]) for key in after)


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("peft", ["false", "true"])
def test_grpo_starts_from_an_adapter_under_zero3(peft, models, toy_data, tmp_path):
    """Its reference is the merged start, not the base; one process gives the same."""
    lora = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0}
    train_sft(models["qwen2_5_vl"], toy_data, tmp_path / "sft", lora=lora, learning_rate=1e-2)
    start, data = tmp_path / "sft" / "adapter", data_arguments(toy_data, "train")
    own = {"beta": 0.04, "num_generations": 2, "max_completion_length": 8, "learning_rate": 1e-4}
    own |= {"reward_funcs": ["helpers.second_choice.mean_token"], "lora_r": 4, "model_name_or_path": str(start)}
    own |= {"train_files": data.train_files, "prompts": data.prompts, "frames": 8, "limit": 4}
    own |= {"frame_cache": data.frame_cache, "dtype": "float32", "output_dir": str(tmp_path / "two")}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({**common(), **own, "per_device_train_batch_size": 2}))
    checked(["bash", "scripts/grpo.sh", config, "--deepspeed", DEEPSPEED, "--use_peft", peft], NPROC="2")
    log = read_log(tmp_path / "two")
    assert log[0]["kl"] == pytest.approx(0, abs=1e-5) and log[0]["grad_norm"] > 0.01
    assert changed_keys(tmp_path / "sft", tmp_path / "two")
    assert (tmp_path / "two" / "start").is_dir() == (peft == "true")


def logged(folder):
    """The log but for the tokens that were read: TRL's SFT counts them from the start of a process."""
    return [{**row, "num_tokens": 0} for row in read_log(folder)]


def optimizer_bytes(checkpoint):
    """What the optimizer of rank 0 holds: a copy of its share of the weights, and their moments."""
    state = torch.load(checkpoint / shard(checkpoint, 0), weights_only=False)["optimizer_state_dict"]
    moments = [value for own in state["optimizer_state_dict"]["state"].values() for value in own.values()]
    return sum(tensor.nbytes for tensor in [*state["fp32_flat_groups"], *moments] if tensor.ndim)


def check_seals(run, shape):
    """Each checkpoint is sealed whole, with what both ranks have written of it."""
    for step in (1, 2):
        checkpoint = run / f"checkpoint-{step}"
        assert not flaw(checkpoint)
        seal = read_seal(checkpoint)
        assert {key: seal[key] for key in shape} == shape
        pieces = [f"global_step{step}/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(2)]
        pieces += [f"rng_state_{rank}.pth" for rank in range(2)] + [shard(checkpoint, rank) for rank in range(2)]
        assert {*pieces, "model.safetensors"} <= seal["files"].keys()


def shard(checkpoint, rank):
    """The file with a rank's piece of the optimizer, as the seal names it."""
    (file,) = checkpoint.glob(f"global_step*/*pp_rank_{rank}_*optim_states.pt")
    return str(file.relative_to(checkpoint))


def damaged_by_a_kill(run):
    """Leave what a kill in the second step leaves, with half of what rank 1 writes; return what the next run says."""
    name = shard(run / "checkpoint-2", 1)
    piece = run / "checkpoint-2" / name
    whole = piece.read_bytes()
    piece.write_bytes(whole[: len(whole) // 2])
    for file in run.iterdir():
        if file.is_file() and file.name != "run.json":
            file.unlink()
    said = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**said, "finished": False}))
    return f"checkpoint-2 is passed over: {name} has {len(whole) // 2} bytes of {len(whole)}"


def spoilt(run, command):
    """Run again with a gradient of rank 1 that is no number in the second step; return what the next run says."""
    shutil.rmtree(run)
    said = checked(command, fails=True, NPROC="2", SPOIL_STEP="2")
    assert re.search(r"error: step 2: the gradient norm is (nan|inf)\. Lower learning_rate", said), said[-6000:]
    assert f"the same command goes on from {run / 'checkpoint-1'}" in said
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"] and not flaw(run / "checkpoint-1")
    assert not json.loads((run / "run.json").read_text())["finished"]
    return f"going on from {run / 'checkpoint-1'}"


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE)
def test_sampling_survives_a_killed_rank_and_goes_on_as_two_nodes(models, toy_data, tmp_path, monkeypatch):
    """Stage 1 as a user runs it: sampling, killed and started again, then ZeRO-3 training on both nodes."""
    config, output = REPO / "configs" / "toy" / "rejection_sampling.yaml", tmp_path / "sampling"
    data = {"--model_name_or_path": models["qwen2_5_vl"], "--frame_cache": toy_data / "frames", "--frames": 4}
    sampling = {**data, "--train_files": toy_data / "train.jsonl", "--output_dir": output, "--batch_size": 1}
    sampling = words(sampling | {"--samples": 2, "--max_new_tokens": 32, "--orders": "both"})
    with monkeypatch.context() as patch:
        patch.chdir(REPO)
        patch.setattr(sys, "argv", ["rejection_sampling", "--config", str(config), *sampling])
        rejection_sampling.main()
    whole = {name: (output / name).read_bytes() for name in ("kept.jsonl", "hard.jsonl", "manifest.json")}
    judgments = told(output)
    shutil.rmtree(output)

    script = ["bash", "scripts/1.rejection_sampling.sh", config, *sampling]
    part = output / "judgments.jsonl.rank1"
    with started(script, NPROC="2", SAMPLE_ONLY="1") as process:
        wait_for(lambda: part.exists() and part.stat().st_size, process)
        kill_rank(1, process)
        process.communicate(timeout=PATIENCE)
    assert process.returncode != 0 and not (output / "manifest.json").exists()
    assert 0 < sum(len(path.read_text().splitlines()) for path in output.glob("judgments*.rank*")) < len(judgments)

    sft = {**data, "--train_files": toy_data / "cold_start.jsonl", "--output_dir": tmp_path / "sft"}
    sft |= {"--deepspeed": "configs/deepspeed/zero3_offload.json", "--per_device_train_batch_size": 4}
    sft |= {"--max_steps": 2, "--logging_steps": 1}
    checked([*script, "--", *words(sft)], *two_nodes())
    assert {name: (output / name).read_bytes() for name in whole} == whole
    assert told(output) == judgments and not list(output.glob("judgments*.rank*"))
    assert json.loads((tmp_path / "sft" / "run.json").read_text())["finished"]
    assert len(read_log(tmp_path / "sft")) == 2


def words(flags):
    return [str(word) for flag in flags.items() for word in flag]


def told(folder):
    """The stored judgments, without the time they took."""
    return [{**json.loads(line), "seconds": 0} for line in (folder / "judgments.jsonl").read_text().splitlines()]


def wait_for(there, process):
    """Wait until a launch has come so far."""
    while not there():
        assert process.poll() is None, process.communicate()[0][-9000:]
        time.sleep(0.005)


def kill_rank(rank, launch):
    """Kill one of the processes that torchrun has started."""
    for process in psutil.Process(launch.pid).children(recursive=True):
        if process.environ().get("RANK") == str(rank):
            process.kill()
            return
    pytest.fail(f"there is no rank {rank}")
