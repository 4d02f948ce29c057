"""Which checkpoint a run goes on from: seals, half-written folders, rotation, other numbers of processes."""

import json
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unifiedreward_think.training.survival.checkpoints import (
    SEAL,
    by_step,
    flaw,
    misfit,
    newest,
    rotate,
    run_shape,
    seal,
)

ONE = {"processes": 1, "rows a step": 8, "rows a rollout": 16, "optimizer in pieces": False}


def make(folder, step, *, whole=True, shape=ONE):
    """Write a checkpoint as a trainer does; `whole` seals it."""
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "deep").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"w" * 100)
    (checkpoint / "deep" / "optimizer.pt").write_bytes(b"o" * 50)
    if whole:
        seal(checkpoint, shape)
    return checkpoint


def test_the_newest_checkpoint_counts_by_its_step_and_not_by_its_name(tmp_path):
    for step in (2, 10, 9):
        make(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert [path.name for path in by_step(tmp_path)] == ["checkpoint-10", "checkpoint-9", "checkpoint-2"]
    assert newest(tmp_path) == (tmp_path / "checkpoint-10", [])
    assert newest(tmp_path / "nothing") == (None, [])


def test_a_checkpoint_without_its_seal_is_passed_over_by_name(tmp_path):
    kept = make(tmp_path, 2)
    make(tmp_path, 4, whole=False)
    found, passed_over = newest(tmp_path)
    assert found == kept
    assert passed_over == [f"{tmp_path}/checkpoint-4 is passed over: it was not finished (no {SEAL})"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(name=st.sampled_from(["model.safetensors", "deep/optimizer.pt"]), size=st.integers(-1, 99))
def test_a_file_cut_at_any_byte_or_gone_is_noticed(tmp_path, name, size):
    shutil.rmtree(tmp_path / "checkpoint-1", ignore_errors=True)
    checkpoint = make(tmp_path, 1)
    assert flaw(checkpoint) == ""
    file = checkpoint / name
    data = file.read_bytes()
    if size < 0:
        file.unlink()
        assert flaw(checkpoint) == f"{name} is missing"
    elif size < len(data):
        file.write_bytes(data[:size])
        assert flaw(checkpoint) == f"{name} has {size} bytes of {len(data)}"


def test_old_checkpoints_go_but_never_the_only_whole_one_nor_the_best(tmp_path):
    for step in (1, 2, 3):
        make(tmp_path, step)
    make(tmp_path, 5, whole=False)
    rotate(tmp_path, 1, best=str(tmp_path / "checkpoint-1"))
    assert [path.name for path in by_step(tmp_path)] == ["checkpoint-3", "checkpoint-1"]
    (tmp_path / "checkpoint-3" / "model.safetensors").write_bytes(b"")  # damaged: it does not count among the kept
    rotate(tmp_path, 1, best=None)
    assert [path.name for path in by_step(tmp_path)] == ["checkpoint-1"]


def test_another_number_of_processes_needs_steps_of_as_many_rows(tmp_path):
    checkpoint = make(tmp_path, 4)
    assert misfit(checkpoint, ONE) == "" == misfit(checkpoint, {**ONE, "rows a step": 4})
    assert misfit(checkpoint, {**ONE, "processes": 2}) == ""
    assert "with 4 rows a step instead of 8: change" in misfit(checkpoint, {**ONE, "processes": 2, "rows a step": 4})
    assert "rows a rollout instead of 16" in misfit(checkpoint, {**ONE, "processes": 2, "rows a rollout": 32})


def test_an_optimizer_in_pieces_fits_its_number_of_processes_only(tmp_path):
    pieces = {**ONE, "processes": 8, "optimizer in pieces": True}
    checkpoint = make(tmp_path, 4, shape=pieces)
    assert misfit(checkpoint, pieces) == ""
    problem = misfit(checkpoint, {**pieces, "processes": 4})
    assert "was saved by 8 processes, and this run has 4: the optimizer is stored in 8 pieces. Start 8" in problem
    assert f"--model_name_or_path {checkpoint}" in problem


@pytest.mark.parametrize(("deepspeed", "pieces"), [(None, False), ("zero3.json", True)])
def test_the_shape_of_a_run_counts_rows_over_all_processes(deepspeed, pieces, tmp_path):
    args = SimpleNamespace(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        world_size=4,
        generation_batch_size=8,
        deepspeed=deepspeed,
        fsdp=None,
    )
    shape = run_shape(args)
    assert shape == {"processes": 4, "rows a step": 24, "rows a rollout": 8, "optimizer in pieces": pieces}
    assert json.loads((make(tmp_path, 1, shape=shape) / SEAL).read_text())["rows a step"] == 24
