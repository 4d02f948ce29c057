"""Image features of a frozen vision tower on disk: from the second epoch on, nothing goes through the tower.

A file holds the features of one image. Its name is a digest of everything they depend on: the image's key (see
`features`), the weights and settings of the tower, the settings of the image processor, the dtype, and the version of
transformers. Another model finds nothing here, and a changed image finds nothing of the old one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unifiedreward_think.engine.features import ImageFeatures, ImageKey, image_keys
from unifiedreward_think.engine.packing import Prompt, encode_prompt
from unifiedreward_think.writing import whole


class FeatureFolder:
    """Encodes the images of prompts, unless all of them were encoded before.

    Args:
        folder: created if needed; several processes and runs may share it.
        network: the model; what its images go through must not be trained.
        image_processor: of the same model.
        dtype: of the encoding, where autocast decides it.
    """

    def __init__(self, folder: Path, network: Any, image_processor: Any, dtype: str) -> None:
        self._folder = folder
        config = {key: value for key, value in network.config.to_dict().items() if key != "text_config"}
        config.pop("_name_or_path", None)
        settings = [transformers.__version__, dtype, config, image_processor.to_dict()]
        digest = sha256(json.dumps(settings, default=str).encode())
        for name, weight in network.model.named_parameters():
            if not name.startswith("language_model."):
                for part in _content(name, weight):
                    digest.update(part)
        self._model = digest.hexdigest()

    def encode(self, network: Any, prompt: Prompt, images: Sequence[Image]) -> Prompt:
        """Return the prompt with the features of its images; what is missing or damaged is encoded again."""
        (keys,) = image_keys(network, [images])
        files = [self._file(key) for key in keys]
        stored = [features for file in files if (features := _load(file, prompt.ids.device)) is not None]
        if len(stored) == len(files):
            return replace(prompt, features=stored)
        prompt = encode_prompt(network, prompt)
        for file, features in zip(files, prompt.features, strict=True):
            _store(file, features)
        return prompt

    def _file(self, key: ImageKey) -> Path:
        name = sha256(f"{self._model} {key}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"


def _store(file: Path, features: ImageFeatures) -> None:
    tensors = {str(number): layer.clone() for number, layer in enumerate(features.layers)}
    if features.grid is not None:
        tensors["grid"] = features.grid.clone()
    with whole(file, cache=True) as scratch:
        save_file(tensors, scratch, metadata={"crc32": _checksum(tensors)})


def _load(file: Path, device: torch.device) -> ImageFeatures | None:
    """Return the features of a file, None where it is missing, cut or damaged."""
    try:
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
            checksum = (stored.metadata() or {}).get("crc32")
    except (FileNotFoundError, SafetensorError):
        return None
    if checksum != _checksum(tensors):
        return None
    placed = {name: tensor.to(device) for name, tensor in tensors.items()}
    grid = placed.pop("grid", None)
    return ImageFeatures(tuple(placed[str(number)] for number in range(len(placed))), grid)


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a checksum that is made faster than an image is encoded: disks lose bits without a word."""
    value = 0
    for part in chain.from_iterable(_content(*item) for item in sorted(tensors.items())):
        value = zlib.crc32(part, value)
    return f"{value:08x}"


def _content(name: str, tensor: torch.Tensor) -> tuple[bytes, Any]:
    """Return what a digest of a tensor is made of: its name, dtype and shape, and its bytes."""
    plain = tensor.detach().cpu().contiguous()
    return f"{name} {plain.dtype} {tuple(plain.shape)}".encode(), plain.reshape(-1).view(torch.uint8).numpy()
