"""Tiny models of the real architectures, with a tokenizer of their own: for tests and for the toy world.

    python -m unifiedreward_think.models.tiny --output outputs/tiny --family qwen2_5_vl qwen3_vl

Weights are random. They are saved in the layout of the released checkpoints, so everything that loads
`Qwen/Qwen2.5-VL-7B-Instruct` loads these.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unifiedreward_think.entry import run_main
from unifiedreward_think.models.tokenizer import END, LLAVA_SPECIALS, PAD, QWEN_SPECIALS, train_tokenizer

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a tiny model is; `patch` is in pixels, `side` the largest picture side it sees.

    `init` is the standard deviation of the random weights: near 1/sqrt(hidden), where a tiny model learns much faster
    than at the 0.02 that suits a width of thousands.
    """

    hidden: int = 64
    layers: int = 2
    vision_hidden: int = 32
    vision_layers: int = 2
    patch: int = 8
    side: int = 32
    init: float = 0.08


def build(family: str, folder: Path, *, corpus: Iterable[str], size: Size | None = None, seed: int = 0) -> None:
    """Write a randomly initialised model and its processor to `folder`.

    Args:
        family: a key of FAMILIES.
        folder: created if needed.
        corpus: texts the tokenizer is trained on; other text still encodes, byte by byte.
        size: how large the model is.
        seed: of the weights.

    Raises:
        ValueError: the family is unknown.
    """
    import torch
    from transformers import GenerationConfig

    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is unknown; choose one of {', '.join(FAMILIES)}")
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(corpus, LLAVA_SPECIALS if family == "llava_onevision" else QWEN_SPECIALS)
    model, processor = FAMILIES[family](tokenizer, size or Size())
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.convert_tokens_to_ids(END), tokenizer.convert_tokens_to_ids(PAD)],
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _text_config(tokenizer: Any, size: Size) -> dict[str, Any]:
    return {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": size.hidden,
        "intermediate_size": size.hidden * 3,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "initializer_range": size.init,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "pad_token_id": tokenizer.convert_tokens_to_ids(PAD),
    }


def _vision_ids(tokenizer: Any) -> dict[str, int]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def _mrope(size: Size, *, theta: float = 1e6, **extra: Any) -> dict[str, Any]:
    """Split half a head's width over time, height and width as the released models do (2:3:3)."""
    half = size.hidden // 4 // 2
    spatial = (half - half // 4) // 2
    sections = [half - 2 * spatial, spatial, spatial]
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": sections, **extra}


def _pixels(size: Size) -> dict[str, int]:
    """Processor limits as pixel counts: one merged token up to the largest picture."""
    return {"shortest_edge": (2 * size.patch) ** 2, "longest_edge": size.side**2}


def _qwen_template() -> str:
    return (TEMPLATES / "qwen_vl.jinja").read_text(encoding="utf-8")


def _qwen2_5_vl(tokenizer: Any, size: Size) -> tuple[Any, Any]:
    import transformers as tf

    config = tf.Qwen2_5_VLConfig(
        text_config={**_text_config(tokenizer, size), "rope_parameters": _mrope(size)},
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_hidden * 2,
            "num_heads": 2,
            "out_hidden_size": size.hidden,
            "patch_size": size.patch,
            "initializer_range": size.init,
            "window_size": size.patch * 8,
            "fullatt_block_indexes": [size.vision_layers - 1],
        },
        **_vision_ids(tokenizer),
    )
    processor = tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(patch_size=size.patch, size=_pixels(size)),
        video_processor=tf.Qwen2VLVideoProcessor(patch_size=size.patch, size=_pixels(size)),
        tokenizer=tokenizer,
        chat_template=_qwen_template(),
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen2_vl(tokenizer: Any, size: Size) -> tuple[Any, Any]:
    import transformers as tf

    config = tf.Qwen2VLConfig(
        text_config={**_text_config(tokenizer, size), "rope_parameters": _mrope(size)},
        vision_config={
            "depth": size.vision_layers,
            "embed_dim": size.vision_hidden,
            "hidden_size": size.hidden,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": size.patch,
            "initializer_range": size.init,
        },
        **_vision_ids(tokenizer),
    )
    processor = tf.Qwen2VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(patch_size=size.patch, size=_pixels(size)),
        video_processor=tf.Qwen2VLVideoProcessor(patch_size=size.patch, size=_pixels(size)),
        tokenizer=tokenizer,
        chat_template=_qwen_template(),
    )
    return tf.Qwen2VLForConditionalGeneration(config), processor


