"""Completions from a local model through transformers: batched, refilled, reproducible sample by sample."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from unifiedreward_think.backends import Completion, Video, end_at_tag, with_images
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.models.loading import UnsupportedModelError, load_model, load_processor
from unifiedreward_think.verdict import STOP_STRING

if TYPE_CHECKING:
    import torch

    from unifiedreward_think.engine.features import Picture

# Families whose released judges were trained on videos as such.
NATIVE_VIDEO = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
REFILL = 0.25  # share of the batch that must be free: reading prompts one by one would cost more than waiting


class TransformersBackend:
    """Run a checkpoint in this process.

    Args:
        path: folder or Hub name of the model.
        batch_size: prompts that are answered at a time; each has a row for every seed.
        dtype, attn_implementation, min_pixels, max_pixels: as in `models.loading`.
        device: "cuda", "cpu", ...; the accelerator if there is one by default.
        cache_mib: memory for features of pictures, so that one shown again does not go through the vision tower again;
            0 remembers none.
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
        dtype: str = "auto",
        attn_implementation: str | None = None,
        device: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        cache_mib: int = 1024,
        loaded: tuple[Any, Any] | None = None,
    ) -> None:
        import torch

        from unifiedreward_think.engine import decoding as slots
        from unifiedreward_think.engine.features import PictureCache, supported

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
        layers = getattr(network.config.get_text_config(), "layer_types", None) or ()
        if strange := set(layers) - slots.FITTING:
            mend = "rows of its cache cannot change places; set use_sliding_window: false in its config.json"
            raise UnsupportedModelError(f"{path}: layers of the type {', '.join(strange)}: {mend}")
        remembers = cache_mib > 0 and loaded is None and supported(network)
        images = self._processor.image_processor
        self.cache = PictureCache(self._network, images, cache_mib * 2**20) if remembers else None
        self.native_video = "frames" if network.config.model_type in NATIVE_VIDEO else ""
        # Only such a token can complete the closing answer tag.
        vocabulary = self._processor.tokenizer.get_vocab()
        self._closing = {number for token, number in vocabulary.items() if STOP_STRING[-1] in token}
        ends = network.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
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

        streamer = TextStreamer(self._processor.tokenizer, skip_special_tokens=True)
        streamer.on_finalized_text = lambda text, stream_end=False: on_text(text)
        written = self.complete_each([(prompt, [seed])], sampling=sampling, samples=1, on_tokens=streamer.put)
        completion = next(written)[0][1][0]
        streamer.end()
        return completion

    def complete(
        self, prompts: Sequence[Mapping[str, Any]], *, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        """Return len(seeds[i]) completions of prompt i; equal seeds give equal completions in any batch.

        Every prompt needs the same number of seeds. A greedy completion ignores its seed.
        """
        asked = zip(prompts, seeds, strict=True)
        done = dict(chain.from_iterable(self.complete_each(asked, sampling=sampling, samples=len(seeds[0]))))
        return [done[number] for number in range(len(prompts))]

    def complete_each(
        self,
        asked: Iterable[tuple[Mapping[str, Any], Sequence[int]]],
        *,
        sampling: Sampling,
        samples: int,
        on_tokens: Callable[[torch.Tensor], object] = lambda tokens: None,
    ) -> Iterator[list[tuple[int, list[Completion]]]]:
        """Yield the completions of prompts as they are done, each with the number of its prompt.

        Prompts are taken while there is room: `batch_size` prompts have a row for each of their samples.

        Args:
            asked: prompts with their seeds.
            sampling: how tokens are drawn.
            samples: seeds of each prompt.
            on_tokens: takes the newest token of every row.
        """
        from unifiedreward_think.engine.decoding import Row, Slots

        copies = samples if sampling.temperature > 0 else 1
        slots = Slots(self._network, sampling, ended=lambda row: self._ended(row.tokens, sampling), on_tokens=on_tokens)
        waiting = enumerate(asked)
        writing: dict[int, list[Row]] = {}
        while True:
            room = self.batch_size - math.ceil(len(slots.rows) / copies)
            if not slots.rows or room >= self.batch_size * REFILL:
                new = list(islice(waiting, room))
                rows = [[Row(self._generator(seed, sampling)) for seed in seeds[:copies]] for _, (_, seeds) in new]
                if new:
                    slots.add(self._encode([prompt for _, (prompt, _) in new]), rows)
                    writing |= {number: own for (number, _), own in zip(new, rows, strict=True)}
            if not slots.rows:
                return
            slots.leave()
            done = [number for number, own in writing.items() if all(row.complete for row in own)]
            if done:
                said = [[self._completion(row.tokens) for row in writing.pop(number)] for number in done]
                yield [(number, own * (samples // copies)) for number, own in zip(done, said, strict=True)]
            elif slots.rows:
                slots.step()

    def _encode(self, prompts: Sequence[Mapping[str, Any]]) -> Any:
        videos = [video for row in prompts for video in row.get("videos", ())]
        if self.cache is not None and not videos and any(row["images"] for row in prompts):
            return self._encode_remembered(prompts, self.cache.features([row["images"] for row in prompts]))
        conversations = [with_images(row, _image_part, _video_part) for row in prompts]
        # The frames are sampled already; without their timing the processor would assume 24 frames a second.
        timed: dict[str, Any] = {}
        if videos:
            timed = {"video_metadata": [_timing(video) for video in videos], "do_sample_frames": False}
            if hasattr(self._processor.video_processor, "cap_pixels_per_frame"):  # the Qwen families have it
                timed["cap_pixels_per_frame"] = True  # as qwen-vl-utils does, which the published scripts use
        return self._processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, **timed},
        ).to(self._device)

    def _encode_remembered(self, prompts: Sequence[Mapping[str, Any]], shown: Sequence[Sequence[Picture]]) -> Any:
        """Return what the processor gives, with features in place of pixels: each picture fills as many places."""
        from unifiedreward_think.engine.features import encoder_outputs

        conversations = [with_images(row, _image_part) for row in prompts]
        texts = self._processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        tokenizer = self._processor.tokenizer
        place = tokenizer.convert_tokens_to_ids(self._processor.image_token)
        filled = []
        for ids, pictures in zip(tokenizer(texts)["input_ids"], shown, strict=True):
            if ids.count(place) != len(pictures):
                raise ValueError(f"a prompt of {len(pictures)} pictures has {ids.count(place)} places for them")
            sizes = iter([picture.tokens for picture in pictures])
            filled.append([token for one in ids for token in [one] * (next(sizes) if one == place else 1)])
        inputs = dict(tokenizer.pad({"input_ids": filled}, return_tensors="pt").to(self._device))
        outputs = encoder_outputs([picture for pictures in shown for picture in pictures])
        if "image_grid_thw" in outputs:  # without the types of tokens, positions would silently be those of text
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == place).int()
        return inputs | outputs

    def _generator(self, seed: int, sampling: Sampling) -> torch.Generator | None:
        import torch

        return torch.Generator(self._device).manual_seed(seed % 2**63) if sampling.temperature > 0 else None

    def _ended(self, tokens: Sequence[int], sampling: Sampling) -> bool:
        """Whether a row is complete: at a token of the end, the closing answer tag, or the limit."""
        if tokens[-1] in self._ends or len(tokens) >= sampling.max_new_tokens:
            return True
        # No token is empty, so the tag lies within as many tokens as it has letters.
        tail = tokens[-len(STOP_STRING) :]
        return tokens[-1] in self._closing and STOP_STRING in self._processor.tokenizer.decode(tail)

    def _completion(self, tokens: Sequence[int]) -> Completion:
        text = self._processor.tokenizer.decode(tokens, skip_special_tokens=True)
        # A row that neither an end nor the tag has ended was cut.
        return end_at_tag(text, "stop" if tokens[-1] in self._ends else "length")


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
