"""Images and videos from disk: one frame sampler for training, sampling, evaluation and serving.

Videos become lists of frames here and stay lists of frames everywhere else: TRL's GRPO trainer would silently
drop native video in its training forward.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, get_args

from unifiedreward_think.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Decoder = Literal["decord", "pyav", "torchcodec"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
# Decoder -> the module to import, and what to do where that fails.
_MODULES = {
    "decord": ("decord", "it has wheels for Linux on x86-64 only; choose --decoder pyav"),
    "pyav": ("av", "pip install av"),
    "torchcodec": ("torchcodec.decoders", "pip install torchcodec (it needs FFmpeg's libraries), or choose another"),
}
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
MAX_PIXELS = 50_000_000
_MISSING = "no such file; check the path and the media root of the data file"
_MEND = "fetch it again, re-encode it as mp4, or remove it"


class MediaError(InputError):
    """An image or video that cannot be used; the message names the file and the mend."""


class DecoderError(InputError):
    """A video decoder that is not installed: no video can be read, whichever it is."""


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


def frame_indices(total: int, count: int) -> list[int]:
    """Return `count` evenly spaced indices of `total` frames, both ends included; all if there are fewer.

    >>> frame_indices(120, 4), frame_indices(3, 8), frame_indices(9, 1)
    ([0, 40, 79, 119], [0, 1, 2], [4])
    """
    if total <= count:
        return list(range(total))
    if count == 1:
        return [total // 2]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def image_paths(paths: Sequence[str], kind: str, sampling: FrameSampling) -> list[Path]:
    """Return the image files that stand for one media entry of a record.

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
            raise MediaError(f"{videos[0]}: a video, and the task shows images; choose a video task, or mend the path")
        return files
    if len(files) == 1 and files[0].is_dir():
        files = sorted((f for f in files[0].iterdir() if f.suffix.lower() in IMAGE_SUFFIXES), key=_frame_order)
        if not files:
            raise MediaError(f"{paths[0]}: a folder without image files; expected the frames of a video")
    if len(files) == 1 and files[0].suffix.lower() not in IMAGE_SUFFIXES - {".gif"}:
        return video_frames(files[0], sampling)
    return [files[i] for i in frame_indices(len(files), sampling.frames)]


def video_frames(video: Path, sampling: FrameSampling) -> list[Path]:
    """Return sampled frames of a video as PNG files, decoding only what the cache does not hold yet."""
    key = f"{_file_sha256(video)[:32]}-{sampling.frames}-{sampling.decoder}"
    folder = sampling.cache / key
    if not folder.is_dir():
        frames = decode_frames(video, sampling.frames, sampling.decoder)
        try:
            _store(frames, folder)
        except OSError as error:
            mend = "free space, or choose another --frame-cache"
            raise InputError(f"{sampling.cache}: frames cannot be stored ({error}); {mend}") from error
    return sorted(folder.glob("*.png"))


def _store(frames: Sequence[Image], folder: Path) -> None:
    """Write frames aside and rename the folder: a killed run leaves no half-filled one that a later one would trust."""
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        for i, frame in enumerate(frames):
            frame.save(scratch / f"{i:04d}.png", compress_level=1)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process cached the same video first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def decode_frames(video: Path, count: int, decoder: Decoder) -> list[Image]:
    """Decode `count` evenly spaced frames of a video file as RGB images.

    Raises:
        MediaError: the file is no readable video, or yields fewer frames than it declares (a file cut short).
        DecoderError: the decoder is not installed.
    """
    from PIL import Image

    arrays = _READERS[_known(decoder)](video, count)
    if not arrays:
        raise MediaError(f"{video}: the video holds no frame; {_MEND}")
    return [Image.fromarray(array) for array in arrays]


def native_clip(paths: Sequence[str], sampling: FrameSampling) -> Clip:
    """Return a media entry as a video with its timing, which frames alone do not have.

    Raises:
        MediaError: the entry is no single video file, or one that cannot be read.
    """
    video = Path(paths[0])
    if len(paths) != 1 or not video.is_file() or video.suffix.lower() in IMAGE_SUFFIXES - {".gif"}:
        raise MediaError(f"{video}: native video needs one video file; frames have no timing: leave --native-video out")
    frames = video_frames(video, sampling)
    total, fps = _timing(video, sampling.decoder)
    return Clip(video, frames, frame_indices(total, sampling.frames), total, fps)


