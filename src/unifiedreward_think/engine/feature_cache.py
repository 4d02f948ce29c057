"""Picture features of a frozen vision tower, kept on disk: from the second epoch on, nothing goes through the tower.

A file holds the features of one prompt's pictures. Its name is a digest of everything they depend on: the processed
pixels (and with them the files and the processor's settings), the weights and settings of the tower, its number type,
and the version of transformers. Another model finds nothing here, and a changed picture finds nothing of the old one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unifiedreward_think.engine import streams as shared_prefix
from unifiedreward_think.errors import InputError


def encoder(folder: str | None, network: Any, accelerator: Any, *, frozen: bool) -> Callable[..., shared_prefix.Prompt]:
    """Return what encodes the pictures of a prompt: the tower, or with a folder the cache before it.

    Raises:
        InputError: the tower is trained, or its weights are partitioned.
    """
    if folder is None:
        return shared_prefix.encode_pictures
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if not frozen or (plugin is not None and plugin.zero_stage == 3):
        raise InputError(
            "embedding_cache: needs freeze_vision: true, no projector beside the tower (LLaVA-OneVision's is trained), "
            "and no ZeRO-3; leave it out"
        )
    return EmbeddingCache(Path(folder), network, f"{accelerator.mixed_precision} {network.dtype}").encode_pictures


class EmbeddingCache:
    """Encodes pictures as `shared_prefix.encode_pictures` does, unless they were encoded before.

    Args:
        folder: created if needed; several processes and runs may share it.
        network: the model; what its pictures go through must not be trained.
        number_type: of the encoding, where autocast decides it.
    """

    def __init__(self, folder: Path, network: Any, number_type: str) -> None:
        self._folder = folder
        settings = {key: value for key, value in network.config.to_dict().items() if key != "text_config"}
        settings.pop("_name_or_path", None)
        digest = sha256(json.dumps([transformers.__version__, number_type, settings], default=str).encode())
        for name, weight in network.model.named_parameters():
            if not name.startswith("language_model."):
                _add(digest, name, weight)
        self._tower = digest

    def encode_pictures(self, network: Any, prompt: shared_prefix.Prompt) -> shared_prefix.Prompt:
        """Return the prompt with the features of its pictures.

        Raises:
            InputError: a file of the cache is damaged.
        """
        digest = self._tower.copy()
        for name, value in sorted(prompt.pixels.items()):
            _add(digest, name, value)
        name = digest.hexdigest()
        file = self._folder / name[:2] / f"{name}.safetensors"
        if not file.exists():
            prompt = shared_prefix.encode_pictures(network, prompt)
            _write(file, prompt.features)
            return prompt
        try:
            stored = load_file(file, device=str(prompt.ids.device))
        except SafetensorError as error:
            raise InputError(f"embedding_cache: {file} is damaged ({error}); delete it") from error
        return replace(prompt, features=_features(stored))


def _add(digest: Any, name: str, tensor: torch.Tensor) -> None:
    plain = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy())


def _write(file: Path, features: Any) -> None:
    """Write a file whole or not at all, whoever else writes it."""
    layers = [features.pooler_output, *features.deepstack_features]
    tensors = {f"{i} {j}": one.clone() for i, layer in enumerate(layers) for j, one in enumerate(layer)}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    save_file(tensors, partial)
    partial.replace(file)


def _features(stored: dict[str, torch.Tensor]) -> Any:
    layers: dict[int, dict[int, torch.Tensor]] = {}
    for key, tensor in stored.items():
        layer, picture = map(int, key.split())
        layers.setdefault(layer, {})[picture] = tensor
    pooled, *deep = (tuple(layers[i][j] for j in range(len(layers[i]))) for i in range(len(layers)))
    return SimpleNamespace(pooler_output=pooled, deepstack_features=deep)
