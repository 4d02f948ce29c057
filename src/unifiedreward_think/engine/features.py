"""What the vision tower made of pictures, remembered: a picture that many questions show goes through it once.

A ranking of 8 candidates in both orders shows 112 pictures, and 8 of them differ. A picture is known by its pixels.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from PIL.Image import Image

from unifiedreward_think.media import pixel_sha256


class Key(NamedTuple):
    """What a picture's features depend on, besides the model."""

    pixels: str
    crowded: bool  # LLaVA-OneVision sees a picture in tiles only where it is the only one of its prompt


class Picture(NamedTuple):
    """The features of a picture.

    Attributes:
        layers: what the tower gives, each (tokens, width): its output, and for Qwen3-VL what goes into deeper layers.
        grid: (1, 3) patches in time, height and width, of which M-RoPE makes positions; None for other families.
    """

    layers: tuple[torch.Tensor, ...]
    grid: torch.Tensor | None

    @property
    def tokens(self) -> int:
        """Places that it takes in a prompt."""
        return len(self.layers[0])

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(layer.nbytes for layer in self.layers)


def supported(network: Any) -> bool:
    """Whether a model can be given features in place of pictures."""
    return "mm_encoder_outputs" in inspect.signature(type(network).forward).parameters


class PictureCache:
    """The pictures shown last, as many as fit.

    One thread at a time may ask for features, as for completions; any may read the counts.

    Args:
        network: its weights must not change.
        image_processor: of the same model.
        limit: bytes; those of the pictures of one call come on top while it runs.

    Attributes:
        hits: pictures that did not have to be encoded, those shown more than once in a batch included.
        misses: pictures that were encoded.
        bytes: held.
    """

    def __init__(self, network: Any, image_processor: Any, limit: int) -> None:
        self.hits = self.misses = self.bytes = 0
        self._network = network
        self._image_processor = image_processor
        self._limit = limit
        self._tiles = network.config.model_type == "llava_onevision"
        self._known: OrderedDict[Key, Picture] = OrderedDict()

    def features(self, prompts: Sequence[Sequence[Image]]) -> list[list[Picture]]:
        """Return the features of the pictures of each prompt."""
        once = {id(image): image for images in prompts for image in images}  # most are shown by many prompts
        digest = {number: pixel_sha256(image) for number, image in once.items()}
        keys = [[Key(digest[id(one)], self._tiles and len(images) > 1) for one in images] for images in prompts]
        shown = dict(zip(chain.from_iterable(keys), chain.from_iterable(prompts), strict=True))
        new = {key: image for key, image in shown.items() if key not in self._known}
        found = {key: self._known[key] for key in shown.keys() - new.keys()} | self._encode(new)
        self.misses += len(new)
        self.hits += sum(map(len, keys)) - len(new)
        for key in shown:
            self._keep(key, found[key])
        return [[found[key] for key in own] for own in keys]

    def _encode(self, new: Mapping[Key, Image]) -> dict[Key, Picture]:
        if not new:
            return {}
        keys = sorted(new, key=lambda key: key.crowded)
        crowd = [new[key] for key in keys if key.crowded]
        # One alone would be taken for the only picture of its prompt: it stands beside itself.
        together = [crowd * 2 if len(crowd) == 1 else crowd] if crowd else []
        nested = [[new[key]] for key in keys if not key.crowded] + together
        pixels = self._image_processor(images=nested, return_tensors="pt").to(self._network.device)
        with torch.inference_mode():
            output = self._network.model.get_image_features(**pixels, return_dict=True)
        layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        grids = pixels.get("image_grid_thw")
        # Copies, since a part of a batch would keep the memory of all of it.
        return {
            key: Picture(
                tuple(layer[place].clone() for layer in layers),
                None if grids is None else grids[place : place + 1],
            )
            for place, key in enumerate(keys)
        }

    def _keep(self, key: Key, picture: Picture) -> None:
        """Remember a picture as the one shown last, and forget those shown longest ago that no longer fit."""
        if key not in self._known:
            self.bytes += picture.bytes
        self._known[key] = picture
        self._known.move_to_end(key)
        while self.bytes > self._limit:
            _, oldest = self._known.popitem(last=False)
            self.bytes -= oldest.bytes


def encoder_outputs(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Return what a model takes in place of pictures, for all prompts of a batch one after the other."""
    found = in_place_of_pixels([picture.layers for picture in pictures])
    if grids := [picture.grid for picture in pictures if picture.grid is not None]:
        found["image_grid_thw"] = torch.cat(grids)
    return found


def in_place_of_pixels(pictures: Sequence[tuple[torch.Tensor, ...]]) -> dict[str, Any]:
    """Return the argument that holds the layers of pictures; a new one each time, as `generate` may change it."""
    first, *deeper = zip(*pictures, strict=True)
    return {"mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=first, deepstack_features=deeper)}}
