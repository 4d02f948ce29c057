"""Convert a LLaVA-NeXT `llava_qwen` checkpoint to LLaVA-OneVision, which transformers, vLLM and this project run.

    python -m unifiedreward_think.models.llava_next --input UnifiedReward-Think-7b --output UnifiedReward-Think-7b-hf

Weights keep their values and dtype: equal inputs give the source's logits. Facts: LLaVA-VL/LLaVA-NeXT (llava_arch.py,
siglip_encoder.py, mm_utils.py, multimodal_projector/builder.py; the same in CodeGoat24/UnifiedReward) and transformers'
former convert_llava_onevision_weights_to_hf.py. Not a matter of weights: several pictures in a row become one padded
tile each, as in LLaVA-NeXT's training code, while UnifiedReward's inference scripts cut each into tiles.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unifiedreward_think.entry import run_main
from unifiedreward_think.errors import InputError
from unifiedreward_think.models.loading import UnsupportedModelError
from unifiedreward_think.models.soundness import (
    AGAIN,
    BrokenModelError,
    must_be_finite,
    must_be_readable,
    read_object,
    reading,
)
from unifiedreward_think.models.tiny import TEMPLATES
from unifiedreward_think.writing import write_whole

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TEXT_NEEDED = (*SIZES, "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta")
TEXT_OTHERS = ("hidden_act", "use_sliding_window", "sliding_window", "max_window_layers", "eos_token_id")
TOWER_SIZES = (*SIZES, "image_size", "patch_size")
# Last part of mm_vision_tower -> TOWER_SIZES, which LLaVA-NeXT hard-codes. It deletes the last of the 27 layers and the
# pooling head, then reads the output of layer 26 before post_layernorm, whatever mm_vision_select_layer says.
TOWERS = {"siglip-so400m-patch14-384": (1152, 4304, 26, 16, 384, 14)}
# Option -> the values that LlavaOnevision computes (None: absent), and why no other is converted.
OPTIONS: dict[str, tuple[tuple[Any, ...], str]] = {
    "mm_projector_type": (("mlp2x_gelu",), "LlavaOnevision projects by two linear layers with a GELU between"),
    "mm_patch_merge_type": (("spatial_unpad",), "LlavaOnevision unpads the tiles and ends each row by image_newline"),
    "mm_vision_select_layer": ((None, -2), "LLaVA-NeXT reads the last but one SigLIP layer and ignores the option"),
    "mm_resampler_type": ((None,), "LlavaOnevision has no resampler"),
    "mm_spatial_pool_mode": ((None, "bilinear"), "LlavaOnevision shrinks video frames by bilinear interpolation"),
    "mm_newline_position": ((None, "one_token"), "LlavaOnevision puts one image_newline behind a whole video"),
    "add_faster_video": ((None, False), "LlavaOnevision has no second, coarser stream of frames"),
    "mm_use_im_start_end": ((None, False), "LlavaOnevision puts no marker tokens around pictures"),
    "rope_scaling": ((None,), "LLaVA-NeXT ignores the option, so what the weights expect is unknown"),
}
# Other options, which no forward pass of LLaVA-NeXT reads: SigLIP has no class token, the pooling stride is always 2.
HARMLESS = {"mm_hidden_size", "mm_projector_lr", "mm_spatial_pool_out_channels", "mm_spatial_pool_stride"}
HARMLESS |= {"mm_tunable_parts", "mm_use_im_patch_token", "mm_vision_select_feature", "mm_vision_tower_lr"}

TOWER = "model.vision_tower.vision_tower.vision_model."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
QKV = [f"self_attn.{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")]
TEXT_MODULES = ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm")
TEXT_LAYER = [*QKV, *(f"{module}.weight" for module in (*TEXT_MODULES, "post_attention_layernorm"))]
VISION_MODULES = ("self_attn.out_proj", "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2")
VISION_LAYER = [*QKV, *(f"{module}.{kind}" for module in VISION_MODULES for kind in ("weight", "bias"))]
# Never read, if there: the layer (%d are left) and the head that are deleted, a tied output head, old buffers.
UNREAD = re.escape(TOWER) + r"(encoder\.layers\.%d|head)\..+|lm_head\.weight|.+\.(inv_freq|position_ids)"


def convert(source: Path, output: Path, *, processor: Path | None = None) -> None:
    """Write the LLaVA-OneVision form of `source` to `output`, one weight file at a time.

    Args:
        source: folder with config.json, safetensors and the tokenizer.
        output: new or empty folder. A failed conversion leaves nothing there.
        processor: folder with the tokenizer, if `source` has none.

    Raises:
        UnsupportedModelError: an option that LlavaOnevision does not have.
        BrokenModelError: a file is damaged; a weight is missing, unknown, not finite or of another shape.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} holds files; name an empty or new folder")
    must_be_readable(source)
    config = read_config(source)
    names = key_names(config)
    files = weight_files(source, names, re.compile(UNREAD % config["tower"]["num_hidden_layers"]))
    with reading(processor or source, "the tokenizer"):
        tokenizer = Qwen2Tokenizer.from_pretrained(processor or source, padding_side="left")
    # LLaVA-NeXT has no tokens for pictures and videos.
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in ("<image>", "<video>")])

    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.") as folder:
        partial = Path(folder) / "model"
        partial.mkdir()
        rows = write_weights(files, partial, names, rows=len(tokenizer))
        write_config(partial, config, tokenizer, rows=rows)
        write_processor(partial, config, tokenizer)
        check_loads(partial)
        partial.rename(output)


