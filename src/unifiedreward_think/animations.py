"""Animated GIF, WebP and PNG as clips: Pillow reads them whichever decoder is named, as decord reads none of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifiedreward_think.errors import MediaError
from unifiedreward_think.pixels import FORMATS, MAX_PIXELS, check_size, fix_transparency, to_rgb

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

ANIMATED = ("GIF", "WEBP", "PNG")
_NO_DELAY = 100  # milliseconds that browsers show a frame without a duration


def read_animation(file: Path, pick: Callable[[int], list[int]]) -> tuple[list[Image], int, float] | None:
    """Return frames of an animation, how many there are and how many in a second; None where the file is no picture.

    Args:
        file: of any kind.
        pick: given the number of frames, which are wanted.

    Raises:
        MediaError: it is one picture, or a broken one.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=FORMATS) as image:
            check_size(*image.size, str(file), MAX_PIXELS)
            # The picture that readers without animation show may be no part of it.
            first = int(getattr(image, "default_image", False))
            total = getattr(image, "n_frames", 1) - first if image.format in ANIMATED else 1
            if total < 2:
                raise MediaError(f"{file}: one picture is no video; give a clip or its frames, or choose an image task")
            return _frames(image, str(file), first, total, set(pick(total)))
    except UnidentifiedImageError:
        return None
    except MediaError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, TypeError, Image.DecompressionBombError) as error:
        raise MediaError(f"{file}: not a readable animation ({error}); replace or remove it") from error


def _frames(image: Any, name: str, first: int, total: int, wanted: set[int]) -> tuple[list[Image], int, float]:
    frames, milliseconds = [], 0.0
    for number in range(total):  # each is painted on the one before
        image.seek(first + number)
        fix_transparency(image, name)
        image.load()
        milliseconds += image.info.get("duration") or _NO_DELAY
        if number in wanted:
            frames.append(to_rgb(image, name).copy())
    return frames, total, 1000 * total / milliseconds
