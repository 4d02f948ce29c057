"""What a training run does when something goes wrong: each fault ends in a clear error or is recovered from.

| fault | outcome |
|---|---|
| SIGTERM or SIGUSR1 | the next step that a run can go on from is saved, and the process ends with status 0 |
| a kill while a checkpoint is written | the next run passes it over and takes the one before |
| the disk is full while a checkpoint is written | error; the half checkpoint is removed, the ones before stay |
| a file of the data disappears | error that names it |
| the vLLM server goes away | error; the same command goes on from the last checkpoint |
| the loss or the gradient is no number | error before it is saved |
| rewards that no longer differ, and other sickness | warning with cause and fix: `bands.py`, docs/health.md |
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from requests import RequestException
from safetensors import SafetensorError
from transformers import TrainerCallback

from unifiedreward_think.errors import InputError, MediaError
from unifiedreward_think.interrupts import kept
from unifiedreward_think.terminal import say
from unifiedreward_think.training.survival import checkpoints
from unifiedreward_think.writing import OutputError

ASKED_BY = (signal.SIGTERM, signal.SIGUSR1)
# How torch.save words what the operating system said, which it does not pass on.
TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "inline_container", "unexpected pos", "file write failed")


class TrainingFault(InputError):
    """Training cannot go on; the message says why, from where the same command goes on, and the fix."""


class FaultTolerant:
    """Trainer mixin: see the module. It comes first among the bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        self._asked = SaveWhenAsked(rollout_steps(trainer.args))
        trainer.add_callback(self._asked)
        trainer.add_callback(SealCheckpoints(trainer.args.save_total_limit))
        trainer.args.save_total_limit = None  # transformers would delete older ones before the new one is sealed

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See transformers; ends the process with status 0 when a signal stopped the run before its end.

        Raises:
            TrainingFault: see the module.
            OutputError: a checkpoint cannot be written.
            SystemExit: a signal stopped the run.
        """
        trainer: Any = self
        try:
            with kept(self._stands), self._asked.listening():
                result = super().train(*args, **kwargs)  # type: ignore[misc]
        except (OSError, MediaError, SafetensorError, RuntimeError) as error:
            if fault := fault_of(error, trainer.state.global_step, Path(trainer.args.output_dir)):
                raise fault from error
            raise
        state = trainer.state
        if self._asked.stopping and state.global_step < state.max_steps:
            if trainer.is_world_process_zero():
                going_on = goes_on(Path(trainer.args.output_dir))
                say(f"stopped by a signal after step {state.global_step} of {state.max_steps}; {going_on}")
            raise SystemExit(0)
        return result

    def _stands(self) -> str:
        trainer: Any = self
        return f"step {trainer.state.global_step} was done; {goes_on(Path(trainer.args.output_dir))}"

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See transformers, which would log the mean of the losses before in place of one that is no number."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        must_be_finite("loss", loss, trainer.state.global_step + 1, Path(trainer.args.output_dir))
        return loss


def goes_on(folder: Path) -> str:
    """Return from where the same command goes on."""
    checkpoint, _ = checkpoints.newest(folder)
    return f"the same command goes on from {checkpoint or 'the start: no checkpoint was saved yet'}"


def must_be_finite(name: str, value: torch.Tensor, step: int, folder: Path) -> None:
    """Raise TrainingFault where a loss or a gradient is no number."""
    if not torch.isfinite(value).all():
        raise TrainingFault(
            f"step {step}: the {name} is {value.float().mean().item()}. Lower learning_rate or max_grad_norm, train in "
            f"bfloat16 rather than float16, and look at the rows of this step; {goes_on(folder)}"
        )


def fault_of(error: Exception, step: int, folder: Path) -> InputError | None:
    """Return what an error in training says to the user, None where it is no fault of ours to explain.

    A checkpoint of this step without its seal is one that could not be written: it is removed.
    """
    checkpoint = folder / f"{checkpoints.PREFIX}{step}"
    cannot_write = not isinstance(error, RuntimeError) or any(words in str(error) for words in TORCH_CANNOT_WRITE)
    if cannot_write and checkpoint.is_dir() and checkpoints.flaw(checkpoint):
        free = shutil.disk_usage(folder).free
        shutil.rmtree(checkpoint, ignore_errors=True)
        return OutputError(
            f"{checkpoint}: cannot be written ({str(error).splitlines()[0]}); {free / 1e9:.1f} GB of the disk were "
            f"free. Free some space, or lower save_total_limit; {goes_on(folder)}"
        )
    told = {
        FileNotFoundError: f"a file disappeared while training at step {step}: {error}. Put it back",
        RequestException: f"a server was lost at step {step}: {error}. Start the vLLM server again",
    }
    causes = (error, error.__cause__)  # a picture that is gone is a MediaError with the reason behind it
    text = next((text for kind, text in told.items() if any(isinstance(one, kind) for one in causes)), None)
    return TrainingFault(f"{text}; {goes_on(folder)}") if text else None


class SealCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Seal each checkpoint when all processes have written it, and only then delete older ones.

    transformers logs before it saves, so a gradient that is no number is seen before it is in a checkpoint.

    Args:
        keep: how many checkpoints stay; all without it.
    """

    def __init__(self, keep: int | None) -> None:
        self.keep = keep

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Remove what a killed run has left of this step's checkpoint; log the step if it is saved."""
        if args.should_save:
            checkpoints.discard(self._checkpoint(args, state))
        return self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Log the step if it is saved."""
        control.should_log = control.should_log or control.should_save or control.should_evaluate
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Stop at a gradient that is no number; float16 finds its scale by such steps, and leaves them out."""
        if not args.fp16:
            norm = torch.as_tensor(logs.get("grad_norm", 0.0))
            must_be_finite("gradient norm", norm, state.global_step, Path(args.output_dir))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal the checkpoint that was written."""
        args.distributed_state.wait_for_everyone()
        if args.should_save:
            checkpoints.seal(self._checkpoint(args, state), checkpoints.run_shape(args))
            if self.keep:
                checkpoints.rotate(Path(args.output_dir), self.keep, state.best_model_checkpoint)
        args.distributed_state.wait_for_everyone()  # no process takes it for one that could not be written

    def _checkpoint(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir, f"{checkpoints.PREFIX}{state.global_step}")


def rollout_steps(args: Any) -> int:
    """Return after how many optimizer steps a run can be resumed: 1, or the steps on one rollout of GRPO."""
    rollout = getattr(args, "steps_per_generation", 1) * getattr(args, "num_iterations", 1)
    return max(1, int(rollout) // int(args.gradient_accumulation_steps))


class SaveWhenAsked(TrainerCallback):  # type: ignore[misc]
    """Save and stop after the step in which any process got a signal; in GRPO after the last step on its rollout.

    Args:
        every: only after a multiple of this many steps.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.asked = self.stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals of ASKED_BY within the block; a second one ends the process at once."""
        self.asked = self.stopping = False
        before = {number: signal.signal(number, self._note) for number in ASKED_BY}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        say(f"{signal.Signals(number).name}: saving after the step in progress; once more ends at once")
        self.asked = True
        for each in ASKED_BY:
            signal.signal(each, signal.SIG_DFL)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Save and stop, all processes after the same step."""
        if self._any_asked(args) and (state.global_step % self.every == 0 or state.global_step >= state.max_steps):
            self.stopping = True
            control.should_save = control.should_training_stop = True
        return control

    def _any_asked(self, args: Any) -> bool:
        if args.world_size == 1:
            return self.asked
        flag = torch.tensor(float(self.asked), device=args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())
