# ruff: noqa: F811 - a fixture is imported
"""Faults put into training runs: each ends in a clear error or is recovered from, and the run goes on as before."""

import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.processes import forked
from helpers.stages import STAGES, call, changed_keys, interrupt, read_log  # noqa: F401 - a fixture
from unifiedreward_think.data.curation.split import split
from unifiedreward_think.data.shards import Part, ShardFolder
from unifiedreward_think.errors import InputError
from unifiedreward_think.in_use import LOCK
from unifiedreward_think.records import PreferenceRecord, Trace
from unifiedreward_think.training import grpo, sft
from unifiedreward_think.training.survival import checkpoints, faults
from unifiedreward_think.training.survival.faults import SaveWhenAsked, TrainingFault, rollout_steps
from unifiedreward_think.writing import OutputError

REPO = Path(__file__).parents[1]
SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


def trainer_of(stage):
    import trl

    return trl.SFTTrainer if stage is sft else trl.GRPOTrainer


def at_step(stage, number, fault, monkeypatch):
    """Call `fault(trainer, loss)` after training step `number` of this stage, counted from 1; it may return a loss."""
    trainer = trainer_of(stage)
    step, calls = trainer.training_step, []

    def training_step(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        calls.append(1)
        changed = fault(self, loss) if len(calls) == number else None
        return loss if changed is None else changed

    monkeypatch.setattr(trainer, "training_step", training_step)
    return calls


@pytest.fixture
def whole(call, tmp_path):
    """Return the folder of an undisturbed run."""

    def run(stage, **changes):
        return call(stage, **{**SAVING, **changes}).rename(tmp_path / "whole")

    return run


def goes_on_to(folder, call, stage, **changes):
    """Run the same command again and compare with the undisturbed run."""
    output = call(stage, **{**SAVING, **changes})
    assert not changed_keys(folder, output)
    for key in ("loss", "num_tokens"):
        assert [row[key] for row in read_log(output)] == [row[key] for row in read_log(folder)]


@pytest.mark.parametrize(
    ("stage", "number", "changes"),
    [
        (sft, signal.SIGUSR1, {}),
        (grpo, signal.SIGTERM, {}),
        (grpo, signal.SIGUSR1, {"shared_prefix": False}),
    ],
    ids=["sft", "grpo", "grpo stock"],
)
def test_a_signal_saves_after_its_step_and_ends_with_status_0(
    stage,
    number,
    changes,
    call,
    whole,
    tmp_path,
    monkeypatch,
    capsys,
):
    changes = {**changes, "save_strategy": "no"}  # nothing but the signal saves
    reference = whole(stage, **changes)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        calls = at_step(stage, 3, lambda *_: os.kill(os.getpid(), number), patch)
        with pytest.raises(SystemExit) as stop:
            call(stage, **{**SAVING, **changes})
    assert stop.value.code == 0 and len(calls) == 3  # no step more than the one in progress
    assert signal.getsignal(number) is before
    run = tmp_path / "run"
    assert not json.loads((run / "run.json").read_text())["finished"] and not (run / "model.safetensors").exists()
    assert f"stopped by a signal after step 3 of 4; the same command goes on from {run}/checkpoint-3" in (
        capsys.readouterr().out
    )
    goes_on_to(reference, call, stage, **changes)


def test_a_second_signal_ends_at_once():
    asked = SaveWhenAsked(1)
    with asked.listening():
        assert signal.getsignal(signal.SIGUSR1) == asked._note
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked.asked and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL == signal.getsignal(signal.SIGUSR1)


def test_in_grpo_a_signal_waits_for_the_end_of_the_rollout():
    args = SimpleNamespace(steps_per_generation=8, num_iterations=2, gradient_accumulation_steps=4, world_size=1)
    asked = SaveWhenAsked(rollout_steps(args))
    assert asked.every == 4 and rollout_steps(SimpleNamespace(gradient_accumulation_steps=16)) == 1
    asked.asked = True
    stops = []
    for step in range(1, 7):
        state = SimpleNamespace(global_step=step, max_steps=6)
        control = asked.on_step_end(args, state, SimpleNamespace(should_save=False, should_training_stop=False))
        stops.append(control.should_training_stop and control.should_save)
    assert stops == [False, False, False, True, False, True]


def test_a_model_folder_of_a_run_that_was_stopped_is_refused(call, tmp_path):
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "run.json").write_text('{"finished": false}')
    with pytest.raises(InputError, match="stopped: its run is not finished; run its command again"):
        call(sft, model_name_or_path=str(tmp_path / "stopped"))


