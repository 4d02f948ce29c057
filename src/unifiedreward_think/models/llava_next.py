"""Convert a LLaVA-NeXT `llava_qwen` checkpoint to LLaVA-OneVision, which transformers, vLLM and this project run.

    python -m unifiedreward_think.models.llava_next --input UnifiedReward-Think-7b --output UnifiedReward-Think-7b-hf

Weights keep their values and dtype, so text and picture features give the logits of the source. Facts come from
LLaVA-VL/LLaVA-NeXT (llava/model/llava_arch.py, multimodal_encoder/siglip_encoder.py, multimodal_projector/builder.py,
mm_utils.py), the same files in CodeGoat24/UnifiedReward, and transformers' former convert_llava_onevision_weights_to_hf.py.
What the weights do not decide: a row with several pictures gets one padded tile each, as in LLaVA-NeXT's training code;
the inference scripts of UnifiedReward cut every picture into tiles.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

from unifiedreward_think.models.loading import UnsupportedModelError

# Last part of mm_vision_tower -> what LLaVA-NeXT hard-codes for it. The tower has 27 layers; LLaVA-NeXT deletes the last
# one and the pooling head, then reads the output of layer 26 before post_layernorm.
TOWERS: dict[str, dict[str, Any]] = {
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "vision_use_head": False,
    }
}
# Option -> values that LlavaOnevision computes (None: absent), and why no other is converted.
OPTIONS: dict[str, tuple[tuple[Any, ...], str]] = {
    "mm_projector_type": (("mlp2x_gelu",), "its projector is two linear layers with a GELU between"),
    "mm_patch_merge_type": (("spatial_unpad",), "it always unpads the tiles and appends image_newline to each row"),
    "mm_vision_select_layer": ((None, -2), "it reads the last layer that LLaVA-NeXT leaves in the tower"),
    "mm_vision_select_feature": ((None, "patch"), "SigLIP has no class token"),
    "mm_resampler_type": ((None,), "it has no resampler"),
    "mm_spatial_pool_mode": ((None, "bilinear"), "it shrinks video frames by bilinear interpolation only"),
    "mm_newline_position": ((None, "one_token"), "it puts one image_newline behind a whole video"),
    "add_faster_video": ((None, False), "it has no second, coarser stream of frames"),
    "mm_use_im_start_end": ((None, False), "it puts no marker tokens around pictures"),
    "mm_use_im_patch_token": ((None, False), "its picture token is <image>"),
    "rope_scaling": ((None,), "LLaVA-NeXT ignores the option, so what the weights expect is unknown"),
}
# Read by no forward pass of LLaVA-NeXT (the pooling stride is always 2), or handled below.
HARMLESS = {"mm_hidden_size", "mm_projector_lr", "mm_spatial_pool_out_channels", "mm_spatial_pool_stride"}
HARMLESS |= {"mm_tunable_parts", "mm_vision_tower", "mm_vision_tower_lr"}

TEXT_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
TEXT_REQUIRED = (*TEXT_SIZES, "max_position_embeddings", "rms_norm_eps", "rope_theta")
TEXT_OPTIONAL = ("hidden_act", "initializer_range", "attention_dropout", "use_sliding_window", "sliding_window")
TEXT_OPTIONAL += ("max_window_layers", "bos_token_id", "eos_token_id", "pad_token_id")

PROJECTIONS = [f"self_attn.{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")]
TEXT_LAYER = [*PROJECTIONS, *(f"{name}.weight" for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"))]
TEXT_LAYER += ["mlp.down_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight"]
VISION_MODULES = ("self_attn.out_proj", "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2")
VISION_LAYER = [*PROJECTIONS, *(f"{name}.{kind}" for name in VISION_MODULES for kind in ("weight", "bias"))]
TOWER = "model.vision_tower.vision_tower.vision_model."
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")

# The conversation `qwen_1_5`, with which these models are trained, starts with this turn.
SYSTEM = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}{%- endif -%}\n"
)


def convert(source: Path, output: Path, *, processor: Path | None = None) -> None:
    """Write the LLaVA-OneVision form of `source` to `output`, one weight file at a time.

    Args:
        source: folder with config.json, safetensors and the tokenizer.
        output: created; must not hold files. A failed conversion leaves nothing there.
        processor: folder with the tokenizer, if `source` has none.

    Raises:
        UnsupportedModelError: an option that LlavaOnevision does not have.
        ValueError: a weight is missing, unknown or of another shape.
        FileExistsError: `output` holds files.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} holds files; name an empty or new folder")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    check_options(source, config)
    tower = TOWERS[Path(config["mm_vision_tower"]).name]
    tied = bool(config.get("tie_word_embeddings"))
    names = key_names(int(config["num_hidden_layers"]), tower["num_hidden_layers"], tied=tied)
    files = weight_files(source)
    check_keys(source, files, names, tower_layers=tower["num_hidden_layers"], tied=tied)
    tokenizer = load_tokenizer(processor or source)
    rows = max(embedding_rows(source, files), len(tokenizer))

    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write_configs(source, partial, config, tokenizer, rows=rows)
        write_weights(source, partial, files, names, rows=rows)
        check_loads(partial)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_options(source: Path, config: dict[str, Any]) -> None:
    """Refuse a checkpoint that LlavaOnevision would compute differently, by option."""
    where = source / "config.json"
    kind, architectures = config.get("model_type"), config.get("architectures") or []
    # lmms-lab's releases say "llava", fine-tuned checkpoints "llava_qwen".
    if kind != "llava_qwen" and not (kind == "llava" and "LlavaQwenForCausalLM" in architectures):
        raise UnsupportedModelError(f"{where}: model_type {kind!r} is not llava_qwen")
    if missing := [key for key in TEXT_REQUIRED if config.get(key) is None]:
        raise UnsupportedModelError(f"{where}: {', '.join(missing)} not given")
    tower = TOWERS.get(Path(str(config.get("mm_vision_tower"))).name)
    if tower is None:
        raise UnsupportedModelError(
            f"{where}: mm_vision_tower {config.get('mm_vision_tower')!r} is not converted; known: {', '.join(TOWERS)}"
        )
    for key, (values, reason) in OPTIONS.items():
        if config.get(key) not in values:
            raise UnsupportedModelError(f"{where}: {key} {config.get(key)!r} is not converted: LlavaOnevision: {reason}")
    if not re.fullmatch(r"anyres_max_\d+", str(config.get("image_aspect_ratio"))):
        raise UnsupportedModelError(
            f"{where}: image_aspect_ratio {config.get('image_aspect_ratio')!r} is not converted: LlavaOnevision computes "
            "anyres_max_N only"
        )
    if unknown := sorted(key for key in config if key.startswith("mm_") and key not in OPTIONS.keys() | HARMLESS):
        raise UnsupportedModelError(
            f"{where}: unknown option {', '.join(unknown)}; remove it if it does not change the forward pass"
        )


