"""What a training run does when something goes wrong: each fault ends in a clear error or is recovered from.

| fault | outcome |
|---|---|
| SIGTERM or SIGUSR1 | the next step that a run can go on from is saved, and the process ends with status 0 |
| a kill while a checkpoint is written | the next run passes it over and takes the one before |
| the disk is full while a checkpoint is written | error; the half checkpoint is removed, the ones before stay |
| a file of the data disappears | error that names it |
| the vLLM server goes away | error; the same command goes on from the last checkpoint |
| the loss or the gradient is no number | error before anything is saved |
| rewards that no longer differ, and other sickness | warning with cause and mend: `bands.py`, docs/health.md |
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

from unifiedreward_think.errors import InputError
from unifiedreward_think.training.survival import checkpoints
from unifiedreward_think.writing import OutputError

ASKED_BY = (signal.SIGTERM, signal.SIGUSR1)
# How torch.save words what the operating system said, which it does not pass on.
TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "inline_container", "unexpected pos", "file write failed")


class TrainingFault(InputError):
    """Training cannot go on; the message says why, from where the same command goes on, and the mend."""


class FaultTolerant:
    """Trainer mixin: see the module. It comes first among the bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        self._asked = SaveWhenAsked(rollout_steps(trainer.args))
        trainer.add_callback(self._asked)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See transformers; ends the process with status 0 when a signal stopped the run before its end.

        Raises:
            TrainingFault: see the module.
            SystemExit: a signal stopped the run.
        """
        trainer: Any = self
        try:
            with self._asked.listening():
                result = super().train(*args, **kwargs)  # type: ignore[misc]
        except FileNotFoundError as error:
            raise TrainingFault(
                f"a file disappeared while training at step {trainer.state.global_step}: {error}. Put it back; "
                + self._goes_on()
            ) from error
        except RequestException as error:
            raise TrainingFault(
                f"a server was lost at step {trainer.state.global_step}: {error}. Start the vLLM server again; "
                + self._goes_on()
            ) from error
        state = trainer.state
        if self._asked.stopping and state.global_step < state.max_steps:
            if trainer.is_world_process_zero():
                print(f"stopped by a signal after step {state.global_step} of {state.max_steps}; {self._goes_on()}")
            trainer.end()
            raise SystemExit(0)
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See transformers, which would log the mean of the losses before in place of one that is no number."""
        trainer: Any = self
        # TRL's SFT logs a count of tokens that begins afresh on resume; the state is what a checkpoint keeps.
        trainer._total_train_tokens = max(trainer._total_train_tokens, trainer.state.num_input_tokens_seen)
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._must_be_finite("loss", loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        if norm is not None and not trainer.args.fp16:  # float16 finds its scale by such steps, and leaves them out
            self._must_be_finite("gradient norm", torch.as_tensor(norm))
        return norm

    def _must_be_finite(self, name: str, value: torch.Tensor) -> None:
        if not torch.isfinite(value).all():
            trainer: Any = self
            raise TrainingFault(
                f"step {trainer.state.global_step + 1}: the {name} is {value.float().mean().item()}. Lower "
                "learning_rate or max_grad_norm, train in bfloat16 rather than float16, and look at the rows of this "
                f"step; {self._goes_on()}"
            )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        folder = Path(trainer.args.output_dir)
        checkpoint = folder / f"{checkpoints.PREFIX}{trainer.state.global_step}"
        if trainer.args.should_save and checkpoint.exists():
            shutil.rmtree(checkpoint)  # what a killed run has left of it
        trainer.accelerator.wait_for_everyone()
        if trainer.args.include_num_input_tokens_seen == "no":  # nobody else counts there
            trainer.state.num_input_tokens_seen = max(trainer.state.num_input_tokens_seen, trainer._total_train_tokens)
        # Older checkpoints are deleted below, once the new one is sealed.
        keep, trainer.args.save_total_limit = trainer.args.save_total_limit, None
        try:
            with removed_on_full_disk(checkpoint, self._goes_on):
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            trainer.args.save_total_limit = keep
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            checkpoints.seal(checkpoint, checkpoints.run_shape(trainer.args))
            if keep:
                checkpoints.rotate(folder, keep, trainer.state.best_model_checkpoint)

    def _goes_on(self) -> str:
        trainer: Any = self
        found, _ = checkpoints.newest(Path(trainer.args.output_dir))
        return f"the same command goes on from {found or 'the start: no checkpoint was saved yet'}"


@contextmanager
def removed_on_full_disk(checkpoint: Path, goes_on: Any) -> Iterator[None]:
    """Remove a checkpoint that cannot be written.

    Raises:
        OutputError: it could not be written; `goes_on()` says where the run stands.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in TORCH_CANNOT_WRITE):
            raise
        free = shutil.disk_usage(checkpoint.parent).free
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise OutputError(
            f"{checkpoint}: cannot be written ({str(error).splitlines()[0]}); {free / 1e9:.1f} GB of the disk were "
            f"free. Free some space, or lower save_total_limit; {goes_on()}"
        ) from error


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
        print(f"{signal.Signals(number).name}: saving after the step in progress; once more ends at once", flush=True)
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
        asked = torch.tensor(float(self.asked), device=args.device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked.item())
