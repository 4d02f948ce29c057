"""The attention of sequences that share their prompts: within packed sequences, and while completions are decoded.

A faster kernel goes here: `attend_packed` is what training, log-probabilities and the prefill of rollouts use,
`attend_cached` is what every decode step uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from unifiedreward_think.engine.prefix_cache import SharedPrefixLayer

NAME = "shared_prefix"  # of the attention function


@dataclass(frozen=True)
class PackedLayout:
    """Where prefixes and segments lie in a packed sequence: (length of the prefix, lengths of its segments) of each."""

    groups: Sequence[tuple[int, Sequence[int]]]
    masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def predicting_positions(self, device: Any) -> torch.Tensor:
        """Return the positions that predict a completion token: all of a segment, or the last of a bare prefix."""
        places, start = [torch.arange(0, device=device)], 0
        for prefix, segments in self.groups:
            end = start + prefix + sum(segments)
            places.append(torch.arange(start + prefix if segments else end - 1, end, device=device))
            start = end
        return torch.cat(places)

    def mask(self, queries: int, keys: int, device: torch.device) -> torch.Tensor:
        """Return the causal mask of the last `queries` of `keys` tokens, made once for all layers."""
        if device.type == "cuda":
            return causal_lower_right(queries, keys)  # no tensor: PyTorch's flash kernels take it
        if (queries, keys) not in self.masks:
            self.masks[queries, keys] = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        return self.masks[queries, keys]


def attend(
    module: Any,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefix_layout: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend in a decode batch, whose cache gives the layer as `key`, or in a packed sequence; else as SDPA does."""
    if isinstance(key, SharedPrefixLayer):
        return attend_cached(key, query, scaling), None
    if prefix_layout is not None:
        options = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
        return attend_packed(query, key, value, prefix_layout, options), None
    return sdpa_attention_forward(  # type: ignore[no-any-return]
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def decoding(network: Any) -> Iterator[None]:
    """Let the language model attend over a `SharedPrefixCache`, whatever its attention is before and after."""
    config = network.config.get_text_config()
    replaced = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = replaced


def attend_cached(layer: SharedPrefixLayer, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Return what a new token of each sequence sees: its prompt and what the sequence has written, itself included.

    Args:
        layer: holds the token's key and value already.
        query: (sequences, query heads, 1, width).
        scaling: of the products of queries and keys.

    Returns:
        (sequences, 1, query heads, width).
    """
    sequences, heads, _, width = query.shape
    (keys, values), layout = layer.prefix, layer.layout
    groups, length = keys.shape[1:3]
    with torch.autocast(query.device.type, enabled=False):
        states = query.view(sequences, groups, heads // groups, width).float() * (scaling or width**-0.5)
        scores = [layout.by_prompt(states, keys.transpose(2, 3)), states @ layer.keys.float().transpose(2, 3)]
        scores = [
            one if hidden is None else one.masked_fill(hidden, float("-inf"))
            for one, hidden in zip(scores, layout.hidden, strict=True)
        ]
        weights = torch.cat(scores, -1).softmax(-1)
        output = layout.by_prompt(weights[..., :length], values) + weights[..., length:] @ layer.values.float()
    return output.to(query.dtype).reshape(sequences, 1, heads, width)


def attend_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PackedLayout, options: Mapping[str, Any]
) -> torch.Tensor:
    """Attend within each group of a packed sequence: a prefix to itself, a segment to its prefix and to itself."""
    pieces, start = [], 0
    for prefix, segments in layout.groups:
        end, last = start + prefix, start + prefix + sum(segments)
        shared = [states[:, :, start:end] for states in (query, key, value)]
        pieces.append(F.scaled_dot_product_attention(shared[0], shared[1], shared[2], is_causal=True, **options))
        if segments:
            completion_states = [states[0, :, end:last] for states in (query, key, value)]
            pieces.append(_attend_segments(completion_states, shared[1:], segments, layout, options))
        start = last
    return torch.cat(pieces, 2).transpose(1, 2).contiguous()


def _attend_segments(
    completion_states: Sequence[torch.Tensor],
    shared: Sequence[torch.Tensor],
    lengths: Sequence[int],
    layout: PackedLayout,
    options: Mapping[str, Any],
) -> torch.Tensor:
    """Attend from each segment, a row of a batch, to the shared prefix and to itself.

    Shorter segments are padded at their end, where a causal mask hides the padding from every real token.
    """
    query, key, value = (
        pad_sequence(states.transpose(0, 1).split(tuple(lengths)), batch_first=True).transpose(1, 2)
        for states in completion_states
    )
    rows, longest = len(lengths), max(lengths)
    key, value = (
        torch.cat([prefix.expand(rows, -1, -1, -1), states], 2)
        for prefix, states in zip(shared, (key, value), strict=True)
    )
    mask = layout.mask(longest, key.shape[2], query.device)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
    return torch.cat([row[:, :length] for row, length in zip(output, lengths, strict=True)], 1)[None]
