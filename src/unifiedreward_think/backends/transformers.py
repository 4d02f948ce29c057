"""Completions from a local model through transformers: batched, left padded, reproducible sample by sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unifiedreward_think.backends import Completion, Sampling, Video, end_at_tag, with_images
from unifiedreward_think.models.loading import load_model, load_processor
from unifiedreward_think.verdict import STOP_STRING

if TYPE_CHECKING:
    import torch

# Families whose released judges were trained on videos as such.
NATIVE_VIDEO = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


class TransformersBackend:
    """Run a checkpoint in this process.

    Args:
        path: folder or Hub name of the model.
        batch_size: prompts in one batch; each is sampled as often as it has seeds.
        dtype, attn_implementation, min_pixels, max_pixels: as in `models.loading`.
        device: "cuda", "cpu", ...; the accelerator if there is one by default.
        loaded: network and processor that are in memory already, such as those in training; `path` then only names
            them, and the pixel limits are those of the processor.
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
        loaded: tuple[Any, Any] | None = None,
    ) -> None:
        import torch

        self.model = path
        self.batch_size = batch_size
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        network: Any
        self._processor: Any
        network, self._processor = loaded or (
            load_model(path, dtype=dtype, attn_implementation=attn_implementation),
            load_processor(path, min_pixels=min_pixels, max_pixels=max_pixels),
        )
        self._network = network.to(self._device).eval()
        self.native_video = "frames" if network.config.model_type in NATIVE_VIDEO else ""
        # Only such a token can complete the closing answer tag.
        closing = [i for token, i in self._processor.tokenizer.get_vocab().items() if STOP_STRING[-1] in token]
        self._closing = torch.tensor(closing, device=self._device)
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
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        count = len(seeds[0])
        inputs = self._encode(prompts)
        width = inputs["input_ids"].shape[1]
        defaults = self._network.generation_config
        # Written out in full: a checkpoint's own generation_config (Qwen2.5-VL ships a repetition penalty) must not
        # change what `sampling` says. Sampling fields of a greedy run would only draw a warning.
        drawn = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "num_return_sequences": count}
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=1.0,
            eos_token_id=defaults.eos_token_id,
            pad_token_id=defaults.pad_token_id,
            **(drawn if sampling.temperature > 0 else {"do_sample": False}),
        )
        flat = [seed for row in seeds for seed in row]
        draw = [_SeededDraw(flat, sampling, self._device)] if sampling.temperature > 0 else []
        with torch.inference_mode():
            output = self._network.generate(
                **inputs,
                generation_config=config,
                logits_processor=LogitsProcessorList(draw),
                stopping_criteria=StoppingCriteriaList([_AnswerTag(self._processor.tokenizer, self._closing, width)]),
                streamer=streamer,
                synced_gpus=False,  # each rank of a training with ZeRO-3 judges pairs of its own
            )
        rows = [self._completion(ids, sampling) for ids in output[:, width:]]
        if sampling.temperature == 0:
            return [[row] * count for row in rows]
        return [rows[i : i + count] for i in range(0, len(rows), count)]

    def _encode(self, prompts: Sequence[Mapping[str, Any]]) -> Any:
        conversations = [with_images(row, _image_part, _video_part) for row in prompts]
        videos = [video for row in prompts for video in row.get("videos", ())]
        # The frames are sampled already; without their timing the processor would assume 24 frames a second.
        timed: dict[str, Any] = {}
        if videos:
            timed = {"video_metadata": [_timing(video) for video in videos], "do_sample_frames": False}
            if hasattr(self._processor.video_processor, "cap_pixels_per_frame"):  # newer than transformers 5.17
                timed["cap_pixels_per_frame"] = True  # as qwen-vl-utils does, which the published scripts use
        return self._processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, **timed},
        ).to(self._device)

    def _completion(self, ids: torch.Tensor, sampling: Sampling) -> Completion:
        text = self._processor.tokenizer.decode(ids, skip_special_tokens=True)
        ends = self._network.generation_config.eos_token_id
        ended = any(int(i) in (ends if isinstance(ends, list) else [ends]) for i in ids)
        complete = ended or len(ids) < sampling.max_new_tokens
        return end_at_tag(text, "stop" if complete else "length")


def _image_part(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}


def _video_part(video: Video) -> dict[str, Any]:
    import numpy

    return {"type": "video", "video": numpy.stack([numpy.asarray(image) for image in video.images])}


def _timing(video: Video) -> dict[str, Any]:
    clip, images = video
    return {
        "total_num_frames": clip.total,
        "fps": clip.fps,
        "frames_indices": clip.indices,
        "duration": clip.total / clip.fps,
        "width": images[0].width,
        "height": images[0].height,
    }


def _fingerprint(network: Any) -> str:
    """Return a short hash of evenly spaced weights: a model trained again into the same folder is another model."""
    import torch

    found = hashlib.sha256()
    for _, weights in sorted(network.named_parameters()):
        flat = weights.detach().flatten()
        found.update(flat[:: max(1, flat.numel() // 4096)].to("cpu", torch.float32).numpy().tobytes())
    return found.hexdigest()[:12]


class _AnswerTag:
    """Stopping criterion that ends a row at the closing answer tag.

    `stop_strings` of transformers reads the whole vocabulary anew for every batch; here text is only looked at where
    the newest token can have completed the tag.
    """

    def __init__(self, tokenizer: Any, closing: torch.Tensor, prompt_width: int) -> None:
        self._tokenizer = tokenizer
        self._closing = closing
        self._width = prompt_width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        import torch

        done = torch.isin(input_ids[:, -1], self._closing)
        # No token is empty, so the tag lies within as many tokens as it has letters.
        tail = input_ids[:, max(self._width, input_ids.shape[1] - len(STOP_STRING)) :]
        for row in done.nonzero().flatten().tolist():
            done[row] = STOP_STRING in self._tokenizer.decode(tail[row])
        return done


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
