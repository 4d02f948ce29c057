"""Image features: what the vision tower makes of images, remembered, so that one shown often goes through it once.

A ranking of 8 candidates in both orders shows 112 images, and 8 of them differ. An image is known by its pixels.
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
from unifiedreward_think.models.families import FAMILIES


class ImageKey(NamedTuple):
    """What the features of an image depend on, besides the model and its processor."""

    pixels: str
    multi_image: bool  # LLaVA-OneVision tiles an image only where it is alone in its prompt


class ImageFeatures(NamedTuple):
    """The features of an image.

    Attributes:
        layers: what the tower gives, each (tokens, width): its output, and for Qwen3-VL what goes into deeper layers.
        grid: (1, 3) patches in time, height and width, of which M-RoPE makes positions; None for other families.
    """

    layers: tuple[torch.Tensor, ...]
    grid: torch.Tensor | None

    @property
    def tokens(self) -> int:
        """Tokens that it takes in a prompt."""
        return len(self.layers[0])

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(layer.nbytes for layer in self.layers)


def supported(network: Any) -> bool:
    """Whether a model can be given features in place of images."""
    return "mm_encoder_outputs" in inspect.signature(type(network).forward).parameters


def image_keys(network: Any, prompts: Sequence[Sequence[Image]]) -> list[list[ImageKey]]:
    """Return the keys of the images of each prompt."""
    tiles = FAMILIES[network.config.model_type].tiles_lone_image
    digests = {id(image): pixel_sha256(image) for image in {id(one): one for one in chain(*prompts)}.values()}
    return [[ImageKey(digests[id(one)], tiles and len(images) > 1) for one in images] for images in prompts]


def encode_images(network: Any, pixels: Mapping[str, Any]) -> list[ImageFeatures]:
    """Return the features of images as the processor gives them; no graph is kept."""
    with torch.no_grad():
        output = network.model.get_image_features(**pixels, return_dict=True)
    layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    grids = pixels.get("image_grid_thw")
    return [
        ImageFeatures(one, None if grids is None else grids[place : place + 1])
        for place, one in enumerate(zip(*layers, strict=True))
    ]


class FeatureCache:
    """The features of the images shown last, as many as fit.

    One thread at a time may ask for features, as for completions; any may read the counts.

    Args:
        network: its weights must not change.
        image_processor: of the same model.
        limit: bytes; those of the images of one call come on top while it runs.

    Attributes:
        hits: images that did not have to be encoded, those shown more than once in a batch included.
        misses: images that were encoded.
        bytes: held.
    """

    def __init__(self, network: Any, image_processor: Any, limit: int) -> None:
        self.hits = self.misses = self.bytes = 0
        self._network = network
        self._image_processor = image_processor
        self._limit = limit
        self._known: OrderedDict[ImageKey, ImageFeatures] = OrderedDict()

    def features(self, prompts: Sequence[Sequence[Image]]) -> list[list[ImageFeatures]]:
        """Return the features of the images of each prompt."""
        keys = image_keys(self._network, prompts)
        shown = dict(zip(chain.from_iterable(keys), chain.from_iterable(prompts), strict=True))
        new = {key: image for key, image in shown.items() if key not in self._known}
        features = {key: self._known[key] for key in shown.keys() - new.keys()} | self._encode(new)
        self.misses += len(new)
        self.hits += sum(map(len, keys)) - len(new)
        for key in shown:
            self._keep(key, features[key])
        return [[features[key] for key in keys_of_prompt] for keys_of_prompt in keys]

    def _encode(self, new: Mapping[ImageKey, Image]) -> dict[ImageKey, ImageFeatures]:
        if not new:
            return {}
        keys = sorted(new, key=lambda key: key.multi_image)
        several = [new[key] for key in keys if key.multi_image]
        # Alone in a prompt it would be tiled, so it is duplicated.
        together = [several * 2 if len(several) == 1 else several] if several else []
        nested = [[new[key]] for key in keys if not key.multi_image] + together
        pixels = self._image_processor(images=nested, return_tensors="pt").to(self._network.device)
        with torch.inference_mode():
            encoded = encode_images(self._network, pixels)
        # Copies, since a part of a batch would keep the memory of all of it.
        return {
            key: ImageFeatures(tuple(layer.clone() for layer in layers), grid)
            for key, (layers, grid) in zip(keys, encoded, strict=False)
        }

    def _keep(self, key: ImageKey, features: ImageFeatures) -> None:
        """Remember an image as the one shown last, and forget those shown longest ago that no longer fit."""
        if key not in self._known:
            self.bytes += features.bytes
        self._known[key] = features
        self._known.move_to_end(key)
        while self.bytes > self._limit:
            _, oldest = self._known.popitem(last=False)
            self.bytes -= oldest.bytes


def in_place_of_pixels(images: Sequence[ImageFeatures]) -> dict[str, Any]:
    """Return what a model takes in place of images, for all prompts of a batch one after the other."""
    first, *deeper = zip(*(image.layers for image in images), strict=True)
    outputs = SimpleNamespace(pooler_output=first, deepstack_features=deeper)
    inputs: dict[str, Any] = {"mm_encoder_outputs": {"image": outputs}}
    if grids := [image.grid for image in images if image.grid is not None]:
        inputs["image_grid_thw"] = torch.cat(grids)
    return inputs
