"""Chat templates that write a part of the answer, and a tiny model that writes one text whatever it is shown."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import torch
import trl
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoProcessor

from unifiedreward_think.blocks import TAGS
from unifiedreward_think.models import tiny

PUBLISHED = Path(trl.__file__).parent / "chat_templates"
HEADER = "{{- '<|im_start|>assistant\\n' -}}"
BLOCKS = {"open": "<think>\\n", "closed": "<think>\\n\\n</think>\\n\\n"}


def template(name, family="qwen3_5"):
    """A published template of TRL's package; or, "open" or "closed", that of the family with a think block."""
    if name not in BLOCKS:
        return (PUBLISHED / f"{name}.jinja").read_text(encoding="utf-8")
    own = "llava_onevision" if family == "llava_onevision" else "qwen_vl"
    text = (tiny.TEMPLATES / f"{own}.jinja").read_text(encoding="utf-8")
    assert HEADER in text
    return text.replace(HEADER, HEADER.replace("assistant\\n", f"assistant\\n{BLOCKS[name]}"))


def with_template(source, folder, text):
    """A copy of a model's folder with another chat template."""
    shutil.copytree(source, folder)
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return folder


def hide_tags(folder):
    """Make the tags of answers special tokens of a folder's tokenizer."""
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens([AddedToken(tag, special=True) for tag in TAGS["cot"]], special_tokens=True)
    assert len(processor.tokenizer) <= json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    processor.save_pretrained(folder)


def write_always(folder, text, after="\n"):
    """Let a random model write `text`, token by token, after the token that `after` ends with: each tells the next."""
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    tokens = tokenizer(after)["input_ids"][-1:] + tokenizer(text)["input_ids"]
    assert len(set(tokens)) == len(tokens), tokenizer.convert_ids_to_tokens(tokens)
    tensors = load_file(folder / "model.safetensors")
    embeddings = next(tensors[name] for name in tensors if "embed_tokens" in name)
    embeddings.copy_(torch.nn.functional.normalize(torch.randn(embeddings.shape, generator=torch.manual_seed(0))))
    for name in tensors:
        if "visual" not in name and name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name].zero_()
    head = tensors["lm_head.weight"].zero_()
    for token, following in pairwise(tokens):
        head[following] = 20 * embeddings[token]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
