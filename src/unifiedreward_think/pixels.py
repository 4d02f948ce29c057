"""Pixels of any kind as 8-bit RGB: one rule for files, animations, clips, arrays and the pictures of trainers.

>>> from PIL import Image
>>> to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0)), to_rgb(Image.new("I;16", (1, 1), 32896)).mode
((255, 127, 127), 'RGB')
>>> to_rgb(Image.new("F", (1, 1), 200.0))
Traceback (most recent call last):
    ...
unifiedreward_think.errors.MediaError: picture: mode F with values from 200 to 200, and 0 to 1 can be scaled to ...
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

from unifiedreward_think.errors import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 50_000_000
MAX_ASPECT = 200  # long side over short side: transformers and qwen_vl_utils refuse more
# Those whose every mode was compared with ImageMagick; of XBM, XPM and 16-bit JPEG 2000, Pillow reads some wrongly.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_CONVERTED = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "LA", "La", "PA", "RGBA", "RGBa"})
_DEEP = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}  # mode -> what white is
_JPEG = (6, 7)  # compressions of TIFF in which libtiff turns YCbCr into RGB
_FIX = "save it as PNG with 8 bits a channel"


def to_rgb(image: Image, name: str = "picture", *, white: int = 0) -> Image:
    """Return an image as 8-bit RGB.

    Transparency is composed on white, as `qwen_vl_utils` does. Grey of 16 bits is scaled, as are floats from 0 to 1.
    CMYK goes through the profile it holds, as inks mean nothing without; profiles of RGB and grey are ignored, as
    `qwen_vl_utils`, transformers and vLLM ignore them.

    Args:
        image: of any mode, loaded or not.
        name: what messages call it.
        white: what white is in a mode of more than 8 bits; by default 65535, and 1 for floats.

    Raises:
        MediaError: the mode, or its range, has no one meaning.
    """
    from PIL import Image

    if image.mode in _DEEP:
        image = _scaled(image, name, white or _DEEP[image.mode])
    elif image.mode not in _CONVERTED:
        raise MediaError(f"{name}: pixels of mode {image.mode}, which cannot be shown; {_FIX}")
    if image.has_transparency_data:
        seen = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        ground = Image.new("RGB", seen.size, "white")
        ground.paste(seen, mask=seen.getchannel("A"))
        return ground
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        return _printed(image, name)
    return image.convert("RGB")


def check_size(width: int, height: int, name: str, limit: int) -> None:
    """Refuse what is too large to open, or too narrow for the models' processors.

    Raises:
        MediaError: of more than `limit` pixels, or of an aspect ratio over MAX_ASPECT.
    """
    if width * height > limit:
        raise MediaError(f"{name}: {width}x{height} pixels; the limit is {limit:,}: scale it down")
    short, long = sorted((width, height))
    if long > MAX_ASPECT * short:
        raise MediaError(f"{name}: {width}x{height} is too narrow; the limit is {MAX_ASPECT}:1: crop it, or remove it")


def declared_size(file: BinaryIO, name: str, formats: tuple[str, ...] = FORMATS) -> tuple[int, int]:
    """Return the width and height that an open image file declares, before a pixel is decoded.

    Raises:
        MediaError: it is no image of these formats, or a broken one.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=formats) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise MediaError(f"{name}: no picture of the formats {', '.join(formats)}") from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise MediaError(f"{name}: not a readable picture ({error})") from error


def read(image: ImageFile, name: str) -> Image:
    """Return a picture just opened, turned upright as its EXIF tag says (so does `datasets`), as 8-bit RGB.

    Raises:
        MediaError: its pixels are of a kind that Pillow reads wrongly, or that has no one meaning.
    """
    from PIL import ImageOps

    fix_transparency(image, name)
    tags: Any = getattr(image, "tag_v2", {})
    depth, ink, planes = tags.get(258, (16,)), tags.get(262), tags.get(284, 1)
    if ink == 6 and tags.get(259) not in _JPEG:
        raise MediaError(f"{name}: TIFF in YCbCr without JPEG, which Pillow takes for RGB; {_FIX}")
    if planes == 2 and max(depth) > 8:
        raise MediaError(f"{name}: TIFF of {max(depth)} bits in separate planes, which Pillow takes for 8; {_FIX}")
    if image.format == "BMP" and image.mode == "RGB" and image.tile and "BGRX" in (image.tile[0].args or ()):
        raise MediaError(f"{name}: BMP of 32 bits a pixel that does not say whether it is transparent; {_FIX}")
    if image.mode == "I" and image.format == "TIFF":
        raise MediaError(f"{name}: TIFF of mode I (signed or 32-bit integers), whose white is unknown; {_FIX}")
    negative = image.mode in _DEEP and ink == 0  # white is zero, and Pillow turns 8 bits alone
    picture = to_rgb(ImageOps.exif_transpose(image), name, white=2 ** depth[0] - 1 if image.mode[:4] == "I;16" else 0)
    return ImageOps.invert(picture) if negative else picture


def fix_transparency(image: ImageFile, name: str) -> None:
    """Scale the transparent colour of a PNG as Pillow scales its pixels; needs an image that is not loaded yet.

    Raises:
        MediaError: the colour is one of 16 bits, of which Pillow keeps 8.
    """
    if image.format != "PNG" or "transparency" not in image.info or not image.tile:
        return
    stored: Any = image.tile[0].args
    if stored == "RGB;16B":
        raise MediaError(f"{name}: 16-bit RGB with a transparent colour, of which Pillow keeps half; {_FIX}")
    image.info["transparency"] = image.info["transparency"] * {"L;2": 85, "L;4": 17}.get(stored, 1)


def _scaled(image: Image, name: str, white: int) -> Image:
    """Return grey of more than 8 bits as L, or as LA where one value is transparent."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0 and high <= white):  # so that NaN is refused, too
        mode_and_range = f"mode {image.mode} with values from {low:g} to {high:g}"
        raise MediaError(f"{name}: {mode_and_range}, and 0 to {white} can be scaled to 8 bits; {_FIX}")
    grey = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _printed(image: Image, name: str) -> Image:
    """Return CMYK as its profile says it looks in print."""
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        intent, shown = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.createProfile("sRGB")
        printed = ImageCms.profileToProfile(image, profile, shown, renderingIntent=intent, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise MediaError(f"{name}: CMYK with a colour profile that cannot be used ({error}); {_FIX}") from error
    assert printed is not None  # only with inPlace
    return printed
