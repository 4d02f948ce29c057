"""Completions from a local model through transformers: batched, refilled, reproducible sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from unifiedreward_think.backends import Completion, Failure, Numbers, Request, Tokens, end_at_tag
from unifiedreward_think.backends.launch import own_device
from unifiedreward_think.backends.padding import BATCH_TOKENS
from unifiedreward_think.backends.reading import PromptReader
from unifiedreward_think.backends.refilling import Engine, refilled
from unifiedreward_think.blocks import STOP_STRING
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.models.adapters import fingerprint
from unifiedreward_think.models.chat_template import thinking_of
from unifiedreward_think.models.families import FAMILIES
from unifiedreward_think.models.fitting import positions
from unifiedreward_think.models.loading import UnsupportedModelError, load_model, load_processor

if TYPE_CHECKING:
    import torch

    from unifiedreward_think.engine.decoding import DecodeBatch, TokenSequence


class TransformersBackend:
    """Run a checkpoint in this process.

    Args:
        path: folder or Hub name of the model.
        batch_size: prompts that are answered at a time; each has a row for every seed.
        batch_tokens: of these prompts, each padded to the longest; a longer one is answered alone.
        dtype, attn_implementation, min_pixels, max_pixels: as in `models.loading`.
        device: "cuda", "cpu", ...; the GPU of this process if there is one by default.
        cache_mib: memory for features of pictures, so that one shown again does not go through the vision tower again;
            0 remembers none.
        thinking: whether a chat template that has a switch lets the model think.
        numbers: where a completion says the numbers whose probabilities it is to bring; None: none are asked for.
        loaded: network and processor that are in memory already, such as those in training; `path` then only names
            them, the pixel limits are those of the processor, and no picture is remembered, since weights may change.

    Attributes:
        cache: the pictures that are remembered, None where none are.
    """

    def __init__(
        self,
        path: str,
        *,
        batch_size: int = 8,
        batch_tokens: int = BATCH_TOKENS,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        device: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        cache_mib: int = 1024,
        thinking: bool = True,
        numbers: Numbers | None = None,
        loaded: tuple[Any, Any] | None = None,
    ) -> None:

        from unifiedreward_think.engine.features import FeatureCache, supported
        from unifiedreward_think.engine.prefix_cache import COVERED

        self.model = path
        self.numbers = numbers
        self.batch_size = batch_size
        self._batch_tokens = batch_tokens
        self._device = device or own_device()
        network: Any
        self._processor: Any
        network, self._processor = loaded or (
            load_model(path, dtype=dtype, attn_implementation=attn_implementation),
            load_processor(path, min_pixels=min_pixels, max_pixels=max_pixels),
        )
        self._network = network.to(self._device).eval()
        self._thinking = thinking_of(self._processor, thinking)
        layers = getattr(network.config.get_text_config(), "layer_types", None) or ()
        if strange := set(layers) - COVERED:
            fix = "rows of its cache cannot change places; set use_sliding_window: false in its config.json"
            raise UnsupportedModelError(f"{path}: layers of the type {', '.join(strange)}: {fix}")
        remembers = cache_mib > 0 and loaded is None and supported(network)
        images = self._processor.image_processor
        self.cache = FeatureCache(self._network, images, cache_mib * 2**20) if remembers else None
        self._reader = PromptReader(
            self._processor,
            positions=positions(network.config),
            device=self._device,
            thinking=self._thinking,
            cache=self.cache,
        )
        self.native_video = "frames" if FAMILIES[network.config.model_type].native_video else ""
        # Only such a token can complete the closing answer tag.
        vocabulary = self._processor.tokenizer.get_vocab()
        self._closing = {number for token, number in vocabulary.items() if STOP_STRING[-1] in token}
        ends = network.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self.settings: Mapping[str, Any] = {
            "weights": fingerprint(network),
            "dtype": str(network.dtype).removeprefix("torch."),
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            **self._thinking.settings,
        }

    def stream(
        self, prompt: Mapping[str, Any], *, sampling: Sampling, seed: int, on_text: Callable[[str], object]
    ) -> Completion | Failure:
        """Return one completion of one prompt, the same as `complete`; `on_text` takes each piece as it is written.

        An exception of `on_text` ends the writing and is passed on.
        """
        from transformers import TextStreamer

        streamer = TextStreamer(self._processor.tokenizer, skip_special_tokens=True)
        streamer.on_finalized_text = lambda text, stream_end=False: on_text(text)
        if self._thinking.opening:
            on_text(self._thinking.opening)
        written = self.complete_each([(prompt, [seed])], sampling=sampling, samples=1, on_tokens=streamer.put)
        completion = next(written)[0][1][0]
        streamer.end()
        return completion

    def complete(
        self, prompts: Sequence[Mapping[str, Any]], *, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion | Failure]]:
        """Return len(seeds[i]) completions of prompt i; equal seeds give equal completions in any batch.

        Every prompt needs the same number of seeds. A greedy completion ignores its seed.
        """
        requests = zip(prompts, seeds, strict=True)
        done = dict(chain.from_iterable(self.complete_each(requests, sampling=sampling, samples=len(seeds[0]))))
        return [done[number] for number in range(len(prompts))]

    def complete_each(
        self,
        requests: Iterable[Request],
        *,
        sampling: Sampling,
        samples: int,
        on_tokens: Callable[[torch.Tensor], object] = lambda tokens: None,
    ) -> Iterator[list[tuple[int, list[Completion | Failure]]]]:
        """Yield the completions of prompts as they are done, or why there are none, each with the number of its prompt.

        Prompts are taken while there is room: `batch_size` prompts have a row for each of their samples.

        Args:
            requests: prompts with their seeds.
            sampling: how tokens are drawn.
            samples: seeds of each prompt.
            on_tokens: takes the newest token of every row.
        """
        copies = samples if sampling.temperature > 0 else 1
        asked: dict[int, Mapping[str, Any]] = {}  # prompts that are under way, where they are needed afterwards

        def drawn() -> Iterator[Request]:
            for number, (prompt, seeds) in enumerate(requests):
                if self.numbers is not None:
                    asked[number] = prompt
                yield prompt, seeds[:copies]

        written = refilled(
            drawn(),
            self._engine(sampling, on_tokens),
            size=self.batch_size,
            copies=copies,
        )
        for done in filter(None, written):
            yield [
                (number, self._answers(samples_of_prompt, copies, asked.pop(number, None)) * (samples // copies))
                for number, samples_of_prompt in done
            ]

    def _answers(
        self, written: Sequence[TokenSequence] | Failure, copies: int, prompt: Mapping[str, Any] | None
    ) -> list[Completion | Failure]:
        if isinstance(written, Failure):
            return [written] * copies
        completions = [self._completion(one) for one in written]
        return list(completions if prompt is None else self._with_numbers(prompt, completions))

    def _with_numbers(self, prompt: Mapping[str, Any], completions: Sequence[Completion]) -> list[Completion]:
        """Return completions with how probable each allowed number was at their places, each scored exactly."""
        from unifiedreward_think.backends.numbers import masses_of
        from unifiedreward_think.engine.alternatives import Alternatives
        from unifiedreward_think.engine.prefill import prefill

        places = [list(self.numbers(one.text)) if self.numbers else [] for one in completions]
        if not any(places):
            return list(completions)
        prefilled = prefill(self._network, *self._reader.read([prompt], 1).inputs([0]))
        alternatives = Alternatives(self._network, prefilled)
        opening = self._thinking.opening
        tokenizer = self._processor.tokenizer
        return [
            one._replace(numbers=tuple((place, masses_of(place, opening, tokenizer, alternatives)) for place in found))
            for one, found in zip(completions, places, strict=True)
        ]

    def _engine(self, sampling: Sampling, on_tokens: Callable[[torch.Tensor], object]) -> Engine:
        """Return what answers prompts with this sampling."""
        from unifiedreward_think.engine.decoding import DecodeBatch, TokenSequence, seeded_sampler
        from unifiedreward_think.engine.prefill import prefill

        def batch() -> DecodeBatch:
            return DecodeBatch(
                self._network,
                seeded_sampler(sampling),
                is_finished=lambda sequence: self._is_finished(sequence.tokens, sampling),
                on_tokens=on_tokens,
            )

        return Engine(
            batch=batch,
            read=lambda prompts: self._reader.read(prompts, sampling.max_new_tokens),
            prefill=lambda made: prefill(self._network, *made),
            sequences=lambda seeds: [TokenSequence(self._generator(seed, sampling)) for seed in seeds],
            tokens=self._batch_tokens,
        )

    def _generator(self, seed: int, sampling: Sampling) -> torch.Generator | None:
        import torch

        return torch.Generator(self._device).manual_seed(seed % 2**63) if sampling.temperature > 0 else None

    def _is_finished(self, tokens: Sequence[int], sampling: Sampling) -> bool:
        """Whether a completion is finished: at a token of the end, the closing answer tag, or the limit."""
        if tokens[-1] in self._ends or len(tokens) >= sampling.max_new_tokens:
            return True
        # No token is empty, so the tag lies within as many tokens as it has characters.
        tail = tokens[-len(STOP_STRING) :]
        return tokens[-1] in self._closing and STOP_STRING in self._processor.tokenizer.decode(tail)

    def _completion(self, written: TokenSequence) -> Completion:
        text = self._thinking.opening + self._processor.tokenizer.decode(written.tokens, skip_special_tokens=True)
        # A completion that neither an end nor the tag has ended was cut.
        reason = "stop" if written.tokens[-1] in self._ends else "length"
        return end_at_tag(text, reason, Tokens(written.prompt_tokens, len(written.tokens)))
