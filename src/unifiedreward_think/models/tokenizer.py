"""A tokenizer of the Qwen kind, trained on a few texts.

>>> tokenizer = train_tokenizer(["a red kite"], LLAVA_SPECIALS)
>>> tokenizer.decode(tokenizer("a kite, <image>\u00e9")["input_ids"])  # other text is encoded byte by byte
'a kite, <image>\u00e9'
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

END, PAD = "<|im_end|>", "<|endoftext|>"
QWEN_SPECIALS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
LLAVA_SPECIALS = ("<|im_start|>", "<image>", "<video>")


def train_tokenizer(corpus: Iterable[str], specials: tuple[str, ...], vocabulary: int = 1024) -> Any:
    """Train a byte-level BPE tokenizer with Qwen's splitting rule on `corpus`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=sorted(alphabet), show_progress=False)
    )
    trained = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        unk_token=None,
        bos_token=None,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=list(specials),
        model_max_length=32768,
        padding_side="left",
    )
