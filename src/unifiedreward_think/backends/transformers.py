"""Completions from a local model through transformers: batched, left padded, reproducible sample by sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unifiedreward_think.backends import Completion, Sampling
from unifiedreward_think.models.loading import load_model, load_processor
from unifiedreward_think.verdict import STOP_STRING

if TYPE_CHECKING:
    import torch


class TransformersBackend:
    """Run a checkpoint in this process.

    Args:
        path: folder or Hub name of the model.
        batch_size: prompts in one batch; each is sampled as often as it has seeds.
        dtype, attn_implementation, min_pixels, max_pixels: as in `models.loading`.
        device: "cuda", "cpu", ...; the accelerator if there is one by default.
    """

    def __init__(
        self,
        path: str,
        *,
        batch_size: int = 8,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        device: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        import torch

        self.model = path
        self.batch_size = batch_size
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._processor: Any = load_processor(path, min_pixels=min_pixels, max_pixels=max_pixels)
        network: Any = load_model(path, dtype=dtype, attn_implementation=attn_implementation)
        self._network = network.to(self._device).eval()
        self.settings: Mapping[str, Any] = {
            "weights": _fingerprint(network),
            "dtype": str(network.dtype).removeprefix("torch."),
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
        }

    def stream(
        self, prompt: Mapping[str, Any], *, sampling: Sampling, seed: int, on_text: Callable[[str], object]
    ) -> Completion:
        """Return one completion of one prompt, the same as `complete`; `on_text` takes each piece as it is written.

        An exception of `on_text` ends the writing and is passed on.
        """
        from transformers import TextStreamer

        streamer = TextStreamer(self._processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        streamer.on_finalized_text = lambda text, stream_end=False: on_text(text)
        return self.complete([prompt], sampling=sampling, seeds=[[seed]], streamer=streamer)[0][0]

    def complete(
        self,
        prompts: Sequence[Mapping[str, Any]],
        *,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        streamer: Any = None,
    ) -> list[list[Completion]]:
        """Return len(seeds[i]) completions of prompt i; equal seeds give equal completions in any batch.

        Every prompt needs the same number of seeds. A greedy completion ignores its seed. `streamer` is passed to
        `generate`.
        """
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        count = len(seeds[0])
        inputs = self._encode(prompts)
        defaults = self._network.generation_config
        # Written out in full: a checkpoint's own generation_config (Qwen2.5-VL ships a repetition penalty) must not
        # change what `sampling` says.
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            repetition_penalty=1.0,
            num_return_sequences=count if sampling.temperature > 0 else 1,
            eos_token_id=defaults.eos_token_id,
            pad_token_id=defaults.pad_token_id,
            stop_strings=[STOP_STRING],
        )
        flat = [seed for row in seeds for seed in row]
        draw = [_SeededDraw(flat, sampling, self._device)] if sampling.temperature > 0 else []
        with torch.inference_mode():
            output = self._network.generate(
                **inputs,
                generation_config=config,
                logits_processor=LogitsProcessorList(draw),
                tokenizer=self._processor.tokenizer,
                streamer=streamer,
            )
        rows = [self._completion(ids, sampling) for ids in output[:, inputs["input_ids"].shape[1] :]]
        if sampling.temperature == 0:
            return [[row] * count for row in rows]
        return [rows[i : i + count] for i in range(0, len(rows), count)]

    def _encode(self, prompts: Sequence[Mapping[str, Any]]) -> Any:
        conversations = []
        for row in prompts:
            images = iter(row["images"])
            conversations.append(
                [
                    {
                        "role": turn["role"],
                        "content": [
                            {"type": "image", "image": next(images)} if part["type"] == "image" else part
                            for part in turn["content"]
                        ],
                    }
                    for turn in row["prompt"]
                ]
            )
        return self._processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._device)

    def _completion(self, ids: torch.Tensor, sampling: Sampling) -> Completion:
        text = self._processor.tokenizer.decode(ids, skip_special_tokens=True)
        ends = self._network.generation_config.eos_token_id
        ended = any(int(i) in (ends if isinstance(ends, list) else [ends]) for i in ids)
        complete = ended or STOP_STRING in text or len(ids) < sampling.max_new_tokens
        return Completion(text, "stop" if complete else "length")


def _fingerprint(network: Any) -> str:
    """Return a short hash of evenly spaced weights: a model trained again into the same folder is another model."""
    import torch

    found = hashlib.sha256()
    for _, weights in sorted(network.named_parameters()):
        flat = weights.detach().flatten()
        found.update(flat[:: max(1, flat.numel() // 4096)].to("cpu", torch.float32).numpy().tobytes())
    return found.hexdigest()[:12]


class _SeededDraw:
    """Logits processor that draws each row's token with the row's own generator.

    Adding Gumbel noise and taking the maximum is exact sampling from the tempered, nucleus-cut distribution. All but
    the drawn token are then ruled out, so that `generate` has no choice left; rows do not depend on their neighbours.
    """

    def __init__(self, seeds: Sequence[int], sampling: Sampling, device: str) -> None:
        import torch
        from transformers import TopPLogitsWarper

        self._temperature = sampling.temperature
        self._nucleus = TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None
        self._generators = [torch.Generator(device).manual_seed(seed % 2**63) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        import torch

        tempered = scores / self._temperature
        if self._nucleus is not None:
            tempered = self._nucleus(input_ids, tempered)
        noise = torch.empty_like(tempered)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        drawn = (tempered - noise.log()).argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn, 0.0)
