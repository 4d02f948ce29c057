"""One forward for whole GRPO groups: each prompt goes through the model once, and all its completions attend to it.

The completions of a group share their prompt, pictures included. A stream puts every prompt once into a single row,
followed by its completions:

    | a_1 .. a_P-1 | a_P c_1 .. c_n-1 | a_P d_1 .. d_m-1 | b_1 .. b_Q-1 | b_Q e_1 .. e_k-1 |
        prefix a        segment c          segment d         prefix b        segment e
    predicts nothing   c_1 .. c_n         d_1 .. d_m       predicts nothing  e_1 .. e_k

The last prompt token is repeated, so that each position of a segment predicts one completion token. A prefix attends to
itself; a segment to the prefix before it and to itself, as a row of its own over [prefix | segment]. Positions restart
in each segment, so every completion token has the log-probability and gradient that it has in a row of its own. Idea:
Prefix Grouper (arXiv 2506.05433).

A prefix without segments is what generation needs, see `shared_decoding`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from unifiedreward_think.engine.features import in_place_of_pixels, supported

NAME = "shared_prefix"  # of the attention function
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision")  # config.model_type; all attend to everything


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt with its pictures.

    Attributes:
        ids: (P,) tokens.
        positions: (3, P) for M-RoPE, (1, P) for plain RoPE.
        pixels: what the vision tower takes, keyed as the model's arguments.
        features: what the tower made of it.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    pixels: Mapping[str, torch.Tensor]
    features: Any = None

    @property
    def next_position(self) -> int:
        """Position of the first completion token on every axis: text goes on after the largest one."""
        return int(self.positions.max()) + 1


@dataclass(frozen=True)
class Layout:
    """Where prefixes and segments lie in a stream: (length of the prefix, lengths of its segments) of each group."""

    groups: Sequence[tuple[int, Sequence[int]]]
    masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def scored(self, device: Any) -> torch.Tensor:
        """Return the places that predict a completion token."""
        places, start = [torch.arange(0, device=device)], 0
        for prefix, segments in self.groups:
            end = start + prefix + sum(segments)
            places.append(torch.arange(start + prefix, end, device=device))
            start = end
        return torch.cat(places)

    def mask(self, queries: int, keys: int, device: torch.device) -> torch.Tensor:
        """Return the causal mask of the last `queries` of `keys` tokens, made once for all layers."""
        if device.type == "cuda":
            return causal_lower_right(queries, keys)  # no tensor: PyTorch's flash kernels take it
        if (queries, keys) not in self.masks:
            self.masks[queries, keys] = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        return self.masks[queries, keys]


def read_prompt(network: Any, fields: Mapping[str, torch.Tensor]) -> Prompt:
    """Return a prompt from what the processor gave for it alone, with the positions the model would use."""
    pixels = {key: value for key, value in fields.items() if key not in ("input_ids", "attention_mask")}
    types = pixels.pop("mm_token_type_ids", None)
    ids = fields["input_ids"]
    if types is None:
        return Prompt(ids[0], torch.arange(ids.shape[1], device=ids.device)[None], pixels)
    # Without the token types the model falls back to text positions without a word.
    grids = pixels.get("image_grid_thw")
    positions, _ = network.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=grids)
    return Prompt(ids[0], positions[:, 0], pixels)


def encode_pictures(network: Any, prompt: Prompt) -> Prompt:
    """Return the prompt with the features of its pictures; no graph is kept."""
    with torch.no_grad():
        output = network.model.get_image_features(**prompt.pixels, return_dict=True)
    layers = getattr(output, "deepstack_features", None) or ()  # Qwen3-VL's
    features = SimpleNamespace(pooler_output=tuple(output.pooler_output), deepstack_features=layers)
    return replace(prompt, features=features)


def picture_inputs(prompts: Sequence[Prompt], *, encoded: bool) -> dict[str, Any]:
    """Return the model's arguments for all pictures of a stream: features, or pixels that the tower encodes with it."""
    prompts = [prompt for prompt in prompts if prompt.pixels or prompt.features]
    if not prompts:
        return {}
    if not encoded:
        return {key: _join([prompt.pixels[key] for prompt in prompts]) for key in prompts[0].pixels}
    features = [prompt.features for prompt in prompts]
    return in_place_of_pixels(
        [layers for one in features for layers in zip(one.pooler_output, *one.deepstack_features, strict=True)]
    )


def _join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate pictures; LLaVA's have a second axis of tiles, padded to the most tiles any of them has."""
    if parts[0].dim() < 5:
        return torch.cat(list(parts))
    tiles = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0) * 3 + (0, tiles - part.shape[1])) for part in parts])


