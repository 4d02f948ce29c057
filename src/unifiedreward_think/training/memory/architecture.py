"""The numbers of a model that decide its memory, from its config.json alone: parameters, widths, picture tokens.

No model is loaded and torch is not needed. Counts are exact: tests compare them with what transformers builds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unifiedreward_think.errors import InputError
from unifiedreward_think.models.adapters import adapter_folder, base_of
from unifiedreward_think.models.families import FAMILIES
from unifiedreward_think.models.soundness import read_object, reading

Config = Mapping[str, Any]
Linears = dict[str, tuple[int, int]]  # name -> inputs, outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """The vision tower.

    Attributes:
        parameters: of the tower; without the projector that LLaVA-OneVision keeps outside.
        depth, hidden, intermediate: of its blocks.
        gated: whether a block's MLP multiplies two branches.
        rms_norm: whether its norms are RMSNorm, which keeps a float32 copy; LayerNorm otherwise.
        patch_values: numbers in one patch.
        merge: patches behind one token of the language model.
        patch: side of a patch in pixels.
        tokens: of a picture of any size, where they are fixed.
        linears: names that LoRA may match inside a block.
    """

    parameters: int
    depth: int
    hidden: int
    intermediate: int
    gated: bool
    rms_norm: bool
    patch_values: int
    merge: int
    patch: int
    tokens: int | None = None
    linears: Linears


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A vision-language model.

    Attributes:
        family: its model_type.
        layers, hidden, intermediate, vocabulary: of the language model.
        queries, keys: width of all query heads, and of all key heads.
        head_norm: whether queries and keys are normalized (Qwen3).
        text: parameters of the language model with its head.
        head: parameters of the head, shared with the embedding or not.
        connector: parameters between tower and language model that do not belong to the tower.
        tower: the vision tower.
    """

    family: str
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    queries: int
    keys: int
    head_norm: bool
    text: int
    head: int
    connector: int
    tower: Tower

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.text + self.connector + self.tower.parameters

    @property
    def linears(self) -> Linears:
        """The linear layers of one layer of the language model."""
        h, i, q, k = self.hidden, self.intermediate, self.queries, self.keys
        attention = {"q_proj": (h, q), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (q, h)}
        return {**attention, "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}

    def picture_tokens(self, max_pixels: int | None) -> int:
        """Return the most tokens that a picture of a pair takes.

        Raises:
            InputError: the limit of its area is not given.
        """
        if self.tower.tokens is not None:
            return self.tower.tokens
        if max_pixels is None:
            raise InputError("max_pixels is not set, so a picture may have any size: set it")
        return max(1, max_pixels // (self.tower.patch * self.tower.merge) ** 2)


def load_architecture(model: str) -> Architecture:
    """Read config.json in a folder, or of a model on the Hub; of an adapter, that of its base.

    Raises:
        InputError: there is none, it is damaged, or its family is not covered.
    """
    if (adapter := adapter_folder(model)) is not None:
        return load_architecture(base_of(adapter)[0])
    path = Path(model) / "config.json"
    if not path.is_file():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(model, "config.json"))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise InputError(
                f"{model}: no folder with a config.json, and not found on the Hub ({type(error).__name__}); "
                "name the model that training starts from with --model"
            ) from error
    with reading(model, "its config.json"):
        return read_architecture(read_object(path))


def read_architecture(config: Config) -> Architecture:
    """Return the architecture that a config.json describes, in the old flat layout or the nested one.

    Raises:
        InputError: the family is not covered.
    """
    family = config.get("model_type")
    if family not in TOWERS:
        raise InputError(f"model_type {family!r} is not covered; covered: {', '.join(TOWERS)}")
    text = {**config, **config.get("text_config", {})}
    h, i, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    width = text.get("head_dim") or h // text["num_attention_heads"]
    queries, keys = width * text["num_attention_heads"], width * text["num_key_value_heads"]
    head_norm = FAMILIES[family].head_norm
    # Qwen2 has biases on queries, keys and values; Qwen3 has a norm on each head of queries and keys instead.
    more = 2 * width if head_norm else queries + 2 * keys
    layer = 2 * h + h * (queries + 2 * keys) + queries * h + 3 * h * i + more
    head = text["vocab_size"] * h
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))
    return Architecture(
        family=family,
        layers=layers,
        hidden=h,
        intermediate=i,
        vocabulary=text["vocab_size"],
        queries=queries,
        keys=keys,
        head_norm=head_norm,
        text=head * (1 if tied else 2) + layers * layer + h,
        head=head,
        connector=_connector(config, h),
        tower=TOWERS[family](config["vision_config"], h),
    )


