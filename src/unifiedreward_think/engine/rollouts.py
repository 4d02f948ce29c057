"""Rollouts of GRPO: the completions of all groups, with the random numbers that `generate` would draw for TRL.

`generate` never shrinks its batch, so it draws for finished sequences, too; here they have left the model, and keep
their place only where numbers are drawn. The options of the GenerationConfig are those of PROCESSORS; others are
refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import transformers as tf

from unifiedreward_think.engine.decoding import DecodeBatch, TokenSequence
from unifiedreward_think.engine.packing import Prompt
from unifiedreward_think.engine.prefill import left_pad, prefill_packed


class RolloutSampler:
    """Draws the next tokens of a rollout.

    Args:
        config: how tokens are drawn.
        prompts: tokens of the prompt of each sequence.
        sequences: all of the rollout, in order; the finished ones get padding.
        ends: tokens that end a completion.

    Attributes:
        ids: (sequences, columns) left-padded prompts and what follows, as `generate` would hold them.
        padding: columns before each prompt.
    """

    def __init__(
        self,
        config: tf.GenerationConfig,
        prompts: Sequence[torch.Tensor],
        sequences: Sequence[TokenSequence],
        ends: Collection[int],
    ) -> None:
        self._config, self._sequences = config, sequences
        self.ids = left_pad(prompts, config.pad_token_id)
        self.padding = self.ids.shape[1] - torch.tensor([len(ids) for ids in prompts], device=self.ids.device)
        self.ends = sorted(ends)
        chosen = {name: getattr(config, name) for name in PROCESSORS if config.do_sample or name not in ONLY_SAMPLED}
        self._process = tf.LogitsProcessorList(
            PROCESSORS[name][1](value, self)
            for name, value in chosen.items()
            if value is not None and value != PROCESSORS[name][0]
        )

    def __call__(self, logits: torch.Tensor, _: Sequence[TokenSequence]) -> torch.Tensor:
        """Return the next tokens of the sequences that are not finished."""
        places = [place for place, sequence in enumerate(self._sequences) if not sequence.finished]
        index = torch.tensor(places, device=logits.device)
        scores = logits.new_zeros(len(self._sequences), logits.shape[1]).index_copy(0, index, logits)
        scores = self._process(self.ids, scores)
        drawn = torch.multinomial(scores.softmax(-1), 1)[:, 0] if self._config.do_sample else scores.argmax(-1)
        tokens = drawn[index]
        column = torch.full_like(drawn, self._config.pad_token_id).index_copy(0, index, tokens)
        self.ids = torch.cat([self.ids, column[:, None]], 1)
        return tokens


Processor = Callable[[Any, "RolloutSampler"], tf.LogitsProcessor]
# Option -> the value that changes nothing, and its processor; in the order in which `generate` applies them.
PROCESSORS: dict[str, tuple[Any, Processor]] = {
    "repetition_penalty": (
        1.0,
        lambda value, rows: tf.RepetitionPenaltyLogitsProcessor(value, prompt_ignore_length=rows.padding),
    ),
    "no_repeat_ngram_size": (0, lambda value, _: tf.NoRepeatNGramLogitsProcessor(value)),
    "min_new_tokens": (
        0,
        lambda value, rows: tf.MinNewTokensLengthLogitsProcessor(
            rows.ids.shape[1], value, rows.ends, device=rows.ids.device
        ),
    ),
    "suppress_tokens": (
        None,
        lambda value, rows: tf.SuppressTokensLogitsProcessor(value, device=rows.ids.device),
    ),
    "temperature": (1.0, lambda value, _: tf.TemperatureLogitsWarper(value)),
    "top_k": (0, lambda value, _: tf.TopKLogitsWarper(value)),
    "top_p": (1.0, lambda value, _: tf.TopPLogitsWarper(value)),
    "min_p": (None, lambda value, _: tf.MinPLogitsWarper(value)),
}
ONLY_SAMPLED = ("temperature", "top_k", "top_p", "min_p")
# Options that are read elsewhere, or say nothing about how tokens are drawn.
OTHERS = (
    *("max_new_tokens", "max_length", "do_sample", "eos_token_id", "pad_token_id", "bos_token_id"),
    *("disable_compile", "transformers_version"),
)
PLAIN = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "typical_p": 1.0}


def why_not(config: tf.GenerationConfig) -> str | None:
    """Return the first option that rollouts do not honour, or None."""
    for name, value in config.to_diff_dict().items():
        if name not in PROCESSORS and name not in OTHERS and value != PLAIN.get(name):
            return f"the generation option {name}: {json.dumps(value, default=str)} is not covered"
    return None


def rollout(
    network: Any, prompts: Sequence[Prompt], copies: int, *, config: tf.GenerationConfig, ends: Collection[int]
) -> list[list[int]]:
    """Return `copies` completions of each prompt, one after the other, cut after the first token of `ends`.

    Weights must be whole on this rank; ranks may decode unequally many steps.
    """
    sequences = [TokenSequence() for _ in range(len(prompts) * copies)]
    owners = [prompt.ids for prompt in prompts for _ in range(copies)]

    def is_finished(sequence: TokenSequence) -> bool:
        return sequence.tokens[-1] in ends or len(sequence.tokens) >= config.max_new_tokens

    batch = DecodeBatch(network, RolloutSampler(config, owners, sequences, ends), is_finished=is_finished)
    groups = [sequences[start : start + copies] for start in range(0, len(sequences), copies)]
    batch.insert(prefill_packed(network, prompts), groups)
    batch.run()
    return [sequence.tokens for sequence in sequences]
