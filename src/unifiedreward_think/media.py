"""Images and videos from disk: one frame sampler for training, sampling, evaluation and serving.

Videos become lists of frames here and stay lists of frames everywhere else: TRL's GRPO trainer would silently
drop native video in its training forward.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from unifiedreward_think import frame_cache
from unifiedreward_think.checksums import file_sha256
from unifiedreward_think.decoders import Decoder, decode, frame_indices
from unifiedreward_think.errors import MediaError
from unifiedreward_think.pixels import FORMATS, MAX_PIXELS, check_size, read, to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
THUMBNAIL = 320  # pixels on the longer side
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
_MISSING = "no such file; check the path and the media root of the data file"


class Clip(NamedTuple):
    """A video for a model with video input of its own.

    Attributes:
        video: the file.
        frames: the sampled frames as image files.
        indices: which frames of the video they are.
        total: how many frames the video holds.
        fps: frames of the video in a second, on average.
    """

    video: Path
    frames: list[Path]
    indices: list[int]
    total: int
    fps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSampling:
    """How videos become frames.

    Attributes:
        frames: how many frames of each video, evenly spaced, the first and the last included.
        decoder: "decord" (default), "pyav" or "torchcodec"; never switched silently, since decoders can pick
            different frames of a video with a variable rate.
        cache: folder that keeps the frames of each video as PNG files, keyed by its content.
    """

    frames: int
    cache: Path
    decoder: Decoder = "decord"


def image_paths(paths: Sequence[str], kind: str, sampling: FrameSampling) -> list[Path]:
    """Return the image files that stand for one media entry of a record.

    An animation in an image task is shown by its first frame, as by the processors.

    Args:
        paths: an image, a video file, a folder of frames, or frames in order.
        kind: "image" or "video".
        sampling: how a video becomes frames; frames that are already given are thinned by the same rule.

    Raises:
        MediaError: a file is missing or cannot be read as what it should be.
    """
    files = [Path(path) for path in paths]
    if missing := [file for file in files if not file.exists()]:
        raise MediaError(f"{missing[0]}: {_MISSING}")
    if kind == "image":
        if videos := [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]:
            raise MediaError(f"{videos[0]}: a video, and the task shows images; choose a video task, or fix the path")
        return files
    if len(files) == 1 and files[0].is_dir():
        files = frames_in(files[0])
        if not files:
            raise MediaError(f"{paths[0]}: a folder without image files; expected the frames of a video")
    if len(files) == 1:
        return video_frames(files[0], sampling)
    return [files[i] for i in frame_indices(len(files), sampling.frames)]


def video_frames(video: Path, sampling: FrameSampling) -> list[Path]:
    """Return sampled frames of a video as PNG files, decoding only what the cache does not hold yet."""
    return _film(video, sampling).files


def _film(video: Path, sampling: FrameSampling) -> frame_cache.Stored:
    key = f"{file_sha256(video)[:32]}-{sampling.frames}-{sampling.decoder}"
    folder = sampling.cache / key
    return frame_cache.load(folder) or frame_cache.store(decode(video, sampling.frames, sampling.decoder), folder)


def native_clip(paths: Sequence[str], sampling: FrameSampling) -> Clip:
    """Return a media entry as a video with its timing, which frames alone do not have.

    Raises:
        MediaError: the entry is no single video file, or one that cannot be read.
    """
    video = Path(paths[0])
    if len(paths) != 1 or not video.is_file():
        raise MediaError(f"{video}: native video needs one video file; frames have no timing: leave --native-video out")
    frames, total, fps = _film(video, sampling)
    return Clip(video, frames, frame_indices(total, sampling.frames), total, fps)


def open_image(
    file: Path | str | BinaryIO, *, name: str = "", limit: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> Image:
    """Open an image as 8-bit RGB (`pixels.to_rgb`), turned upright as its EXIF tag says.

    Args:
        file: a path, or an open file such as a BytesIO.
        name: what messages call it; the path by default.
        limit: of its pixels.
        formats: names of the formats that are tried.

    Raises:
        MediaError: the file is no readable image, its pixels cannot be shown as RGB, or it is too large or too narrow.
    """
    from PIL import Image, UnidentifiedImageError

    name = name or str(file)
    try:
        # Given a path, Pillow maps TIFF files into memory, and mixes up the rows of those with an orientation.
        with (
            Path(file).open("rb") if isinstance(file, str | Path) else nullcontext(file) as stream,
            Image.open(stream, formats=formats) as image,
        ):
            check_size(*image.size, name, limit)
            return read(image, name)
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"{name}: {_MISSING}") from error
    except UnidentifiedImageError as error:
        raise MediaError(f"{name}: not a readable image (no {', '.join(formats)}); replace or remove it") from error
    # Pillow raises the two last ones at EXIF data that are broken in odd ways.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, struct.error, TypeError) as error:
        raise MediaError(f"{name}: not a readable image ({error}); replace or remove it") from error


def check_media(paths: Sequence[str], kind: str, sampling: FrameSampling) -> None:
    """Open what a media entry points to, raising MediaError if anything is missing or unreadable."""
    for path in image_paths(paths, kind, sampling):
        open_image(path)


def pixel_sha256(image: Image) -> str:
    """Return a hash of size and RGB pixels, equal for equal pictures whatever their file format."""
    rgb = to_rgb(image)
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()


def frames_in(folder: Path) -> list[Path]:
    """Return the frames in a folder, in their order. Hidden files are none: macOS leaves a ._name on other disks."""
    shown = (f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith("."))
    return sorted(shown, key=_frame_order)


def thumbnails(media: Sequence[Sequence[str]], kind: str, sampling: FrameSampling) -> list[dict[str, Any]]:
    """Return the small pictures of each media entry for a page; one that cannot be opened says why in their place."""
    entries: list[dict[str, Any]] = []
    for paths in media:
        try:
            images = [_thumbnail(open_image(file)) for file in image_paths(paths, kind, sampling)]
            entries.append({"images": images, "error": ""})
        except MediaError as error:
            entries.append({"images": [], "error": str(error)})
    return entries


def _thumbnail(image: Image) -> dict[str, Any]:
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    small = max(image.size) <= 96  # drawings keep their pixels, photographs become JPEG
    buffer = io.BytesIO()
    image.save(buffer, format="PNG" if small else "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"uri": f"data:image/{'png' if small else 'jpeg'};base64,{data}", "small": small}


def _frame_order(file: Path) -> list[tuple[int, str]]:
    """Sort key by name with numbers as numbers: frame_2 comes before frame_10."""
    return [(int(part or 0), "") if i % 2 else (0, part) for i, part in enumerate(re.split(r"(\d+)", file.name))]