def read_config(source: Path) -> dict[str, Any]:
    """Read config.json, refuse what LlavaOnevision would compute differently, and add what the options stand for."""
    path, generation = source / "config.json", source / "generation_config.json"
    config = read_object(path)
    # lmms-lab's releases have the model_type "llava", fine-tuned checkpoints "llava_qwen".
    if config.get("model_type") != "llava_qwen" and "LlavaQwenForCausalLM" not in (config.get("architectures") or ()):
        raise UnsupportedModelError(f"{path}: model_type {config.get('model_type')!r} is not llava_qwen")
    allowed = {key: (config.get(key) in values, reason) for key, (values, reason) in OPTIONS.items()}
    tower = Path(str(config.get("mm_vision_tower"))).name
    allowed["mm_vision_tower"] = tower in TOWERS, f"known towers: {', '.join(TOWERS)}"
    anyres = re.fullmatch(r"anyres_max_\d+", str(config.get("image_aspect_ratio")))
    allowed["image_aspect_ratio"] = anyres is not None, "LlavaOnevision cuts pictures by anyres_max_N"
    allowed["image_grid_pinpoints"] = isinstance(config.get("image_grid_pinpoints"), list), "a list of sizes is needed"
    allowed |= {key: (config.get(key) is not None, "is needed") for key in TEXT_NEEDED}
    unknown = {key for key in config if key.startswith("mm_")} - allowed.keys() - HARMLESS
    allowed |= dict.fromkeys(unknown, (False, "unknown; remove it if it does not change the forward pass"))
    if refused := [f"{key} {config.get(key)!r} ({reason})" for key, (fine, reason) in allowed.items() if not fine]:
        raise UnsupportedModelError(f"{path}: not converted: {'; '.join(refused)}")
    config["tower"] = dict(zip(TOWER_SIZES, TOWERS[tower], strict=True))
    config["grids"] = [[height, width] for width, height in config["image_grid_pinpoints"]]  # listed as [width, height]
    config["generation"] = read_object(generation) if generation.is_file() else {}
    return config


def key_names(config: dict[str, Any]) -> dict[str, str]:
    """Return every weight of the source and its name in released LLaVA-OneVision checkpoints."""
    names = {"model.image_newline": "image_newline"}
    for kind in ("weight", "bias"):
        names[f"model.mm_projector.0.{kind}"] = f"multi_modal_projector.linear_1.{kind}"
        names[f"model.mm_projector.2.{kind}"] = f"multi_modal_projector.linear_2.{kind}"
    text = ["embed_tokens.weight", "norm.weight"]
    text += [f"layers.{n}.{weight}" for n in range(config["num_hidden_layers"]) for weight in TEXT_LAYER]
    names |= {f"model.{key}": f"language_model.model.{key}" for key in text}
    if not config.get("tie_word_embeddings"):
        names[HEAD] = "language_model.lm_head.weight"
    vision = [f"embeddings.patch_embedding.{kind}" for kind in ("weight", "bias")]
    vision += ["embeddings.position_embedding.weight", "post_layernorm.weight", "post_layernorm.bias"]
    layers = range(config["tower"]["num_hidden_layers"])
    vision += [f"encoder.layers.{n}.{weight}" for n in layers for weight in VISION_LAYER]
    return names | {TOWER + key: f"vision_tower.vision_model.{key}" for key in vision}


