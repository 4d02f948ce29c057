"""How probable other continuations of a prompt would have been: teacher-forced, on one copy of the prompt's cache.

| a a a a a a |             the prompt, its images included: through the model once, for all places
              | b b b |     what continuations of a place begin with: once for the place
                      | c c |
                      | d   |   and the rest of each, on copies of the cache so far
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from unifiedreward_think.engine.prefix_cache import Prefill

ROWS = 16  # continuations in one forward: each has a copy of the cache


class Alternatives:
    """What a prefilled prompt can go on with.

    Args:
        network: the model.
        prompt: a single prompt; its KV cache is left as it is.
    """

    def __init__(self, network: Any, prompt: Prefill) -> None:
        self._network, self._prompt = network, prompt
        self._cache = DynamicCache(config=network.config.get_text_config())
        self._cache.layers = list(prompt.layers)

    def log_probabilities(self, continuations: Sequence[Sequence[int]]) -> list[float]:
        """Return the log-probability of each continuation after the tokens that all begin with.

        Args:
            continuations: the tokens of each, all different, none the beginning of another.
        """
        columns = zip(*continuations, strict=False)
        shared = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
        start = int(self._prompt.next_positions[0])
        with torch.inference_mode():
            logits, past = self._prompt.logits, copy.deepcopy(self._cache)
            if shared:
                head = torch.tensor([continuations[0][:shared]], device=logits.device)
                logits = _forward(self._network, head, start, past)[:, -1]
            first = logits.float().log_softmax(-1)[0]
            found: list[float] = []
            for at in range(0, len(continuations), ROWS):
                rest = [list(one[shared:]) for one in continuations[at : at + ROWS]]
                found += _scored(self._network, rest, start + shared, past, first)
        return found


def _scored(network: Any, rest: Sequence[list[int]], start: int, past: Any, first: torch.Tensor) -> list[float]:
    """Return the log-probability of each rest after a cache, whose last token has the log-probabilities `first`."""
    ids = pad_sequence([torch.tensor(one, device=first.device) for one in rest], batch_first=True)
    own = copy.deepcopy(past)
    own.reorder_cache(torch.zeros(len(rest), dtype=torch.long, device=first.device))
    scores = first[ids[:, :1]]
    if ids.shape[1] > 1:
        following = _forward(network, ids[:, :-1], start, own).float().log_softmax(-1)
        scores = torch.cat([scores, following.gather(2, ids[:, 1:, None])[..., 0]], 1)
    # Right padding comes after all that counts, which does not attend to it.
    return [float(row[: len(one)].double().sum()) for row, one in zip(scores, rest, strict=True)]


def _forward(network: Any, ids: torch.Tensor, start: int, past: Any) -> torch.Tensor:
    """Return the logits of tokens from position `start` on; the cache takes them in."""
    positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand(len(ids), -1)
    logits: torch.Tensor = network(input_ids=ids, position_ids=positions, past_key_values=past, use_cache=True).logits
    return logits
