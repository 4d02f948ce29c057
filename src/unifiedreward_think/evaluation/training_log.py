"""What a training run logged: its curves, and the accuracy of its logged completions by task over the steps.

>>> history = [{"step": 1, "reward": 1.0, "kl": 0.0}, {"step": 2, "reward": 1.5, "kl": 0.1}, {"train_loss": 0.3}]
>>> curve(history, "reward")
[(1, 1.0), (2, 1.5)]
>>> reward_names([{"step": 1, "rewards/format_reward/mean": 1.0, "rewards/truncated/mean": 0.0}])
['format_reward']
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unifiedreward_think.errors import RecordError
from unifiedreward_think.intervals import Estimate, interval
from unifiedreward_think.strict_json import read_json_lines
from unifiedreward_think.tasks import TASK_NAMES

History = Sequence[Mapping[str, Any]]
NO_REWARD = "truncated"  # logs up to 0.1 hold this marker of cut completions among the rewards
WINDOWS = 8


class TrainingRun(NamedTuple):
    """A finished training run.

    Attributes:
        name: of its folder.
        about: `run.json`: stage, arguments, versions, commit, counts.
        history: `log_history.json`, a row a logged step.
        completions: what GRPO logged of its completions; empty for other stages.
        health: `health.jsonl`, a row for each stretch with a metric outside its band; None where it was not watched.
    """

    name: str
    about: dict[str, Any]
    history: list[dict[str, Any]]
    completions: list[dict[str, Any]]
    health: list[dict[str, Any]] | None = None


class Window(NamedTuple):
    """A stretch of steps, both ends included, and the accuracy of its completions by task."""

    first: int
    last: int
    accuracy: dict[str, Estimate]
    completions: int


def read_run(folder: Path) -> TrainingRun:
    """Read the output folder of a training stage.

    Raises:
        RecordError: it is not the folder of a finished run.
    """
    parts = []
    for name in ("run.json", "log_history.json"):
        if not (folder / name).is_file():
            raise RecordError(f"{folder / name}: no such file; name the output_dir of a finished training run")
        parts.append(json.loads((folder / name).read_text(encoding="utf-8")))
    about, history = parts
    watched = folder / "health.jsonl"
    health = [row for _, row in read_json_lines(watched)] if watched.is_file() else None
    return TrainingRun(folder.resolve().name, about, history, list(_completions(folder / "completions")), health)


def curve(history: History, key: str) -> list[tuple[int, float]]:
    """Return (step, value) wherever `key` was logged."""
    return [(row["step"], row[key]) for row in history if "step" in row and row.get(key) is not None]


def reward_names(history: History) -> list[str]:
    """Return the rewards that were logged, in their order, without the marker of cut completions of old logs."""
    keys = dict.fromkeys(key for row in history for key in row)
    parts = [key.split("/") for key in keys]
    return [p[1] for p in parts if len(p) == 3 and p[0] == "rewards" and p[2] == "mean" and p[1] != NO_REWARD]


def ends(points: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Return the mean of the first tenth of a curve and of the last; None of an empty one.

    >>> ends([(step, 10.0 * step) for step in range(1, 21)])
    (15.0, 195.0)
    """
    if not points:
        return None
    values = [value for _, value in points]
    size = max(1, len(values) // 10)
    return sum(values[:size]) / size, sum(values[-size:]) / size


def windows(completions: Sequence[Mapping[str, Any]], count: int = WINDOWS) -> list[Window]:
    """Return the accuracy by task in up to `count` equal stretches of the steps.

    The completions of a group answer the same pair and depend on each other: intervals are those of clusters.
    Rows without a gold answer do not count.
    """
    rows = [row for row in completions if row.get("accuracy_reward") is not None and "task" in row]
    if not rows:
        return []
    first, last = min(row["step"] for row in rows), max(row["step"] for row in rows)
    count = min(count, last - first + 1)
    parts: list[list[Mapping[str, Any]]] = [[] for _ in range(count)]
    for row in rows:
        parts[(row["step"] - first) * count // (last - first + 1)].append(row)
    return [_window(part) for part in parts if part]


def _window(rows: Sequence[Mapping[str, Any]]) -> Window:
    steps = [row["step"] for row in rows]
    accuracy = {}
    for task in TASK_NAMES:
        flags = [(str(row["id"]), row["accuracy_reward"] == 1) for row in rows if row["task"] == task]
        if flags:
            accuracy[task] = interval(flags)
    return Window(min(steps), max(steps), accuracy, len(rows))


def _completions(folder: Path) -> Iterable[dict[str, Any]]:
    from pyarrow import parquet

    for file in sorted(folder.glob("completions_*.parquet")):
        columns = [name for name in parquet.read_schema(file).names if name not in ("prompt", "completion")]
        yield from parquet.read_table(file, columns=columns).to_pylist()
