"""Prefill: prompts go through the model once, and so does what several begin with, images included.

    | a a a a a | b b |       two beginnings, prefilled as a batch of their own
    | a a a a a | b b |       copies of their keys and values, one for each prompt, and on top of them
      c c c       d d d       the rest of each prompt

The games of a ranking with the same candidate in the first place begin alike, up to the end of that candidate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from unifiedreward_think.engine.features import ImageFeatures, in_place_of_pixels
from unifiedreward_think.engine.packing import Prompt, pack, prompt_positions
from unifiedreward_think.engine.prefix_cache import Prefill

MIN_SHARED_FRACTION = 0.25  # of the tokens: a second forward has a price of its own


class Part(NamedTuple):
    """A prompt or a piece of one: its tokens, their positions (tokens, axes), and the features of its images."""

    ids: torch.Tensor
    positions: torch.Tensor
    images: Sequence[ImageFeatures]


def left_pad(parts: Iterable[torch.Tensor], filler: int = 0) -> torch.Tensor:
    """Return parts as a left-padded batch."""
    return pad_sequence([part.flip(0) for part in parts], batch_first=True, padding_value=filler).flip(1)


def prefill_packed(network: Any, prompts: Sequence[Prompt]) -> Prefill:
    """Prefill prompts whose images are encoded, as one packed sequence.

    Gradient checkpointing must be off, since it turns caches off.
    """
    lengths = [len(prompt.ids) for prompt in prompts]
    with torch.no_grad():
        output = network(**pack([(prompt, ()) for prompt in prompts]), use_cache=True)
    layers = output.past_key_values.layers
    for layer in layers:
        layer.keys, layer.values = (
            left_pad(states[0].transpose(0, 1).split(lengths)).transpose(1, 2) for states in (layer.keys, layer.values)
        )
    following = torch.tensor([prompt.next_position for prompt in prompts], device=output.logits.device)
    return Prefill(output.logits[0].float(), layers, lengths, following)


def prefill(network: Any, inputs: Mapping[str, Any], images: Sequence[Sequence[ImageFeatures]] | None) -> Prefill:
    """Prefill a left-padded batch.

    Args:
        network: the model.
        inputs: what the processor gives, or features in place of pixels.
        images: the features of each prompt where `inputs` has them; equal images are one object.
    """
    positions = prompt_positions(network, inputs)
    lengths: list[int] = inputs["attention_mask"].sum(1).tolist()
    types = set(getattr(network.config.get_text_config(), "layer_types", None) or ())
    shared = None
    with torch.inference_mode():
        if images is not None and not types - {"full_attention"}:
            shared = _prefill_shared(network, _parts(inputs, positions, images))
        output, layers = shared or _prefill_whole(network, inputs, positions)
    # Padding has position 0.
    return Prefill(output.logits[:, -1].float(), layers, lengths, positions.amax((0, 2)) + 1)


def _prefill_whole(network: Any, inputs: Mapping[str, Any], positions: torch.Tensor) -> tuple[Any, Sequence[Any]]:
    axes = positions if len(positions) > 1 else positions[0]
    output = network(**inputs, position_ids=axes, use_cache=True, logits_to_keep=1)
    return output, output.past_key_values.layers


def _prefill_shared(network: Any, prompts: Sequence[Part]) -> tuple[Any, Sequence[Any]] | None:
    """Prefill beginnings once and then the rest of each prompt; None where too little is shared."""
    config = network.config.get_text_config()
    heads, owners, tails = _split(prompts, network.config.image_token_id)
    saved = sum(len(heads[number].ids) for number in owners) - sum(len(head.ids) for head in heads)
    if saved == 0 or saved < MIN_SHARED_FRACTION * sum(len(prompt.ids) for prompt in prompts):
        return None
    output, mask = _forward(network, heads, DynamicCache(config=config), None)
    spread = torch.tensor(owners, device=mask.device)
    cache = DynamicCache(config=config)
    for number, layer in enumerate(output.past_key_values.layers):
        cache.update(layer.keys[spread], layer.values[spread], number)
    output, mask = _forward(network, tails, cache, mask[spread])
    _close_gaps(cache, mask)
    return output, cache.layers


def _parts(inputs: Mapping[str, Any], positions: torch.Tensor, images: Sequence[Sequence[ImageFeatures]]) -> list[Part]:
    """Return the prompts of a batch without their padding."""
    masks = inputs["attention_mask"].bool()
    return [
        Part(inputs["input_ids"][row][mask], positions[:, row][:, mask].T, images[row])
        for row, mask in enumerate(masks)
    ]


def _split(prompts: Sequence[Part], image_token: int) -> tuple[list[Part], list[int], list[Part]]:
    """Cut each prompt after the last image up to which another one equals it.

    Returns:
        The different heads, for each prompt the number of its head, and its tail. A prompt like no other has an empty
        head.
    """
    ends = [[0, *_image_ends(prompt, image_token)] for prompt in prompts]
    keys = [
        [_key(prompt, n, end) for n, end in enumerate(prompt_ends)]
        for prompt, prompt_ends in zip(prompts, ends, strict=True)
    ]
    counts = Counter(key for prompt_keys in keys for key in prompt_keys)
    heads: dict[Any, Part] = {}
    owner, tails = [], []
    for prompt, prompt_ends, prompt_keys in zip(prompts, ends, keys, strict=True):
        n = max((n for n, key in enumerate(prompt_keys) if counts[key] > 1), default=0)
        ids, positions, images = prompt
        end = prompt_ends[n]
        heads.setdefault(prompt_keys[n], Part(ids[:end], positions[:end], images[:n]))
        owner.append(list(heads).index(prompt_keys[n]))
        tails.append(Part(ids[end:], positions[end:], images[n:]))
    return list(heads.values()), owner, tails


def _image_ends(prompt: Part, image_token: int) -> list[int]:
    places = (prompt.ids == image_token).nonzero().flatten().tolist()
    sizes = [image.tokens for image in prompt.images]
    return [places[seen - 1] + 1 for seen in accumulate(sizes)]


def _key(prompt: Part, images: int, end: int) -> tuple[Any, ...]:
    """Return what equal beginnings have in common: tokens, and images, of which equal ones are one object."""
    return (prompt.ids[:end].cpu().numpy().tobytes(), *(id(image[0]) for image in prompt.images[:images]))


def _forward(network: Any, parts: Sequence[Part], cache: Any, before: torch.Tensor | None) -> tuple[Any, torch.Tensor]:
    """Prefill parts on top of a cache with the mask `before`; return the model's output, and the mask after that."""
    mask = left_pad([torch.ones_like(part.ids) for part in parts])
    mask = mask if before is None else torch.cat([before, mask], 1)
    positions = left_pad([part.positions for part in parts]).permute(2, 0, 1)
    images = [image for part in parts for image in part.images]
    output = network(
        input_ids=left_pad([part.ids for part in parts]),
        attention_mask=mask,
        position_ids=positions if len(positions) > 1 else positions[0],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **(in_place_of_pixels(images) if images else {}),
    )
    return output, mask


def _close_gaps(cache: Any, mask: torch.Tensor) -> None:
    """Left-pad a cache whose rows have padding between their two parts, too."""
    longest = int(mask.sum(1).max())
    order = mask.argsort(dim=1, stable=True)[:, -longest:]
    for layer in cache.layers:
        index = order[:, None, :, None]
        layer.keys, layer.values = (
            states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))
            for states in (layer.keys, layer.values)
        )
