"""From prompts to what a model takes: tokens first, so that each can be refused, or wait, before any is padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unifiedreward_think.backends import Video, with_images
from unifiedreward_think.backends.refilling import Reading
from unifiedreward_think.models.fitting import misplaced, too_long

if TYPE_CHECKING:
    from unifiedreward_think.engine.features import FeatureCache, ImageFeatures
    from unifiedreward_think.models.chat_template import Thinking

# Makes the model's inputs of the prompts at some places, and the features of each one's images where it has these.
Make = Callable[[Sequence[int]], "tuple[Any, list[list[ImageFeatures]] | None]"]


class PromptReader:
    """Reads prompts for a model in this process.

    Args:
        processor: of the model.
        positions: that the model was made for.
        device: of the model.
        thinking: how the chat template is asked.
        cache: remembers features of pictures; None: each prompt brings pixels.
    """

    def __init__(
        self, processor: Any, *, positions: int, device: str, thinking: Thinking, cache: FeatureCache | None
    ) -> None:
        self._processor = processor
        self._positions = positions
        self._device = device
        self._thinking = thinking
        self._cache = cache

    def read(self, prompts: Sequence[Mapping[str, Any]], new_tokens: int) -> Reading:
        """Return what is known of prompts: their tokens, or why one has no room in the model, and their inputs.

        Raises:
            ValueError: the processor refuses them.
        """
        texts, problems = self._render(prompts)
        sound = [place for place, problem in enumerate(problems) if not problem]
        lengths, make = self._encode([prompts[place] for place in sound], [texts[place] for place in sound])
        known: list[int | str] = list(problems)
        for place, length in zip(sound, lengths, strict=True):
            known[place] = too_long(length, new_tokens, self._positions) or length
        return Reading(known, lambda places: make([sound.index(place) for place in places]))

    def _encode(self, prompts: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> tuple[list[int], Make]:
        """Return the tokens of prompts, and what makes the model's inputs of some of them."""
        if not prompts:
            return [], lambda places: ({}, None)
        native = any(row.get("videos") for row in prompts)
        if self._cache is not None and not native and any(row["images"] for row in prompts):
            return self._encode_remembered(prompts, texts, self._cache)
        inputs = self._process(prompts)
        lengths: list[int] = inputs["attention_mask"].sum(1).tolist()

        def make(places: Sequence[int]) -> tuple[Any, None]:
            everyone = len(places) == len(prompts)
            return (inputs if everyone else self._process([prompts[place] for place in places])), None

        return lengths, make

    def _process(self, prompts: Sequence[Mapping[str, Any]]) -> Any:
        """Return what the processor makes of prompts."""
        conversations = [with_images(row, _image_part, _video_part) for row in prompts]
        videos = [video for row in prompts for video in row.get("videos", ())]
        # The frames are sampled already; without their timing the processor would assume 24 frames a second.
        timed: dict[str, Any] = {}
        if videos:
            timed = {"video_metadata": [_timing(video) for video in videos], "do_sample_frames": False}
            if hasattr(self._processor.video_processor, "cap_pixels_per_frame"):  # the Qwen families have it
                timed["cap_pixels_per_frame"] = True  # as qwen-vl-utils does, which the published scripts use
        inputs = self._processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, **timed},
            **self._thinking.options,
        )
        return inputs.to(self._device)

    def _encode_remembered(
        self, prompts: Sequence[Mapping[str, Any]], texts: Sequence[str], cache: FeatureCache
    ) -> tuple[list[int], Make]:
        """Return what the processor gives, with features in place of pixels: each image fills as many places."""
        from unifiedreward_think.engine.features import in_place_of_pixels

        tokenizer = self._processor.tokenizer
        place = tokenizer.convert_tokens_to_ids(self._processor.image_token)
        shown = cache.features([row["images"] for row in prompts])
        filled: list[list[int]] = []
        for ids, images in zip(tokenizer(list(texts))["input_ids"], shown, strict=True):
            sizes = iter([image.tokens for image in images])
            filled.append([token for one in ids for token in [one] * (next(sizes) if one == place else 1)])

        def make(places: Sequence[int]) -> tuple[Any, list[list[ImageFeatures]]]:
            chosen = [shown[number] for number in places]
            padded = tokenizer.pad({"input_ids": [filled[number] for number in places]}, return_tensors="pt")
            inputs = dict(padded.to(self._device))
            images = [image for of_prompt in chosen for image in of_prompt]
            outputs = in_place_of_pixels(images) if images else {}
            if "image_grid_thw" in outputs:  # without the types of tokens, positions would silently be those of text
                inputs["mm_token_type_ids"] = (inputs["input_ids"] == place).int()
            return inputs | outputs, chosen

        return [len(ids) for ids in filled], make

    def _render(self, prompts: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
        """Return the texts of prompts, and for each what is wrong with it: places for media that it does not have."""
        conversations = [with_images(row, _image_part, lambda video: {"type": "video"}) for row in prompts]
        texts: list[str] = self._processor.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=True, **self._thinking.options
        )
        media = [{"images": len(row["images"]), "videos": len(row.get("videos", ()))} for row in prompts]
        problems = [misplaced(text, self._processor, **of_row) for text, of_row in zip(texts, media, strict=True)]
        return texts, problems


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