def weight_files(source: Path, names: dict[str, str], unread: re.Pattern[str]) -> dict[Path, list[str]]:
    """Return the files and the weights in each; require each expected weight exactly once, and no unknown one."""
    from safetensors import safe_open

    files: dict[Path, list[str]] = {}
    for path in sorted(source.glob("[!.]*.safetensors")):
        with safe_open(path, framework="pt") as reader:
            files[path] = list(reader.keys())
    if not files:
        raise BrokenModelError(f"{source} holds no *.safetensors; other formats are not read")
    copies = Counter(key for keys in files.values() for key in keys)
    problems = {
        "missing": names.keys() - copies.keys(),
        "unknown": {key for key in copies.keys() - names.keys() if not unread.fullmatch(key)},
        "repeated": {key for key, count in copies.items() if count > 1},
    }
    for problem, keys in problems.items():
        if keys:
            summary = f"{source}: {len(keys)} {problem} weight(s), such as {', '.join(sorted(keys)[:5])}"
            raise BrokenModelError(f"{summary}; {AGAIN}")
    return files


def write_weights(files: dict[Path, list[str]], output: Path, names: dict[str, str], *, rows: int) -> int:
    """Rename the weights, with one file in memory at a time; return the size of the vocabulary, at least `rows`."""
    from safetensors import safe_open
    from safetensors.torch import save_file
    from torch.nn.functional import pad

    weight_map: dict[str, str] = {}
    size = total = 0
    for path, keys in files.items():
        with safe_open(path, framework="pt") as reader:
            tensors = {names[key]: reader.get_tensor(key) for key in keys if key in names}
        must_be_finite(tensors.items(), path)
        for key in tensors.keys() & {names[EMBEDDING], names.get(HEAD, "")}:
            # Room for <image> and <video>, whose rows are looked up but never used.
            tensors[key] = pad(tensors[key], (0, 0, 0, max(0, rows - len(tensors[key]))))
            size = len(tensors[key])
        total += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(tensors, path.name)
        save_file(tensors, output / path.name, metadata={"format": "pt"})
    if [path.name for path in files] != ["model.safetensors"]:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_whole(output / "model.safetensors.index.json", json.dumps(index, indent=2))
    return size


def write_config(output: Path, config: dict[str, Any], tokenizer: Any, *, rows: int) -> None:
    """Write config.json and generation_config.json."""
    from transformers import GenerationConfig, LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    tied = bool(config.get("tie_word_embeddings"))
    text = {key: config[key] for key in (*TEXT_NEEDED, *TEXT_OTHERS) if key in config}
    rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
    image, video, end, pad = tokenizer.convert_tokens_to_ids(["<image>", "<video>", "<|im_end|>", "<|endoftext|>"])
    LlavaOnevisionConfig(
        text_config=Qwen2Config(**text, vocab_size=rows, rope_parameters=rope, tie_word_embeddings=tied),
        vision_config=SiglipVisionConfig(**config["tower"], vision_use_head=False),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=config["grids"],
        vision_aspect_ratio=config["image_aspect_ratio"],
        tie_word_embeddings=tied,
        architectures=["LlavaOnevisionForConditionalGeneration"],
        dtype=config.get("torch_dtype") or config.get("dtype"),
    ).save_pretrained(output)
    # Greedy like UnifiedReward's scripts, in which a penalty from this file still applies.
    penalty = config["generation"].get("repetition_penalty", 1.0)
    GenerationConfig(repetition_penalty=penalty, eos_token_id=[end, pad], pad_token_id=pad).save_pretrained(output)


def write_processor(output: Path, config: dict[str, Any], tokenizer: Any) -> None:
    """Write the tokenizer, the picture settings of LLaVA-NeXT's SigLipImageProcessor, and the chat template."""
    import transformers as tf

    side, patch = config["tower"]["image_size"], config["tower"]["patch_size"]
    pixels = {"size": {"height": side, "width": side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    # The conversation `qwen_1_5`, with which these models are trained, starts with a system turn.
    system = r"{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}"
    template = (TEMPLATES / "llava_onevision.jinja").read_text(encoding="utf-8")
    tf.LlavaOnevisionProcessor(
        image_processor=tf.LlavaOnevisionImageProcessor(**pixels, image_grid_pinpoints=config["grids"]),
        video_processor=tf.LlavaOnevisionVideoProcessor(**pixels),
        tokenizer=tokenizer,
        num_image_tokens=(side // patch) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=config["image_aspect_ratio"],
        chat_template="{%- if messages[0]['role'] != 'system' -%}" + system + "{%- endif -%}\n" + template,
    ).save_pretrained(output)


def check_loads(folder: Path) -> None:
    """Have transformers load the folder without memory for its weights, and require that every weight fits."""
    from transformers import LlavaOnevisionForConditionalGeneration as Model

    _, report = Model.from_pretrained(folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True)
    if problems := {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}:
        raise BrokenModelError(f"transformers does not load the converted weights: {problems}; {AGAIN}")


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
    run_main(main)
