"""Prompts of a batch that begin alike, pictures included: what they share is read once, then the rest of each.

    | a a a a a | b b |       two prefixes, read as a batch of their own
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

from unifiedreward_think.engine.features import in_place_of_pixels

WORTH = 0.25  # share of the tokens that must be saved: a second pass has a price of its own


class Reading(NamedTuple):
    """What a model made of a batch of prompts, filled up on the left.

    Attributes:
        scores: (rows, vocabulary) of the first token.
        cache: keys and values.
        mask: (rows, columns) of the cache.
        following: (rows,) position of the first token.
    """

    scores: torch.Tensor
    cache: Any
    mask: torch.Tensor
    following: torch.Tensor


class Part(NamedTuple):
    """A prompt or a piece of one: its tokens, their positions (tokens, axes), and the features of its pictures."""

    ids: torch.Tensor
    positions: torch.Tensor
    pictures: Sequence[tuple[torch.Tensor, ...]]


def read(network: Any, inputs: Mapping[str, Any]) -> Reading | None:
    """Read prompts whose pictures are encoded; None where too little is shared, or layers do not keep all tokens."""
    config = network.config.get_text_config()
    strange = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if "mm_encoder_outputs" not in inputs or strange:
        return None
    prompts = _prompts(network, inputs)
    heads, owner, tails = _split(prompts, network.config.image_token_id)
    saved = sum(len(heads[number].ids) for number in owner) - sum(len(head.ids) for head in heads)
    if saved == 0 or saved < WORTH * sum(len(prompt.ids) for prompt in prompts):
        return None
    with torch.inference_mode():
        output, mask = _forward(network, heads, DynamicCache(config=config), None)
        spread = torch.tensor(owner, device=mask.device)
        cache = DynamicCache(config=config)
        for number, layer in enumerate(output.past_key_values.layers):
            cache.update(layer.keys[spread], layer.values[spread], number)
        output, mask = _forward(network, tails, cache, mask[spread])
        mask = _close_gaps(cache, mask)
    following = torch.stack([prompt.positions.max() + 1 for prompt in prompts])
    return Reading(output.logits[:, -1].float(), cache, mask, following)


def _prompts(network: Any, inputs: Mapping[str, Any]) -> list[Part]:
    """Return the prompts of a batch, each with the positions that the model would use."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    features = inputs["mm_encoder_outputs"]["image"]
    pictures = iter(list(zip(features.pooler_output, *features.deepstack_features, strict=True)))
    if "image_grid_thw" in inputs:
        given = {name: inputs[name] for name in ("mm_token_type_ids", "image_grid_thw", "attention_mask")}
        positions, _ = network.model.get_rope_index(ids, **given)
    else:
        positions = (mask.cumsum(1) - 1)[None]
    found = []
    for row, kept in enumerate(mask):
        own, left = [], int((ids[row] == network.config.image_token_id).sum())
        while left:
            own.append(next(pictures))
            left -= len(own[-1][0])
        found.append(Part(ids[row][kept], positions[:, row][:, kept].T, own))
    return found


def _split(prompts: Sequence[Part], image_token: int) -> tuple[list[Part], list[int], list[Part]]:
    """Cut each prompt after the last picture up to which another one equals it.

    Returns:
        The different heads, for each prompt the number of its head, and its tail. A prompt like no other has an empty
        head.
    """
    ends = [[0, *_picture_ends(prompt, image_token)] for prompt in prompts]
    keys = [[_key(prompt, n, end) for n, end in enumerate(own)] for prompt, own in zip(prompts, ends, strict=True)]
    counts = Counter(key for own in keys for key in own)
    heads: dict[Any, Part] = {}
    owner, tails = [], []
    for prompt, own_ends, own in zip(prompts, ends, keys, strict=True):
        n = max((n for n, key in enumerate(own) if counts[key] > 1), default=0)
        ids, positions, pictures = prompt
        end = own_ends[n]
        heads.setdefault(own[n], Part(ids[:end], positions[:end], pictures[:n]))
        owner.append(list(heads).index(own[n]))
        tails.append(Part(ids[end:], positions[end:], pictures[n:]))
    return list(heads.values()), owner, tails


def _picture_ends(prompt: Part, image_token: int) -> list[int]:
    places = (prompt.ids == image_token).nonzero().flatten().tolist()
    sizes = [len(picture[0]) for picture in prompt.pictures]
    return [places[seen - 1] + 1 for seen in accumulate(sizes)]


def _key(prompt: Part, pictures: int, end: int) -> tuple[Any, ...]:
    """Return what equal beginnings have in common: tokens, and pictures, of which equal ones are one object."""
    return (prompt.ids[:end].cpu().numpy().tobytes(), *(id(picture[0]) for picture in prompt.pictures[:pictures]))


def _forward(network: Any, parts: Sequence[Part], cache: Any, before: torch.Tensor | None) -> tuple[Any, torch.Tensor]:
    """Read parts on top of a cache with the mask `before`; return what the model says, and the mask after that."""
    mask = fill_left([torch.ones_like(part.ids) for part in parts])
    mask = mask if before is None else torch.cat([before, mask], 1)
    positions = fill_left([part.positions for part in parts]).permute(2, 0, 1)
    pictures = [picture for part in parts for picture in part.pictures]
    output = network(
        input_ids=fill_left([part.ids for part in parts]),
        attention_mask=mask,
        position_ids=positions if len(positions) > 1 else positions[0],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **(in_place_of_pixels(pictures) if pictures else {}),
    )
    return output, mask


def fill_left(parts: Iterable[torch.Tensor], filler: int = 0) -> torch.Tensor:
    """Return parts side by side, filled up on the left."""
    return pad_sequence([part.flip(0) for part in parts], batch_first=True, padding_value=filler).flip(1)


def _close_gaps(cache: Any, mask: torch.Tensor) -> torch.Tensor:
    """Move the columns of each row to the right, where no gap is left between its two parts; return the new mask."""
    longest = int(mask.sum(1).max())
    order = mask.argsort(dim=1, stable=True)[:, -longest:]
    for layer in cache.layers:
        index = order[:, None, :, None]
        layer.keys, layer.values = (
            states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))
            for states in (layer.keys, layer.values)
        )
    return mask.gather(1, order)
