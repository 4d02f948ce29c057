"""Models of released sizes without their weights: a config and a processor, whose weights `measuring.Place` draws.

The numbers are those of config.json in the Hub repositories named in RELEASED, where they differ from the defaults of
transformers' config classes or decide how large the model is. The tokenizer is made here: it knows some hundred tokens,
and the model has a row for each of the 151,936 of the released vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import measuring

VOCABULARY = 151936  # text_config.vocab_size of both


@dataclass(frozen=True)
class Released:
    """What config.json of `source` says; `patch` is vision_config.patch_size, which the processor needs, too."""

    source: str
    family: str
    patch: int
    text: dict[str, Any]
    vision: dict[str, Any]


RELEASED = {
    "qwen2_5_vl_3b": Released(
        source="Qwen/Qwen2.5-VL-3B-Instruct",
        family="qwen2_5_vl",
        patch=14,
        text={
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,  # heads of 128
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128000,
            # rope_theta and rope_scaling there; half a head, 64, in time, height and width
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
    ),
    "qwen3_vl_2b": Released(
        source="Qwen/Qwen3-VL-2B-Instruct",
        family="qwen3_vl",
        patch=16,
        text={
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        vision={
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    ),
}


def write(name, folder, *, tiny_size=False):
    """Write config and processor of a released model to `folder`; with `tiny_size` of one of two small layers.

    Pictures go in at up to `measuring.SIDE` pixels a side, tiny ones at 64.
    """
    import torch
    from transformers import GenerationConfig

    from unifiedreward_think.models import tiny
    from unifiedreward_think.models.tokenizer import END, PAD, QWEN_SPECIALS, train_tokenizer

    released = RELEASED[name]
    tokenizer = train_tokenizer([" ".join(measuring.WORDS)], QWEN_SPECIALS)
    size = tiny.Size(patch=8, side=64) if tiny_size else tiny.Size(patch=released.patch, side=measuring.SIDE, init=0.02)
    with torch.device("meta"):  # for its config; no weights are made
        network, processor = tiny.FAMILIES[released.family](tokenizer, size)
    config = network.config.to_dict()
    text = {"vocab_size": 2048} if tiny_size else {**released.text, "vocab_size": VOCABULARY}
    config["text_config"].pop("layer_types", None)  # one for each layer, made anew
    config["text_config"] |= {**text, "tie_word_embeddings": True}
    config["vision_config"] |= {} if tiny_size else released.vision
    type(network.config).from_dict({**config, "tie_word_embeddings": True}).save_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids([END, PAD])
    GenerationConfig(eos_token_id=ends, pad_token_id=ends[1]).save_pretrained(folder)
    processor.save_pretrained(folder)
