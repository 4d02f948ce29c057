"""Packed sequences: each prompt goes through the model once, and all its completions attend to it.

The completions of a group share their prompt, images included. A packed sequence is a single row with every prompt
once, followed by its completions:

    | a_1 .. a_P-1 | a_P c_1 .. c_n-1 | a_P d_1 .. d_m-1 | b_1 .. b_Q-1 | b_Q e_1 .. e_k-1 |
        prefix a        segment c          segment d         prefix b        segment e
    predicts nothing   c_1 .. c_n         d_1 .. d_m       predicts nothing  e_1 .. e_k

The last prompt token is repeated, so that each position of a segment predicts one completion token. A prefix attends to
itself; a segment to the prefix before it and to itself, as a row of its own over [prefix | segment]. Positions restart
in each segment, so every completion token has the log-probability and gradient that it has in a row of its own. Idea:
Prefix Grouper (arXiv 2506.05433).

A prompt without completions is a prefix as a whole, whose last token predicts: the prefill of a rollout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from unifiedreward_think.engine.attention import NAME, PackedLayout
from unifiedreward_think.engine.features import ImageFeatures, encode_images, in_place_of_pixels, supported
from unifiedreward_think.models.families import FAMILIES
from unifiedreward_think.terminal import note


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt with its images.

    Attributes:
        ids: (P,) tokens.
        positions: (3, P) for M-RoPE, (1, P) for plain RoPE.
        pixels: what the vision tower takes, keyed as the model's arguments.
        features: what the tower made of it.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    pixels: Mapping[str, torch.Tensor]
    features: Sequence[ImageFeatures] = ()

    @property
    def next_position(self) -> int:
        """Position of the first completion token on every axis: text goes on after the largest one."""
        return int(self.positions.max()) + 1


def prompt_positions(network: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return the positions of left-padded prompts, (axes, prompts, columns): three axes for M-RoPE, else one."""
    if "mm_token_type_ids" in inputs:  # without the types the model would fall back to text positions without a word
        positions: torch.Tensor = network.model.get_rope_index(**inputs)[0]
        return positions
    mask: torch.Tensor = inputs["attention_mask"]
    return (mask.cumsum(1) - 1).clamp(min=0)[None]


def make_prompt(network: Any, fields: Mapping[str, torch.Tensor]) -> Prompt:
    """Return a prompt from what the processor gave for it alone."""
    text = ("input_ids", "attention_mask", "mm_token_type_ids")
    pixels = {key: value for key, value in fields.items() if key not in text}
    return Prompt(fields["input_ids"][0], prompt_positions(network, fields)[:, 0], pixels)


def encode_prompt(network: Any, prompt: Prompt) -> Prompt:
    """Return the prompt with the features of its images; no graph is kept."""
    return replace(prompt, features=encode_images(network, prompt.pixels))


def image_inputs(prompts: Sequence[Prompt], *, encoded: bool) -> dict[str, Any]:
    """Return the model's arguments for all images: features, or pixels that the tower encodes in the same forward."""
    if encoded:
        features = [one for prompt in prompts for one in prompt.features]
        return in_place_of_pixels(features) if features else {}
    shown = [prompt.pixels for prompt in prompts if prompt.pixels]
    return {key: _join([pixels[key] for pixels in shown]) for key in (shown[0] if shown else ())}


def _join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate pixels; LLaVA's have a second axis of tiles, padded to the most tiles any of them has."""
    if parts[0].dim() < 5:
        return torch.cat(list(parts))
    tiles = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0) * 3 + (0, tiles - part.shape[1])) for part in parts])


def pack(groups: Sequence[tuple[Prompt, Sequence[torch.Tensor]]], *, encoded: bool = True) -> dict[str, Any]:
    """Return the model's arguments for a packed sequence of prompts, each with its completions."""
    ids, positions, layout = [], [], []
    for prompt, completions in groups:
        prefix = len(prompt.ids) - bool(completions)
        layout.append((prefix, [len(completion) for completion in completions]))
        ids.append(prompt.ids[:prefix])
        positions.append(prompt.positions[:, :prefix])
        for completion in completions:
            ids += [prompt.ids[-1:], completion[:-1]]
            following = prompt.next_position + torch.arange(len(completion) - 1, device=completion.device)
            positions += [prompt.positions[:, -1:], following.expand(len(prompt.positions), -1)]
    axes = torch.cat(positions, 1)
    return {
        "input_ids": torch.cat(ids)[None],
        "position_ids": axes if len(axes) == 1 else axes[:, None],
        "attention_mask": axes.new_ones(1, 1, 1, 1),  # a 4D mask keeps models from making one; the layout decides
        "prefix_layout": PackedLayout(layout),
        **image_inputs([prompt for prompt, _ in groups], encoded=encoded),
    }


def enable(network: Any) -> None:
    """Patch a model for packed sequences: our attention, and hidden states only at positions that predict a token."""
    replaced = network.config.get_text_config()._attn_implementation
    if replaced == NAME:
        return  # a second trainer of one model
    if replaced not in (None, "sdpa"):
        text = f"attn_implementation {replaced!r} is used in the vision tower alone (shared_prefix: false: everywhere)"
        note(f"note: shared_prefix has an attention of its own; {text}")
    network.set_attn_implementation({"text_config": NAME})
    network.base_model.register_forward_hook(_keep_predicting, with_kwargs=True)


def _keep_predicting(_: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
    """Drop the hidden states that predict nothing, before the LM head sees them."""
    layout = kwargs.get("prefix_layout")
    if layout is not None:
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden.index_select(1, layout.predicting_positions(hidden.device))
    return output


def vision_parameters(network: Any) -> list[torch.nn.Parameter]:
    """Return the parameters that image features depend on: the vision tower and, for LLaVA, its projector."""
    return [weight for name, weight in network.model.named_parameters() if not name.startswith("language_model.")]


def why_not(network: Any) -> str | None:
    """Return why a model cannot take packed sequences, or None where it can."""
    family = network.config.model_type
    if reason := FAMILIES[family].not_shared:
        return f"model_type {family!r} is not covered: {reason}"
    if not supported(network):
        return "this version of transformers cannot take image features (`mm_encoder_outputs`)"
    if set(getattr(network.config.get_text_config(), "layer_types", None) or ()) - {"full_attention"}:
        return "some of its layers do not attend to the whole prompt"
    dropouts = [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    if any(dropouts) or getattr(network.config.get_text_config(), "attention_dropout", None):
        return "dropout would be drawn once for the shared prompt: set lora_dropout: 0.0 (or disable_dropout: true)"
    return None