def _connector(config: Config, hidden: int) -> int:
    """Parameters of LLaVA-OneVision's projector and of its picture-end token; the others' mergers are in the tower."""
    if not FAMILIES[config["model_type"]].projector:
        return 0
    return _linear(config["vision_config"]["hidden_size"], hidden) + _linear(hidden, hidden) + hidden


def _linear(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer with bias."""
    return (inputs + 1) * outputs


def _merger(hidden: int, merge: int, out: int) -> int:
    """Parameters of the two layers that join merge x merge patches."""
    wide = hidden * merge**2
    return _linear(wide, wide) + _linear(wide, out)


def _patch_values(vision: Config, channels: str) -> int:
    values: int = vision.get(channels, 3) * vision.get("temporal_patch_size", 2) * vision.get("patch_size", 14) ** 2
    return values


def _qwen2_5_vl(vision: Config, _: int) -> Tower:
    hidden, inner, depth = vision["hidden_size"], vision["intermediate_size"], vision["depth"]
    merge, values = vision.get("spatial_merge_size", 2), _patch_values(vision, "in_channels")
    mlp = 2 * _linear(hidden, inner) + _linear(inner, hidden)
    block = 2 * hidden + _linear(hidden, 3 * hidden) + _linear(hidden, hidden) + mlp
    return Tower(
        parameters=values * hidden + depth * block + hidden + _merger(hidden, merge, vision["out_hidden_size"]),
        depth=depth,
        hidden=hidden,
        intermediate=inner,
        gated=True,
        rms_norm=True,
        patch_values=values,
        merge=merge,
        patch=vision.get("patch_size", 14),
        linears={"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)},
    )


def _layer_norm_tower(
    *,
    parameters: int,
    depth: int,
    hidden: int,
    inner: int,
    mlp: tuple[str, str],
    attention: Sequence[str] = (),
    **rest: Any,
) -> Tower:
    """Return a tower whose blocks have two LayerNorms and an MLP of one branch.

    Args:
        parameters: of what is not in a block.
        depth: number of blocks.
        hidden: width of a block.
        inner: width inside its MLP.
        mlp: names of the two layers of the MLP.
        attention: names of layers of the attention that LoRA may match.
        rest: the other attributes of a Tower.
    """
    block = 4 * hidden + 4 * _linear(hidden, hidden) + _linear(hidden, inner) + _linear(inner, hidden)
    up, down = mlp
    return Tower(
        parameters=parameters + depth * block,
        depth=depth,
        hidden=hidden,
        intermediate=inner,
        gated=False,
        rms_norm=False,
        linears={**{name: (hidden, hidden) for name in attention}, up: (hidden, inner), down: (inner, hidden)},
        **rest,
    )


def _qwen2_vl(vision: Config, out: int) -> Tower:
    hidden, merge = vision["embed_dim"], vision.get("spatial_merge_size", 2)
    values = _patch_values(vision, "in_channels")
    return _layer_norm_tower(
        parameters=values * hidden + 2 * hidden + _merger(hidden, merge, out),
        depth=vision["depth"],
        hidden=hidden,
        inner=int(hidden * vision.get("mlp_ratio", 4)),
        mlp=("fc1", "fc2"),
        patch_values=values,
        merge=merge,
        patch=vision.get("patch_size", 14),
    )


def _qwen3_vl(vision: Config, _: int) -> Tower:
    hidden, merge, out = vision["hidden_size"], vision.get("spatial_merge_size", 2), vision["out_hidden_size"]
    values = _patch_values(vision, "in_channels")
    mergers = 2 * hidden + _merger(hidden, merge, out)
    # The mergers of the deep layers normalize after joining.
    mergers += len(vision["deepstack_visual_indexes"]) * (2 * hidden * merge**2 + _merger(hidden, merge, out))
    return _layer_norm_tower(
        parameters=(values + 1 + vision["num_position_embeddings"]) * hidden + mergers,
        depth=vision["depth"],
        hidden=hidden,
        inner=vision["intermediate_size"],
        mlp=("linear_fc1", "linear_fc2"),
        patch_values=values,
        merge=merge,
        patch=vision.get("patch_size", 16),
    )


def _llava_onevision(vision: Config, _: int) -> Tower:
    hidden = vision["hidden_size"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    values = vision.get("num_channels", 3) * vision["patch_size"] ** 2
    return _layer_norm_tower(
        parameters=(values + 1 + patches) * hidden + 2 * hidden,
        depth=vision["num_hidden_layers"],
        hidden=hidden,
        inner=vision["intermediate_size"],
        mlp=("fc1", "fc2"),
        attention=("q_proj", "k_proj", "v_proj", "out_proj"),
        patch_values=values,
        merge=1,
        patch=vision["patch_size"],
        # Two and more pictures are not tiled: each takes its patches and one token that ends it.
        tokens=patches + 1,
    )


TOWERS: dict[str, Callable[[Config, int], Tower]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava_onevision": _llava_onevision,
}
