"""The decode loop, with continuous batching: finished sequences are evicted, waiting prompts take their place.

Evaluation, serving, sampling and the rollouts of GRPO all decode here, on a KV cache whose sequences share prompts (see
`prefix_cache`). What a sequence writes does not depend on the others, up to the rounding of sums in batches of other
shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TopPLogitsWarper

from unifiedreward_think.engine.attention import decoding
from unifiedreward_think.engine.prefix_cache import Prefill, SharedPrefixCache
from unifiedreward_think.engine.sampling import Sampling


@dataclass(eq=False)
class TokenSequence:
    """A completion that is being decoded.

    Attributes:
        generator: draws its tokens, where it has one of its own.
        tokens: what it holds so far.
        prompt_tokens: how many its prompt has, where somebody has counted.
        finished: whether it has been evicted.
    """

    generator: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    finished: bool = False


Sampler = Callable[[torch.Tensor, Sequence[TokenSequence]], torch.Tensor]


class DecodeBatch:
    """The sequences that a model decodes together.

    Args:
        network: the model.
        sample: returns the next token of each sequence from its logits.
        is_finished: whether a sequence is complete; asked after each of its tokens.
        on_tokens: takes the newest token of each sequence.

    Attributes:
        sequences: those that are not finished.
    """

    def __init__(
        self,
        network: Any,
        sample: Sampler,
        *,
        is_finished: Callable[[TokenSequence], bool],
        on_tokens: Callable[[torch.Tensor], object] = lambda tokens: None,
    ) -> None:
        self._network, self._sample = network, sample
        self._is_finished, self._on_tokens = is_finished, on_tokens
        self.sequences: list[TokenSequence] = []
        self._cache = SharedPrefixCache()
        self._last = self._next = torch.empty(0, dtype=torch.long, device=network.device)  # token, position of the next

    def insert(self, prefill: Prefill, sequences: Sequence[Sequence[TokenSequence]]) -> None:
        """Give each prefilled prompt its sequences, which write their first token."""
        copies = torch.tensor([len(samples) for samples in sequences], device=self._last.device)
        new = [sequence for samples in sequences for sequence in samples]
        tokens = self._write(prefill.logits.repeat_interleave(copies, 0), new)
        self._last = torch.cat([self._last, tokens])
        self._next = torch.cat([self._next, prefill.next_positions.repeat_interleave(copies)])
        self._cache.insert(prefill, copies.tolist())
        self.sequences += new

    def decode_step(self) -> None:
        """Let every sequence write a token."""
        self._cache.layout.add_column()
        with torch.inference_mode(), decoding(self._network):
            output = self._network(
                input_ids=self._last[:, None],
                attention_mask=self._last.new_ones(1, 1, 1, 1),  # 4D keeps the model from making one; the cache decides
                position_ids=self._next[:, None],
                past_key_values=self._cache,
                use_cache=True,
            )
        self._last = self._write(output.logits[:, -1].float(), self.sequences)
        self._next = self._next + 1

    def evict_finished(self) -> None:
        """Drop the sequences that are finished, and prompts that have none left."""
        for sequence in self.sequences:
            sequence.finished = self._is_finished(sequence)
        kept = [place for place, sequence in enumerate(self.sequences) if not sequence.finished]
        if len(kept) == len(self.sequences):
            return
        self.sequences = [self.sequences[place] for place in kept]
        index = torch.tensor(kept, dtype=torch.long, device=self._last.device)
        self._last, self._next = self._last[index], self._next[index]
        if kept:
            self._cache.keep(kept)
        else:
            self._cache = SharedPrefixCache()

    def run(self) -> None:
        """Decode until every sequence is finished."""
        self.evict_finished()
        while self.sequences:
            self.decode_step()
            self.evict_finished()

    def _write(self, logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        tokens = self._sample(logits, sequences)
        self._on_tokens(tokens)
        for sequence, token in zip(sequences, tokens.tolist(), strict=True):
            sequence.tokens.append(token)
        return tokens


def seeded_sampler(sampling: Sampling) -> Sampler:
    """Return what takes the most probable token, or draws one with the generator of its sequence.

    Adding Gumbel noise and taking the maximum is exact sampling from the tempered, nucleus-cut distribution, and a
    sequence does not depend on the others.
    """

    def sample(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        if sampling.temperature == 0:
            return logits.argmax(-1)
        scores = logits / sampling.temperature
        if sampling.top_p < 1:
            scores = TopPLogitsWarper(sampling.top_p)(None, scores)
        noise = torch.empty_like(scores)
        for row, sequence in zip(noise, sequences, strict=True):
            row.exponential_(generator=sequence.generator)
        return (scores - noise.log()).argmax(-1)

    return sample