def stream_inputs(groups: Sequence[tuple[Prompt, Sequence[torch.Tensor]]], *, encoded: bool = True) -> dict[str, Any]:
    """Return the model's arguments for a stream of prompts, each with its completions."""
    ids, positions = [], []
    for prompt, completions in groups:
        ids.append(prompt.ids[:-1])
        positions.append(prompt.positions[:, :-1])
        for completion in completions:
            ids += [prompt.ids[-1:], completion[:-1]]
            following = prompt.next_position + torch.arange(len(completion) - 1, device=completion.device)
            positions += [prompt.positions[:, -1:], following.expand(len(prompt.positions), -1)]
    axes = torch.cat(positions, 1)
    return {
        "input_ids": torch.cat(ids)[None],
        "position_ids": axes if len(axes) == 1 else axes[:, None],
        "attention_mask": axes.new_ones(1, 1, 1, 1),  # a 4D mask keeps models from making one; the layout decides
        "prefix_layout": Layout([(len(prompt.ids) - 1, [len(c) for c in own]) for prompt, own in groups]),
        **picture_inputs([prompt for prompt, _ in groups], encoded=encoded),
    }


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefix_layout: Layout | None = None,
    prefix_cache: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each group of a stream, or of rows that are being written; without either, as plain SDPA does."""
    if prefix_cache is not None:
        return prefix_cache.attend(module.layer_idx, query, scaling), None
    if prefix_layout is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    pieces, start = [], 0
    for prefix, segments in prefix_layout.groups:
        end, last = start + prefix, start + prefix + sum(segments)
        shared = [states[:, :, start:end] for states in (query, key, value)]
        pieces.append(F.scaled_dot_product_attention(shared[0], shared[1], shared[2], is_causal=True, **options))
        if segments:
            own = [states[0, :, end:last] for states in (query, key, value)]
            pieces.append(_attend_segments(own, shared[1:], segments, prefix_layout, options))
        start = last
    return torch.cat(pieces, 2).transpose(1, 2).contiguous(), None


def _attend_segments(
    own: Sequence[torch.Tensor],
    shared: Sequence[torch.Tensor],
    lengths: Sequence[int],
    layout: Layout,
    options: Mapping[str, Any],
) -> torch.Tensor:
    """Attend from each segment, a row of a batch, to the shared prefix and to itself.

    Shorter segments are padded at their end, where a causal mask hides the padding from every real token.
    """
    query, key, value = (
        pad_sequence(states.transpose(0, 1).split(tuple(lengths)), batch_first=True).transpose(1, 2) for states in own
    )
    rows, longest = len(lengths), max(lengths)
    key, value = (
        torch.cat([prefix.expand(rows, -1, -1, -1), states], 2)
        for prefix, states in zip(shared, (key, value), strict=True)
    )
    mask = layout.mask(longest, key.shape[2], query.device)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
    return torch.cat([row[:, :length] for row, length in zip(output, lengths, strict=True)], 1)[None]


def enable(network: Any) -> None:
    """Let a model read streams: its language model attends by layout and returns the scored places alone."""
    if network.config.get_text_config()._attn_implementation == NAME:
        return  # a second trainer of one model
    replaced = network.config.get_text_config()._attn_implementation
    if replaced not in (None, "sdpa"):
        text = f"attn_implementation {replaced!r} is used in the vision tower alone (shared_prefix: false: everywhere)"
        print(f"note: shared_prefix has an attention of its own; {text}", file=sys.stderr)
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    network.set_attn_implementation({"text_config": NAME})
    network.base_model.register_forward_hook(_keep_scored, with_kwargs=True)
    network.model.language_model.register_forward_pre_hook(_hand_on_cache, with_kwargs=True)
    network.model.language_model.register_forward_hook(_put_back, with_kwargs=True)


def _keep_scored(_: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
    """Drop the hidden states that predict nothing, before the LM head sees them."""
    layout = kwargs.get("prefix_layout")
    if layout is not None:
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden.index_select(1, layout.scored(hidden.device))
    return output


def _hand_on_cache(_: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Let the attention see a cache whose rows share their prompts, and leave out the rows that have left it."""
    cache: Any = kwargs.get("past_key_values")
    if not hasattr(cache, "leave"):
        return args, kwargs
    cache.leave()
    embeds, positions = kwargs["inputs_embeds"][cache.rows], kwargs["position_ids"][..., cache.rows, :]
    mask = embeds.new_ones(1, 1, 1, 1)  # 4D: keeps the model from making one
    own = {"inputs_embeds": embeds, "position_ids": positions, "attention_mask": mask, "prefix_cache": cache}
    return args, {**kwargs, **own}


def _put_back(_: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
    """Give every row a place again for `generate`, which draws for all and drops what comes after an end."""
    cache = kwargs.get("prefix_cache")
    if cache is not None:
        states = output.last_hidden_state
        places = states.new_zeros(cache.count, *states.shape[1:])
        output.last_hidden_state = places.index_copy(0, cache.rows, states)
    return output


def picture_parameters(network: Any) -> list[torch.nn.Parameter]:
    """Return the parameters that picture features depend on: the vision tower and, for LLaVA, its projector."""
    return [weight for name, weight in network.model.named_parameters() if not name.startswith("language_model.")]


def why_not(network: Any) -> str | None:
    """Return why a model cannot read streams, or None where it can."""
    family = network.config.model_type
    if family not in FAMILIES:
        return f"model_type {family!r} is not covered (covered: {', '.join(FAMILIES)})"
    if not supported(network):
        return "this version of transformers cannot take encoded pictures (`mm_encoder_outputs`)"
    if set(getattr(network.config.get_text_config(), "layer_types", None) or ()) - {"full_attention"}:
        return "some of its layers do not attend to the whole prompt"
    dropouts = [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    if any(dropouts) or getattr(network.config.get_text_config(), "attention_dropout", None):
        return "dropout would be drawn once for the shared prompt: set lora_dropout: 0.0 (or disable_dropout: true)"
    return None
