"""How many tokens a row takes with a processor, told from the sizes of its pictures alone.

The chat template and the tokenizer are the processor's own, and so is the count of what a picture takes.

    counter = TokenCounter("Qwen/Qwen2.5-VL-7B-Instruct")
    counter.count(content, [(480, 640)])        # a user message with one picture, 480 high and 640 wide
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unifiedreward_think.data.formats.files import DataError
from unifiedreward_think.errors import MediaError
from unifiedreward_think.pixels import FORMATS, MAX_PIXELS, check_size


class TokenCounter:
    """Counts as the processor does when it is given text and pictures; a test compares the two.

    Args:
        processor: folder or Hub name; its limits of picture size are those of the checkpoint. Or a loaded processor.

    Raises:
        DataError: there is no processor, or it cannot tell what a picture takes.
    """

    def __init__(self, processor: str | Any) -> None:
        if not isinstance(processor, str):
            self.name, self._processor = type(processor).__name__, processor
            return
        from transformers import AutoProcessor

        self.name = Path(processor).name
        try:
            self._processor = AutoProcessor.from_pretrained(processor)
        except Exception as error:  # all that tokenizers raises; anything else is about the folder, too
            raise DataError(f"--processor {processor}: cannot be loaded ({str(error)[:200]})") from error
        if not hasattr(self._processor, "_get_num_multimodal_tokens"):
            raise DataError(f"--processor {processor}: {type(self._processor).__name__} cannot count picture tokens")

    def count(self, content: Sequence[dict[str, Any]], sizes: Sequence[tuple[int, int]], answer: str = "") -> int:
        """Return the tokens of a user message, up to where the answer starts, and of the answer.

        Args:
            content: texts and placeholders of pictures, as `prompting.to_content` makes them.
            sizes: (height, width) of each picture.
            answer: a completion; counted without the end of its turn.
        """
        turns = [{"role": "user", "content": list(content)}]
        text = self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return self.tokens(text + answer, sizes)

    def tokens(self, text: str, sizes: Sequence[tuple[int, int]]) -> int:
        """Return the tokens of a rendered text, in which a template has written one for each picture."""
        tokens = len(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        return tokens + sum(self._pictures(sizes)) - len(sizes) if sizes else tokens

    def _pictures(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        base = getattr(self._processor, "num_image_tokens", None)
        if base and len(sizes) > 1:  # LLaVA-OneVision cuts a picture into tiles only where it comes alone
            newline = self._processor.vision_feature_select_strategy != "default"
            return [base + newline] * len(sizes)
        counts: list[int] = self._processor._get_num_multimodal_tokens(image_sizes=list(sizes))["num_image_tokens"]
        return counts


def picture_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of a picture from its header, turned upright.

    Raises:
        MediaError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            # The values of Orientation that swap width and height; Pillow tells TIFF files' size upright.
            turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) >= 5
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: not a readable image ({error}); replace or remove it") from error
    check_size(width, height, str(path), MAX_PIXELS)
    return (width, height) if turned else (height, width)
