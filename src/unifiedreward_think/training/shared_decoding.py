"""Generation of whole GRPO groups: the keys and values of a prompt are kept once, and all its rows attend to them.

    | . a_1 .. a_P-1 |   <- c_1 .. c_n    prompts are read once, filled up on the left to the same width;
    |                |   <- d_1 .. d_m    each row keeps what it writes itself
    | b_1 .... b_Q-1 |   <- e_1 .. e_k

transformers would copy the whole prompt for each row, and all of it again for each token. `generate` itself is theirs:
it sees a cache whose rows are as long as if they held their prompts. Scores and sums are float32 whatever the model's
number type is, as they are inside the kernels of SDPA.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from unifiedreward_think.backends.slots import Columns
from unifiedreward_think.training.shared_prefix import Prompt, stream_inputs


class PrefixLayer(Columns):
    """What the rows of a layer have written; its prompts, (prompts, heads, P, width) in float32, lie beside it."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, copies: int) -> None:
        self.prefix = keys.float(), values.float()
        super().__init__(*(states[:, :, :0].repeat_interleave(copies, 0) for states in (keys, values)))

    def get_seq_length(self) -> int:
        """Return the columns of prompt and row together."""
        return int(self.prefix[0].shape[2] + self.keys.shape[2])


class PrefixCache(Cache):  # type: ignore[misc]
    """A cache whose rows share their prompts; `shared_prefix.attend` finds it among its arguments.

    Args:
        layers: one for each layer of the language model.
        mask: (prompts, P) True where a prompt has a token, not filling.
    """

    def __init__(self, layers: list[PrefixLayer], mask: torch.Tensor) -> None:
        super().__init__(layers=layers)
        self._hidden = None if bool(mask.all()) else ~mask[:, None, None, :]

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
        prompts, groups, length, _ = own.prefix[0].shape

        def joined(states: torch.Tensor) -> torch.Tensor:
            """(rows, groups of heads, each, n) -> (prompts, groups, copies * each, n): all rows of a prompt in one."""
            return states.unflatten(0, (prompts, -1)).transpose(1, 2).flatten(2, 3)

        def parted(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(2, (rows // prompts, -1)).transpose(1, 2).flatten(0, 1)

        with torch.autocast(query.device.type, enabled=False):
            states = query.view(rows, groups, heads // groups, width).float() * scaling
            seen = joined(states) @ own.prefix[0].transpose(2, 3)
            if self._hidden is not None:
                seen = seen.masked_fill(self._hidden, float("-inf"))
            weights = torch.cat([seen, joined(states @ own.keys.float().transpose(2, 3))], -1).softmax(-1)
            of_prompt = parted(weights[..., :length] @ own.prefix[1])
            of_row = parted(weights[..., length:]) @ own.values.float()
        return (of_prompt + of_row).to(query.dtype).reshape(rows, 1, heads, width)


def prefill(network: Any, prompts: Sequence[Prompt], copies: int, pad: int) -> dict[str, Any]:
    """Return the arguments with which `generate` goes on from prompts that were read once.

    Each prompt, with its pictures encoded, gets `copies` rows; shorter prompts are filled up with `pad` on the left.
    Gradient checkpointing must be off, since it turns caches off.
    """
    inputs = stream_inputs([(prompt, ()) for prompt in prompts])
    with torch.no_grad():
        read = network.model(**inputs, use_cache=True).past_key_values
    lengths = [len(prompt.ids) - 1 for prompt in prompts]

    def filled(parts: Iterable[torch.Tensor], filler: int = 0) -> torch.Tensor:
        return pad_sequence([part.flip(0) for part in parts], batch_first=True, padding_value=filler).flip(1)

    def split(states: torch.Tensor) -> torch.Tensor:
        return filled(states[0].transpose(0, 1).split(lengths)).transpose(1, 2).contiguous()

    layers = [PrefixLayer(split(layer.keys), split(layer.values), copies) for layer in read.layers]
    mask = filled([torch.ones_like(prompt.ids) for prompt in prompts])
    if hasattr(network.model, "rope_deltas"):  # state of the model: how far its positions run ahead of the tokens
        ahead = [prompt.next_position - len(prompt.ids) for prompt in prompts for _ in range(copies)]
        network.model.rope_deltas = torch.tensor(ahead, device=network.device)[:, None]
    return {
        "input_ids": filled([prompt.ids for prompt in prompts], pad).repeat_interleave(copies, 0),
        "attention_mask": mask.repeat_interleave(copies, 0),
        "past_key_values": PrefixCache(layers, mask[:, :-1].bool()),
    }
