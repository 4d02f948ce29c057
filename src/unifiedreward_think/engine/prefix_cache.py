"""Generation of whole GRPO groups: the keys and values of a prompt are kept once, and all its rows attend to them.

    | . a_1 .. a_P-1 |   <- c_1 .. c_n    prompts are read once, filled up on the left to the same width;
    |                |   <- d_1 .. d_m    each row keeps what it writes itself, and leaves when it has ended
    | b_1 .... b_Q-1 |   <- e_1 .. e_k

transformers would copy the whole prompt for each row, and all of it again for each token. `generate` itself is theirs:
it sees a cache whose rows are as long as if they held their prompts. Scores and sums are float32 whatever the model's
number type is, as they are inside the kernels of SDPA.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import Cache

from unifiedreward_think.engine.decoding import Columns
from unifiedreward_think.engine.prefixes import fill_left
from unifiedreward_think.engine.streams import Prompt, stream_inputs


class PrefixLayer(Columns):
    """What the rows of a layer have written; its prompts, (prompts, heads, P, width) in float32, lie beside it."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, copies: int) -> None:
        self.prefix = keys.float(), values.float()
        super().__init__(*(states[:, :, :0].repeat_interleave(copies, 0) for states in (keys, values)))

    def get_seq_length(self) -> int:
        """Return the columns of prompt and row together."""
        return int(self.prefix[0].shape[2] + self.keys.shape[2])


class PrefixCache(Cache):  # type: ignore[misc]
    """A cache whose rows share their prompts; `shared_prefix.enable` lets the model know it.

    Args:
        layers: one for each layer of the language model.
        mask: (prompts, P) True where a prompt has a token, not filling.
        copies: rows of each prompt.
        ends: tokens that end a row.
    """

    def __init__(self, layers: list[PrefixLayer], mask: torch.Tensor, copies: int, ends: Iterable[int]) -> None:
        super().__init__(layers=layers)
        self._hidden = None if bool(mask.all()) else ~mask.repeat_interleave(copies, 0)[:, None, None, :]
        self._ends = torch.tensor(sorted(ends), device=mask.device)
        self.count = len(mask) * copies
        self._ended = torch.zeros(self.count, dtype=torch.bool, device=mask.device)
        self.rows = torch.arange(self.count, device=mask.device)  # those that are being written

    def note_ended(self, ids: torch.Tensor, _: Any) -> torch.Tensor:
        """Remember which rows have ended; a stopping criterion of `generate`, which stops nothing itself."""
        self._ended |= torch.isin(ids[:, -1], self._ends)
        return torch.zeros_like(self._ended)

    def leave(self) -> None:
        """Let the rows that have ended leave, unless all have: ranks may have to go on together."""
        staying = ~self._ended[self.rows]
        if bool(staying.any()) and not bool(staying.all()):
            for layer in self.layers:
                layer.set(layer.keys[staying], layer.values[staying])
            self.rows = self.rows[staying]

    def attend(self, layer: int, query: torch.Tensor, scaling: float) -> torch.Tensor:
        """Return what a new token of each row sees: its prompt and what the row has written, itself included.

        Args:
            layer: number of the layer, which holds the token's key and value already.
            query: (rows, query heads, 1, width).
            scaling: of the products of queries and keys.

        Returns:
            (rows, 1, query heads, width).

        Raises:
            RuntimeError: rows take more than one token at a time, as in assisted generation.
        """
        rows, heads, tokens, width = query.shape
        if tokens != 1:
            raise RuntimeError(f"{tokens} tokens a row at a time are not covered; set shared_prefix: false")
        own: PrefixLayer = self.layers[layer]
        keys, values = own.prefix
        groups, length = keys.shape[1:3]
        with torch.autocast(query.device.type, enabled=False):
            states = query.view(rows, groups, heads // groups, width).float() * scaling
            seen = self._by_prompt(states, keys.transpose(2, 3))
            if self._hidden is not None:
                seen = seen.masked_fill(self._hidden[self.rows], float("-inf"))
            weights = torch.cat([seen, states @ own.keys.float().transpose(2, 3)], -1).softmax(-1)
            found = self._by_prompt(weights[..., :length], values) + weights[..., length:] @ own.values.float()
        return found.to(query.dtype).reshape(rows, 1, heads, width)

    def _by_prompt(self, states: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Multiply each row's (groups of heads, each, n) by its prompt's (groups, n, m), rows of a prompt in one."""
        places = states
        if len(self.rows) < self.count:  # rows that have left keep their place
            places = states.new_zeros(self.count, *states.shape[1:]).index_copy(0, self.rows, states)
        joined = places.unflatten(0, (len(prompts), -1)).transpose(1, 2)
        found = (joined.flatten(2, 3) @ prompts).unflatten(2, joined.shape[2:4]).transpose(1, 2).flatten(0, 1)
        return found[self.rows] if places is not states else found


def prefill(network: Any, prompts: Sequence[Prompt], copies: int, *, pad: int, ends: Iterable[int]) -> dict[str, Any]:
    """Return the arguments with which `generate` goes on from prompts that were read once.

    Each prompt, with its pictures encoded, gets `copies` rows, which `ends` end; shorter prompts are filled up with
    `pad` on the left.
    Gradient checkpointing must be off, since it turns caches off.
    """
    inputs = stream_inputs([(prompt, ()) for prompt in prompts])
    with torch.no_grad():
        read = network.model(**inputs, use_cache=True).past_key_values
    lengths = [len(prompt.ids) - 1 for prompt in prompts]

    def split(states: torch.Tensor) -> torch.Tensor:
        return fill_left(states[0].transpose(0, 1).split(lengths)).transpose(1, 2).contiguous()

    layers = [PrefixLayer(split(layer.keys), split(layer.values), copies) for layer in read.layers]
    mask = fill_left([torch.ones_like(prompt.ids) for prompt in prompts])
    if hasattr(network.model, "rope_deltas"):  # state of the model: how far its positions run ahead of the tokens
        ahead = [prompt.next_position - len(prompt.ids) for prompt in prompts for _ in range(copies)]
        network.model.rope_deltas = torch.tensor(ahead, device=network.device)[:, None]
    cache = PrefixCache(layers, mask[:, :-1].bool(), copies, ends)
    return {
        "input_ids": fill_left([prompt.ids for prompt in prompts], pad).repeat_interleave(copies, 0),
        "attention_mask": mask.repeat_interleave(copies, 0),
        "past_key_values": cache,
        "stopping_criteria": [cache.note_ended],
    }