def open_image(
    file: Path | str | BinaryIO, *, name: str = "", limit: int | None = None, formats: tuple[str, ...] | None = None
) -> Image:
    """Open an image as RGB, turned upright as its EXIF tag says (so does `datasets`).

    Args:
        file: a path, or an open file such as a BytesIO.
        name: what messages call it; the path by default.
        limit: of its pixels; MAX_PIXELS by default.
        formats: names of the formats that are tried; all that Pillow knows by default.

    Raises:
        MediaError: the file is no readable image, or declares more than `limit` pixels.
    """
    from PIL import Image, ImageOps

    name = name or str(file)
    limit = MAX_PIXELS if limit is None else limit
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height <= limit:
                return ImageOps.exif_transpose(image).convert("RGB")
            size = f"{image.width}x{image.height}"
    except FileNotFoundError as error:
        raise MediaError(f"{name}: {_MISSING}") from error
    # Pillow raises the two last ones at EXIF data that are broken in odd ways.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, struct.error, TypeError) as error:
        raise MediaError(f"{name}: not a readable image ({error}); replace or remove it") from error
    raise MediaError(f"{name}: {size} pixels; the limit is {limit:,}: scale it down")


def check_media(paths: Sequence[str], kind: str, sampling: FrameSampling) -> None:
    """Open what a media entry points to, raising MediaError if anything is missing or unreadable."""
    for path in image_paths(paths, kind, sampling):
        open_image(path)


def pixel_sha256(image: Image) -> str:
    """Return a hash of size and RGB pixels, equal for equal pictures whatever their file format."""
    rgb = image.convert("RGB")
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()


def _frame_order(file: Path) -> list[tuple[int, str]]:
    """Sort key by name with numbers as numbers: frame_2 comes before frame_10."""
    return [(int(part or 0), "") if i % 2 else (0, part) for i, part in enumerate(re.split(r"(\d+)", file.name))]


def _known(decoder: str) -> str:
    if decoder not in _MODULES:
        raise MediaError(f"decoder {decoder!r} is unknown; choose one of {', '.join(map(repr, _MODULES))}")
    return decoder


def _library(decoder: str) -> Any:
    name, mend = _MODULES[decoder]
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # the latter: torchcodec without FFmpeg's libraries
        raise DecoderError(f"decoder {decoder!r} cannot be loaded ({error}); {mend}") from error


def _decode_decord(video: Path, count: int) -> list[Any]:
    decord = _library("decord")
    try:
        reader = decord.VideoReader(str(video), num_threads=1)
        return list(reader.get_batch(frame_indices(len(reader), count)).asnumpy())
    except (RuntimeError, decord.DECORDError) as error:
        reason = str(error).strip()[:120]
        raise MediaError(f"{video}: decord cannot read this video ({reason}); {_MEND}") from error


def _decode_pyav(video: Path, count: int) -> list[Any]:
    av = _library("pyav")
    try:
        with av.open(str(video)) as container:
            declared = container.streams.video[0].frames
        # Some containers declare no number of frames: count them in a pass of their own, as decord does.
        wanted = set(frame_indices(declared or sum(1 for _ in _pyav_frames(video)), count))
        arrays, total = [], 0
        for frame in _pyav_frames(video):
            if total in wanted:
                arrays.append(frame.to_ndarray(format="rgb24"))
            total += 1
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{video}: PyAV cannot read this video ({error}); {_MEND}") from error
    if total < declared:
        raise _cut_short(video, total, declared)
    return arrays


def _decode_torchcodec(video: Path, count: int) -> list[Any]:
    reader = _library("torchcodec").VideoDecoder
    try:
        decoder = reader(str(video), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        total, declared = len(decoder), decoder.metadata.num_frames_from_header
        arrays = list(decoder.get_frames_at(indices=frame_indices(total, count)).data.numpy())
    except (RuntimeError, ValueError, IndexError) as error:
        raise MediaError(f"{video}: torchcodec cannot read this video ({error}); {_MEND}") from error
    if declared is not None and total < declared:
        raise _cut_short(video, total, declared)
    return arrays


_READERS = {"decord": _decode_decord, "pyav": _decode_pyav, "torchcodec": _decode_torchcodec}


def _cut_short(video: Path, total: int, declared: int) -> MediaError:
    return MediaError(f"{video}: holds {total} of {declared} declared frames: the file is cut short; {_MEND}")


def _timing(video: Path, decoder: Decoder) -> tuple[int, float]:
    """Return how many frames a video holds, and its average rate; it was read by the same decoder before."""
    library = _library(decoder)
    if decoder == "decord":
        reader = library.VideoReader(str(video), num_threads=1)
        return len(reader), float(reader.get_avg_fps())
    if decoder == "torchcodec":
        found = library.VideoDecoder(str(video), seek_mode="exact")
        return len(found), float(found.metadata.average_fps)
    with library.open(str(video)) as container:
        stream = container.streams.video[0]
        total, rate = stream.frames or sum(1 for _ in _pyav_frames(video)), stream.average_rate
    return total, float(rate)


def _pyav_frames(video: Path) -> Iterator[Any]:
    import av

    with av.open(str(video)) as container:
        yield from container.decode(video=0)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
