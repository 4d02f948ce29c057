"""Where the metrics of a healthy run lie, and what a run that leaves a band mostly suffers from.

The table of docs/health.md:
    python -m unifiedreward_think.training.monitor.thresholds
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Literal, NamedTuple

from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import InputError

HELD_OUT = "eval_accuracy"  # in every row of an evaluation on held-out pairs


class Band(NamedTuple):
    """Where a metric lies in a healthy run.

    Attributes:
        metric: its name in the log.
        side: ">=" or "<=".
        limit: of the mean over the window; with a `reference`, a factor on it.
        cause: why it mostly leaves the band.
        fix: what to do then.
        why: reason for the limit.
        reference: `median` or `max` of the rows before the window; None: the limit stands as it is.
    """

    metric: str
    side: Literal[">=", "<="]
    limit: float
    cause: str
    fix: str
    why: str
    reference: Callable[[Sequence[float]], float] | None = None

    @property
    def name(self) -> str:
        """Metric and side: a metric may have a band on both sides."""
        return f"{self.metric}{self.side}"

    @property
    def text(self) -> str:
        """The band as docs/health.md and the report show it."""
        factor = f" x the {self.reference.__name__} before" if self.reference else ""
        return f"{self.side} {self.limit:g}{factor}"


# Healthy, below: GRPO and SFT on the toy world (configs/toy), several seeds, means over 10 steps.
BANDS = (
    Band(
        "parse_rate",
        ">=",
        0.8,
        cause="completions are not strictly formed: the cold start was too short, or the policy has drifted",
        fix="read `problems` in completions/*.parquet; train the cold start longer, lower learning_rate, raise beta",
        why="healthy: above 0.9; groups that differ in form alone teach nothing about the pictures",
    ),
    Band(
        "completions/clipped_ratio",
        "<=",
        0.1,
        cause="completions reach max_completion_length and are cut before their answer",
        fix="raise max_completion_length, add length_reward, or set mask_truncated_completions",
        why="healthy: below 0.06; each cut completion is a wrong one, whatever it would have said",
    ),
    Band(
        "frac_reward_zero_std",
        "<=",
        0.8,
        cause="nearly all groups earn one reward throughout: the pairs are too easy (accuracy near 1) or too hard",
        fix="sample hard pairs anew with this model, raise num_generations or temperature; too hard: first more SFT",
        why="healthy: below 0.5; a group without a difference has no gradient, so above 0.8 most of the time is wasted",
    ),
    Band(
        "rewards/accuracy_reward/mean",
        ">=",
        0.7,
        reference=median,
        cause="the policy gets worse at what it is trained for: a step too large, or another reward pays more",
        fix="go back to an earlier checkpoint with a lower learning_rate; compare the parts of the reward",
        why="healthy: above 0.86 x; a window of 80 pairs wavers by 0.1",
    ),
    Band(
        "first_position_rate",
        ">=",
        0.2,
        cause="the second candidate wins whatever it shows: position bias",
        fix="train with orders: both and swap_agreement_reward; check that the labels do not favour a position",
        why="0.5 without bias, as the order shown is random; over 80 pairs 0.2 is 5 standard deviations away",
    ),
    Band(
        "first_position_rate",
        "<=",
        0.8,
        cause="the first candidate wins whatever it shows: position bias",
        fix="train with orders: both and swap_agreement_reward; check that the labels do not favour a position",
        why="0.5 without bias, as the order shown is random; over 80 pairs 0.8 is 5 standard deviations away",
    ),
    Band(
        "entropy",
        ">=",
        0.01,
        cause="the model is certain of nearly every token: GRPO has no choice left, SFT knows its traces by heart",
        fix="stop, or use an earlier checkpoint; lower learning_rate, raise temperature or beta; SFT: fewer epochs",
        why="healthy: 0.02 to 0.1 nats a token",
    ),
    Band(
        "entropy",
        "<=",
        2.0,
        cause="completions come near to random text: the cold start is missing, or training has diverged",
        fix="check model_name_or_path; start from the cold start, with a lower learning_rate",
        why="after a far too short cold start: 0.6; a model with random weights: 5.6",
    ),
    Band(
        "kl",
        "<=",
        0.5,
        cause="the policy is far from the model that it began with",
        fix="raise beta, lower learning_rate; look whether the completions are still chains of thought",
        why="healthy: below 0.07; the average token is then e^0.5 = 1.6 times likelier than it was",
    ),
    Band(
        "grad_norm",
        "<=",
        5.0,
        reference=median,
        cause="a spike of the gradient: an odd batch, a learning rate too high, or overflow if it is no number",
        fix="lower learning_rate or max_grad_norm, warm up longer; with float16 change to bfloat16",
        why="healthy: below 2 x; clipping hides the size of such a step, not its direction",
    ),
    Band(
        "mean_token_accuracy",
        ">=",
        0.8,
        reference=median,
        cause="SFT has diverged: the model knows less of the traces than it did",
        fix="go back to an earlier checkpoint with a lower learning_rate",
        why="healthy: it rises, and wavers by 0.02",
    ),
    Band(
        "tokens_per_second",
        ">=",
        0.33,
        reference=median,
        cause="the run has slowed down: other work on the machine, a slow disk, swapping, or longer rows",
        fix="look at the load and the disk; compare completions/mean_length and memory_gib",
        why="healthy: above 0.5 x, also on a shared machine",
    ),
    Band(
        "memory_share",
        "<=",
        0.95,
        cause="memory is nearly full: the next long batch may end the run",
        fix="gradient_checkpointing, fewer max_pixels or frames, a smaller batch, max_stream_tokens, more GPUs",
        why="prompts with many pictures differ by more than the 5% that are left",
    ),
    Band(
        HELD_OUT,
        ">=",
        0.9,
        reference=max,
        cause="held-out pairs are judged worse than before: the run fits its training pairs or its reward alone",
        fix="stop, and use the best checkpoint (load_best_model_at_end); fewer epochs, more data, a higher beta",
        why="200 pairs in both orders measure to within 0.06; a fall by a tenth is more than that",
    ),
)


def with_limits(changes: Sequence[str], bands: Sequence[Band] = BANDS) -> tuple[Band, ...]:
    """Return the bands with limits of one's own, such as `kl<=0.2`; `kl<=inf` turns one off.

    Raises:
        InputError: a change is not written like that, or there is no such band.

    >>> [band.text for band in with_limits(["kl<=0.2"]) if band.metric == "kl"]
    ['<= 0.2']
    """
    by_name = {band.name: band for band in bands}
    for change in changes:
        side = "<=" if "<=" in change else ">="
        metric, _, number = (part.strip() for part in change.partition(side))
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if math.isnan(limit):
            raise InputError(f"health_bands: {change!r} is no limit; write it like 'kl<=0.5'")
        if metric + side not in by_name:
            raise InputError(f"health_bands: there is no band {metric}{side}; there are {', '.join(by_name)}")
        by_name[metric + side] = by_name[metric + side]._replace(limit=limit)
    return tuple(by_name.values())


def table(bands: Iterable[Band] = BANDS) -> str:
    """Return the bands as the Markdown table of docs/health.md."""
    rows = [f"| `{b.metric}` | {b.text} | {b.why} | {b.cause} | {b.fix} |" for b in bands]
    return "\n".join(["| metric | band | why there | likely cause outside | fix |", "|---|---|---|---|---|", *rows])


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(table())


if __name__ == "__main__":
    run_main(main)
