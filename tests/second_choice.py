"""Sampling without chance, for runs whose ranks would draw differently. Importing it changes torch for the process.

    reward_funcs: [second_choice.mean_token]

SPOIL_STEP=2 in the environment makes a reward of rank 1 infinite in that step, and so its loss no number.

Every second row of a batch takes the second most probable token, the others the most probable one: completions of a
group of two differ, however the batch is split into whole groups.
"""

import math
import os

import stages
import torch


def mean_token(trainer_state, **row):
    """See stages; spoilt on demand."""
    values = stages.mean_token(**row)
    if os.environ.get("RANK") == "1" and os.environ.get("SPOIL_STEP") == str(trainer_state.global_step + 1):
        values[0] = math.inf
    return values


def pick(probabilities, num_samples=1, **_):
    """Stand in for torch.multinomial."""
    assert num_samples == 1
    best = probabilities.topk(2, dim=-1).indices
    place = torch.arange(len(best)) % 2
    return best.gather(1, place[:, None])


torch.multinomial = pick