def _qwen3_vision(size: Size) -> dict[str, Any]:
    return {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_hidden * 2,
        "num_heads": 2,
        "out_hidden_size": size.hidden,
        "patch_size": size.patch,
        "initializer_range": size.init,
        "num_position_embeddings": 64,
    }


def _qwen3_processor(tokenizer: Any, size: Size) -> Any:
    import transformers as tf

    mean = [0.5, 0.5, 0.5]
    return tf.Qwen3VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(
            patch_size=size.patch, size=_pixels(size), image_mean=mean, image_std=mean
        ),
        video_processor=tf.Qwen3VLVideoProcessor(patch_size=size.patch, size=_pixels(size)),
        tokenizer=tokenizer,
        chat_template=_qwen_template(),
    )


def _qwen3_vl(tokenizer: Any, size: Size) -> tuple[Any, Any]:
    import transformers as tf

    rope = _mrope(size, theta=5e6, mrope_interleaved=True)
    config = tf.Qwen3VLConfig(
        text_config={**_text_config(tokenizer, size), "head_dim": size.hidden // 4, "rope_parameters": rope},
        vision_config={**_qwen3_vision(size), "deepstack_visual_indexes": [0]},
        **_vision_ids(tokenizer),
    )
    return tf.Qwen3VLForConditionalGeneration(config), _qwen3_processor(tokenizer, size)


def _qwen3_5(tokenizer: Any, size: Size) -> tuple[Any, Any]:
    import transformers as tf

    # Half of the head is rotated in the released models; the sections split that half.
    rope = _mrope(Size(hidden=size.hidden // 2), theta=1e7, mrope_interleaved=True, partial_rotary_factor=0.5)
    text = {
        **_text_config(tokenizer, size),
        "head_dim": size.hidden // 4,
        "rope_parameters": rope,
        "layer_types": ["linear_attention"] * (size.layers - 1) + ["full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": size.hidden // 4,
        "linear_value_head_dim": size.hidden // 4,
    }
    config = tf.Qwen3_5Config(text_config=text, vision_config=_qwen3_vision(size), **_vision_ids(tokenizer))
    return tf.Qwen3_5ForConditionalGeneration(config), _qwen3_processor(tokenizer, size)


def _llava_onevision(tokenizer: Any, size: Size) -> tuple[Any, Any]:
    import transformers as tf

    side = size.side
    grid = [[side, side], [side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(
            hidden_size=size.vision_hidden,
            intermediate_size=size.vision_hidden * 2,
            patch_size=size.patch,
            image_size=side,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=2,
            vision_use_head=False,
        ),
        text_config=tf.Qwen2Config(
            **_text_config(tokenizer, size), rope_parameters={"rope_type": "default", "rope_theta": 1e6}
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    processor = tf.LlavaOnevisionProcessor(
        image_processor=tf.LlavaOnevisionImageProcessor(
            size={"height": side, "width": side}, image_grid_pinpoints=grid
        ),
        video_processor=tf.LlavaOnevisionVideoProcessor(size={"height": side, "width": side}),
        tokenizer=tokenizer,
        num_image_tokens=(side // size.patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=(TEMPLATES / "llava_onevision.jinja").read_text(encoding="utf-8"),
    )
    return tf.LlavaOnevisionForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[Any, Size], tuple[Any, Any]]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "llava_onevision": _llava_onevision,
}


def main() -> None:
    """Write tiny models from the command line."""
    from unifiedreward_think.prompting import load_prompts

    parser = argparse.ArgumentParser(description="Write tiny random models of the supported families.")
    parser.add_argument("--output", type=Path, required=True, help="folder; each family gets a sub-folder")
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), help="which to write")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    args = parser.parse_args()
    for family in args.family:
        build(family, args.output / family, corpus=load_prompts("cot").values(), seed=args.seed)
        print(args.output / family)


if __name__ == "__main__":
    run_main(main)
