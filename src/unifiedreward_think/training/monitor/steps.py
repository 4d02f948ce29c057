"""What a training run prints: one line for each group of steps, with their means and the time left.

grpo: step 48/160, loss 0.0021, reward 1.62, readable 1.000, strict 0.980, 03:12 left
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from unifiedreward_think.progress import LINE_EVERY, clock
from unifiedreward_think.terminal import say

# What is logged -> how it is shown; those that a stage does not log are left out.
SHOWN = {
    "loss": "loss {:.4g}",
    "mean_token_accuracy": "token accuracy {:.3f}",
    "reward": "reward {:.3f}",
    "readable_rate": "readable {:.3f}",
    "parse_rate": "strict {:.3f}",
}
JUDGED = {
    "eval_accuracy": "accuracy {:.3f}",
    "eval_readable_rate": "readable {:.3f}",
    "eval_parse_rate": "strict {:.3f}",
}


class StepLines(TrainerCallback):  # type: ignore[misc]
    """Prints the first logged step, then the mean of those since the last line, and a line at the end."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._rows: list[Mapping[str, float]] = []
        self._printed = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock; steps of the run that this one goes on from do not count for its speed."""
        self._label = Path(args.output_dir).name
        self._began = self._last = self._now()
        self._first = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:
        """Take what is logged."""
        if not state.is_world_process_zero:
            return
        now, step = self._now(), f"{self._label}: step {state.global_step}/{state.max_steps}"
        if "eval_accuracy" in logs:
            say(", ".join([f"{step}, held-out pairs", *shown(JUDGED, [logs])]))
        elif "loss" in logs:
            self._rows.append(logs)
            if state.global_step < state.max_steps and (not self._printed or now - self._last >= LINE_EVERY):
                left = (now - self._began) / (state.global_step - self._first) * (state.max_steps - state.global_step)
                say(", ".join([step, *shown(SHOWN, self._rows), f"{clock(left)} left"]))
                self._rows, self._last, self._printed = [], now, True
        elif "train_runtime" in logs:
            say(", ".join([step, *shown(SHOWN, self._rows), f"took {clock(now - self._began)}"]))


def shown(formats: Mapping[str, str], rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the means of what was logged, as they are printed.

    >>> shown(SHOWN, [{"loss": 1.0, "reward": 0.5}, {"loss": 2.0}])
    ['loss 1.5', 'reward 0.500']
    """
    values = {name: [float(row[name]) for row in rows if row.get(name) is not None] for name in formats}
    return [formats[name].format(sum(values_of) / len(values_of)) for name, values_of in values.items() if values_of]