def key_names(text_layers: int, tower_layers: int, *, tied: bool) -> dict[str, str]:
    """Return every weight of the source and its name in released LLaVA-OneVision checkpoints.

    >>> key_names(1, 1, tied=False)["model.mm_projector.2.bias"]
    'multi_modal_projector.linear_2.bias'
    """
    names = {"model.image_newline": "image_newline"}
    for place, linear in (("0", "linear_1"), ("2", "linear_2")):
        for kind in ("weight", "bias"):
            names[f"model.mm_projector.{place}.{kind}"] = f"multi_modal_projector.{linear}.{kind}"
    text = ["embed_tokens.weight", "norm.weight"]
    text += [f"layers.{n}.{weight}" for n in range(text_layers) for weight in TEXT_LAYER]
    names |= {f"model.{key}": f"language_model.model.{key}" for key in text}
    if not tied:
        names["lm_head.weight"] = "language_model.lm_head.weight"
    vision = [f"embeddings.patch_embedding.{kind}" for kind in ("weight", "bias")]
    vision += ["embeddings.position_embedding.weight", "post_layernorm.weight", "post_layernorm.bias"]
    vision += [f"encoder.layers.{n}.{weight}" for n in range(tower_layers) for weight in VISION_LAYER]
    return names | {TOWER + key: f"vision_tower.vision_model.{key}" for key in vision}


def weight_files(source: Path) -> dict[str, list[str]]:
    """Return the safetensors files of a checkpoint and the weights in each."""
    from safetensors import safe_open

    index = source / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    files = {}
    for name in names:
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source / name} does not exist; weights are read from safetensors only")
        with safe_open(source / name, framework="pt") as reader:
            files[name] = list(reader.keys())
    return files


def check_keys(
    source: Path, files: dict[str, list[str]], names: dict[str, str], *, tower_layers: int, tied: bool
) -> None:
    """Require each expected weight exactly once, and nothing else but what LLaVA-NeXT never reads."""
    # The layer and the head that LLaVA-NeXT deletes, and buffers that older libraries saved.
    unread = [rf"{re.escape(TOWER)}(encoder\.layers\.{tower_layers}|head)\..+", r".+\.(inv_freq|position_ids)"]
    unread += ["lm_head.weight"] if tied else []
    found = [key for keys in files.values() for key in keys]
    problems = {
        "missing": names.keys() - set(found),
        "unknown": {k for k in found if k not in names and not any(re.fullmatch(p, k) for p in unread)},
        "repeated": {key for key in names if found.count(key) > 1},
    }
    for problem, keys in problems.items():
        if keys:
            shown = ", ".join(sorted(keys)[:5])
            raise ValueError(f"{source}: {len(keys)} {problem} weight(s): {shown}{' ...' if len(keys) > 5 else ''}")