@STAGES
def test_a_half_written_checkpoint_is_passed_over(stage, call, whole, tmp_path, monkeypatch, capsys):
    reference = whole(stage, save_steps=1)
    with monkeypatch.context() as patch:
        interrupt(trainer_of(stage), 3, patch)
        with pytest.raises(KeyboardInterrupt):
            call(stage, **{**SAVING, "save_steps": 1})
    newest = tmp_path / "run" / "checkpoint-3"
    file = newest / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:1000])
    capsys.readouterr()
    goes_on_to(reference, call, stage, save_steps=1)
    said = capsys.readouterr().err
    assert f"{newest} is passed over: optimizer.pt has 1000 bytes of" in said
    assert f"going on from {tmp_path / 'run' / 'checkpoint-2'}" in said


def test_a_full_disk_while_saving_keeps_the_checkpoint_before_and_says_so(call, whole, tmp_path, monkeypatch):
    reference = whole(sft)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        fill = (100_000, limits[1])
        at_step(sft, 3, lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, fill), patch)
        try:
            with pytest.raises(OutputError, match=r"checkpoint-4: cannot be written .* goes on from .*checkpoint-2"):
                call(sft, **SAVING)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    goes_on_to(reference, call, sft)


TORCH_SAYS = "[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError(TORCH_SAYS)])
def test_what_libraries_say_of_a_full_disk_is_told_as_one_error(error, tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    fault = faults.fault_of(error, 4, tmp_path)
    assert isinstance(fault, OutputError)
    assert re.search(r"checkpoint-4: cannot be written .*Free some space.*from the start: no checkpoint", str(fault))
    assert not (tmp_path / "checkpoint-4").exists()


def test_another_error_while_saving_and_an_error_after_it_stay_what_they_are(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    assert faults.fault_of(RuntimeError("a bug"), 4, tmp_path) is None
    checkpoints.seal(tmp_path / "checkpoint-4", {})
    assert faults.fault_of(OSError(28, "No space left on device"), 4, tmp_path) is None
    assert (tmp_path / "checkpoint-4").exists()


def test_a_step_that_is_saved_is_logged_so_that_a_spoilt_gradient_is_in_no_checkpoint(call, tmp_path, monkeypatch):
    at_step(sft, 2, spoil, monkeypatch)
    with pytest.raises(TrainingFault, match=r"step 2: the gradient norm is (nan|inf).*the start: no checkpoint"):
        call(sft, **SAVING, logging_steps=3)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_what_a_killed_run_has_left_of_a_checkpoint_is_not_in_the_one_of_the_next_run(call, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(trainer_of(sft), 2, patch)
        with pytest.raises(KeyboardInterrupt):
            call(sft, **SAVING)
    (tmp_path / "run" / "checkpoint-4" / "global_step4").mkdir(parents=True)
    call(sft, **SAVING)
    assert not (tmp_path / "run" / "checkpoint-4" / "global_step4").exists()


def test_only_so_many_checkpoints_stay_as_save_total_limit_says(call, tmp_path):
    output = call(sft, **{**SAVING, "save_steps": 1, "save_total_limit": 2})
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    assert json.loads((output / "run.json").read_text())["arguments"]["save_total_limit"] == 2


@STAGES
def test_a_picture_that_disappears_is_named_and_the_run_goes_on_when_it_is_back(
    stage,
    call,
    whole,
    toy_data,
    tmp_path,
    monkeypatch,
):
    shutil.copytree(toy_data, tmp_path / "data")
    split = {sft: "cold_start.jsonl", grpo: "train.jsonl"}[stage]
    data = {"train_files": [str(tmp_path / "data" / split)], "frame_cache": str(tmp_path / "data" / "frames")}
    reference = whole(stage, **data)
    media = tmp_path / "data" / "media"
    with monkeypatch.context() as patch:
        at_step(stage, 2, lambda *_: shutil.move(media, tmp_path / "away") and None, patch)  # the end of an epoch
        with pytest.raises(TrainingFault, match=r"disappeared.*\.png.*Put it back; .* goes on from .*checkpoint-2"):
            call(stage, **SAVING, **data)
    (tmp_path / "away").rename(media)
    goes_on_to(reference, call, stage, **data)


def test_a_part_of_the_data_that_disappears_is_named_and_the_split_goes_on_when_it_is_back(tmp_path):
    folder = ShardFolder(tmp_path / "in", {})
    for number in range(4):
        names = [f"{tmp_path}/{number}-{side}.png" for side in "ab"]
        record = PreferenceRecord(
            id=str(number), task="image_generation", prompt=f"p{number}", media=((names[0],), (names[1],)), preferred=1
        )
        folder.write(Part(rows=[Trace(record=record)]), 1)
    folder.finish({})
    reference = split([tmp_path / "in"], tmp_path / "whole", parts=[1, 1, 1])
    part = tmp_path / "in" / "part-00002.parquet"
    part.rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"part-00002\.parquet: not there"):
        split([tmp_path / "in"], tmp_path / "out", parts=[1, 1, 1])
    (tmp_path / "away").rename(part)
    assert split([tmp_path / "in"], tmp_path / "out", parts=[1, 1, 1]) == reference


@STAGES
def test_a_loss_that_is_no_number_stops_before_anything_is_saved(stage, call, whole, tmp_path, monkeypatch):
    reference = whole(stage)
    with monkeypatch.context() as patch:
        at_step(stage, 4, lambda _, loss: loss * float("nan"), patch)
        with pytest.raises(TrainingFault, match=r"step 4: the loss is nan\. Lower .* goes on from .*checkpoint-2"):
            call(stage, **SAVING)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    goes_on_to(reference, call, stage)


def spoil(trainer, _):
    """Let the gradient of one weight be infinite."""
    weight = next(weight for weight in trainer.model.parameters() if weight.grad is not None)
    weight.grad[:] = float("inf")


def test_a_gradient_that_is_no_number_stops_the_run(call, monkeypatch):
    at_step(sft, 1, spoil, monkeypatch)
    with pytest.raises(TrainingFault, match=r"step 1: the gradient norm is (nan|inf).*the start: no checkpoint"):
        call(sft, **SAVING)


def test_rewards_that_never_differ_are_told_with_cause_and_mend(call, capsys):
    call(grpo, max_steps=3, health_window=2)  # nothing that a random model writes earns anything
    said = capsys.readouterr().err
    assert said.count("frac_reward_zero_std is 1, should be <= 0.8. Likely: nearly all groups earn one reward") == 1
    assert "health, step 2: frac_reward_zero_std" in said and "raise num_generations or temperature" in said


def test_a_run_killed_while_it_starts_or_deletes_is_still_known_as_ours(call, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json.new").write_text("{")  # killed while the first file was written
    monkeypatch.setattr(sft, "train", lambda *_: None)
    call(sft)
    (folder / "checkpoint-1").mkdir()
    removed, remove = [], shutil.rmtree

    def killed(path, *args, **kwargs):
        removed.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        call(sft, "--resume", "never", "--overwrite", "true")
    monkeypatch.setattr(shutil, "rmtree", remove)
    assert removed and (folder / "run.json").exists()
    call(sft, "--resume", "never", "--overwrite", "true")
    assert {path.name for path in folder.iterdir()} - {LOCK} == {"run.json"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"orders": "bth"}, "config.yaml: orders is 'bth'; expected one or both"),
        ({"limit": [1]}, r"config.yaml: limit is \[1\]; expected int | None"),
        ({"train_files": "a.jsonl"}, "config.yaml: train_files is 'a.jsonl'; expected list"),
        ({"save_only_model": True}, "save_only_model: no run could go on"),
    ],
)
def test_a_config_value_that_cannot_mean_what_it_says_is_refused(changes, said, call):
    with pytest.raises((InputError, SystemExit), match=said.replace("|", r"\|")):
        call(sft, **changes)


def test_kills_py_counts_what_was_killed_and_survived(tmp_path):
    report = tmp_path / "kills.json"
    work = ["--work", tmp_path / "work", "--output", report]
    forked(tmp_path, "scripts/bench/kills.py", "--kills", 2, "--stages", "import", "split", *work)
    for row in json.loads(report.read_text())["stages"].values():
        assert (row["kills"], row["survived"], row["problems"]) == (2, 2, [])


@pytest.mark.slow
def test_two_ranks_stop_together_survive_a_dead_rank_and_go_on_as_one_process(tmp_path):
    """What a run of two ranks does when one of them is asked to stop, and when one of them dies."""
    said = json.loads(forked(tmp_path, "tests/helpers/other_ranks.py", tmp_path).splitlines()[-1])
    assert said["asked"] == [0, 0]  # both, though one got the signal
    assert said["one process"] == [0]
    assert said["losses"] == pytest.approx(said["undisturbed"], abs=1e-4)
    left, dead = said["one dead"]
    assert dead == -signal.SIGKILL and left not in (0, None)  # it ends by itself, with an error
    assert said["again"] == [0, 0] and said["logged again"] == said["logged undisturbed"]
    assert torch.tensor(said["losses"]).isfinite().all()
