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
from unifiedreward_think.media import MediaError


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
        except (OSError, ValueError) as error:
            raise DataError(f"--processor {processor}: cannot be loaded ({str(error)[:200]})") from error
        if not hasattr(self._processor, "_get_num_multimodal_tokens"):
            raise DataError(f"--processor {processor}: {type(self._processor).__name__} cannot count picture tokens")

    def count(self, content: Sequence[dict[str, Any]], sizes: Sequence[tuple[int, int]], answer: str = "") -> int:
        """Return the tokens of a user message, up to where the answer starts, and of the answer.

        Args:
            content: texts and placeholders of pictures, as `rows.to_content` makes them.
            sizes: (height, width) of each picture.
            answer: a completion; counted without the end of its turn.
        """
        turns = [{"role": "user", "content": list(content)}]
        text = self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        tokens = len(self._processor.tokenizer(text + answer)["input_ids"])
        if not sizes:
            return tokens
        pictures: list[int] = self._processor._get_num_multimodal_tokens(image_sizes=list(sizes))["num_image_tokens"]
        return tokens + sum(pictures) - len(sizes)  # the template writes one token for each


def picture_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of a picture from its header, turned upright.

    Raises:
        MediaError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5  # the values of Orientation that swap width and height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: not a readable image ({error}); replace or remove it") from error
    return (width, height) if turned else (height, width)