def load_tokenizer(folder: Path) -> Any:
    """Load a Qwen2 tokenizer with the tokens of LLaVA-OneVision; LLaVA-NeXT itself has no token for a picture."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer.from_pretrained(folder, padding_side="left")
    marks = [AddedToken(mark, special=True, normalized=False) for mark in ("<image>", "<video>")]
    tokenizer.add_tokens(marks, special_tokens=True)
    return tokenizer


def embedding_rows(source: Path, files: dict[str, list[str]]) -> int:
    """Return the number of rows of the embedding, since some checkpoints leave vocab_size out of config.json."""
    from safetensors import safe_open

    name = next(name for name, keys in files.items() if VOCABULARY[0] in keys)
    with safe_open(source / name, framework="pt") as reader:
        return int(reader.get_slice(VOCABULARY[0]).get_shape()[0])


def grid_pinpoints(value: Any, tile: int) -> list[list[int]]:
    """Return the tile grids as [height, width]; LLaVA-NeXT lists [width, height], or names a range.

    >>> grid_pinpoints("(1x1),...,(1x3)", 384)
    [[384, 384], [768, 384], [1152, 384]]
    """
    if isinstance(value, str) and "x" in value:
        first, *_, last = [tuple(map(int, pair)) for pair in re.findall(r"\((\d+)x(\d+)\)", value)]
        value = [(w * tile, h * tile) for w in range(first[0], last[0] + 1) for h in range(first[1], last[1] + 1)]
    return [[height, width] for width, height in (ast.literal_eval(value) if isinstance(value, str) else value)]


def write_configs(source: Path, output: Path, config: dict[str, Any], tokenizer: Any, *, rows: int) -> None:
    """Write config.json, the processor with its chat template, and generation_config.json."""
    import transformers as tf

    tower = TOWERS[Path(config["mm_vision_tower"]).name]
    side = tower["image_size"]
    grid = grid_pinpoints(config["image_grid_pinpoints"], side)
    tied = bool(config.get("tie_word_embeddings"))
    text = {key: config[key] for key in (*TEXT_REQUIRED, *TEXT_OPTIONAL) if key in config}
    rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
    target = tf.LlavaOnevisionConfig(
        text_config=tf.Qwen2Config(**text, vocab_size=rows, rope_parameters=rope, tie_word_embeddings=tied),
        vision_config=tf.SiglipVisionConfig(**tower),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        vision_aspect_ratio=config["image_aspect_ratio"],
        tie_word_embeddings=tied,
        architectures=["LlavaOnevisionForConditionalGeneration"],
        dtype=config.get("torch_dtype") or config.get("dtype"),
    )
    target.save_pretrained(output)
    template = (Path(__file__).parent / "templates" / "llava_onevision.jinja").read_text(encoding="utf-8")
    pixels = {"size": {"height": side, "width": side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    tf.LlavaOnevisionProcessor(
        image_processor=tf.LlavaOnevisionImageProcessor(**pixels, image_grid_pinpoints=grid),
        video_processor=tf.LlavaOnevisionVideoProcessor(**pixels),
        tokenizer=tokenizer,
        num_image_tokens=(side // tower["patch_size"]) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=config["image_aspect_ratio"],
        chat_template=SYSTEM + template,
    ).save_pretrained(output)
    generation = source / "generation_config.json"
    chosen = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    sampling = ("do_sample", "temperature", "top_p", "top_k") if chosen.get("do_sample") else ()
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    kept = {key: chosen[key] for key in ("repetition_penalty", *sampling) if chosen.get(key) is not None}
    tf.GenerationConfig(**kept, eos_token_id=[end, pad], pad_token_id=pad).save_pretrained(output)


def write_weights(
    source: Path, output: Path, files: dict[str, list[str]], names: dict[str, str], *, rows: int
) -> None:
    """Rename the weights file by file, so that at most one file is in memory."""
    from safetensors import safe_open
    from safetensors.torch import save_file
    from torch.nn.functional import pad

    weight_map, total = {}, 0
    for name, keys in files.items():
        tensors = {}
        with safe_open(source / name, framework="pt") as reader:
            for key in (key for key in keys if key in names):
                tensor = reader.get_tensor(key)
                if key in VOCABULARY:  # room for <image> and <video>, whose rows are read but never used
                    tensor = pad(tensor, (0, 0, 0, rows - len(tensor)))
                tensors[names[key]] = tensor
                total += tensor.numel() * tensor.element_size()
        if tensors:
            save_file(tensors, output / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
    if list(files) != ["model.safetensors"]:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (output / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def check_loads(folder: Path) -> None:
    """Have transformers load the folder without memory for its weights, and require that every weight fits."""
    from transformers import LlavaOnevisionForConditionalGeneration

    _, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
    )
    if problems := {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}:
        raise ValueError(f"transformers does not load the converted weights: {problems}")


def main() -> None:
    """Convert a checkpoint from the command line."""
    parser = argparse.ArgumentParser(description="Convert a LLaVA-NeXT llava_qwen checkpoint to LLaVA-OneVision.")
    parser.add_argument("--input", type=Path, required=True, help="folder in the llava_qwen layout")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the converted model")
    parser.add_argument("--processor", type=Path, help="folder with the tokenizer (default: --input)")
    args = parser.parse_args()
    convert(args.input, args.output, processor=args.processor)
    print(args.output)


if __name__ == "__main__":
    main()
