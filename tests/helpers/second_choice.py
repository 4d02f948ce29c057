"""Sampling without chance, for runs whose ranks would draw differently. Importing it changes torch for the process.

    reward_funcs: [helpers.second_choice.mean_token]

Every second row of a batch takes the second most probable token, the others the most probable one: completions of a
group of two differ, however the batch is split into whole groups.

With SPOIL_STEP=2 in the environment, the gradient of rank 1 is no number in the second step.
"""

import math
import os

import torch
from accelerate import Accelerator

from helpers.stages import mean_token

__all__ = ["mean_token", "pick"]


def pick(probabilities, num_samples=1, **_):
    """Stand in for torch.multinomial."""
    assert num_samples == 1
    best = probabilities.topk(2, dim=-1).indices
    place = torch.arange(len(best)) % 2
    return best.gather(1, place[:, None])


def spoil(step):
    """Put the fault into what follows; the loss that is told stays a number."""
    backward, calls = Accelerator.backward, []

    def spoilt(self, loss, **options):
        calls.append(1)
        return backward(self, loss * math.nan if len(calls) == step else loss, **options)

    Accelerator.backward = spoilt


torch.multinomial = pick
if os.environ.get("RANK") == "1" and "SPOIL_STEP" in os.environ:
    spoil(int(os.environ["SPOIL_STEP"]))
