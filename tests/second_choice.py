"""Sampling without chance, for runs whose ranks would draw differently. Importing it changes torch for the process.

    reward_funcs: [second_choice.mean_token]

Every second row of a batch takes the second most probable token, the others the most probable one: completions of a
group of two differ, however the batch is split into whole groups.
"""

import torch
from stages import mean_token

__all__ = ["mean_token", "pick"]


def pick(probabilities, num_samples=1, **_):
    """Stand in for torch.multinomial."""
    assert num_samples == 1
    best = probabilities.topk(2, dim=-1).indices
    place = torch.arange(len(best)) % 2
    return best.gather(1, place[:, None])


torch.multinomial = pick
