"""Videos from files: which frames are sampled, and the libraries that decode them.

The decoder is named, never switched silently. All give the frames of the ffmpeg command line, upright and on white
(`probing`), or refuse a clip by name: decord and torchcodec leave alpha out, decord knows no AV1 and rounds 10
bits otherwise. Interlaced frames stay woven, HDR is not tone-mapped, pixels that are not square are not stretched.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from unifiedreward_think.animations import read_animation
from unifiedreward_think.errors import DecoderError, MediaError
from unifiedreward_think.pixels import to_rgb
from unifiedreward_think.probing import FIX, Probe, check_whole, opened, probe, shown

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
TOLERANCE = 2.0  # grey levels, of the mean over a frame: versions of FFmpeg round differently
_OTHER = "choose --decoder pyav"


class Film(NamedTuple):
    """Sampled frames of a clip as RGB images, how many frames the clip has, and how many in a second on average."""

    frames: list[Image]
    total: int
    fps: float


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


def decode(video: Path, count: int, decoder: Decoder) -> Film:
    """Decode `count` evenly spaced frames of a video file or an animation.

    Raises:
        MediaError: the file is no readable video, is cut short, or holds what the decoder cannot show.
        DecoderError: the decoder is not installed.
    """
    from PIL import Image

    if decoder not in _MODULES:
        raise MediaError(f"decoder {decoder!r} is unknown; choose one of {', '.join(map(repr, _MODULES))}")
    library = _library(decoder)
    if (animation := read_animation(video, lambda total: frame_indices(total, count))) is not None:
        return Film(*animation)
    clip = probe(video)
    total, arrays = _READERS[decoder](library, clip, count)
    sizes = {(array.shape[1], array.shape[0]) for array in arrays}
    if sizes != {clip.size}:
        raise MediaError(f"{video}: {decoder} shows sizes {sorted(sizes)} for {clip.size}; {_other(decoder)}")
    if count > 1 and (difference := abs(arrays[0].astype(int) - clip.first).mean()) > TOLERANCE:
        raise MediaError(f"{video}: {decoder}'s first frame is not FFmpeg's (by {difference:.1f}); {_other(decoder)}")
    return Film([to_rgb(Image.fromarray(array)) for array in arrays], total, clip.fps)


def _other(decoder: str) -> str:
    return f"re-encode it as mp4{'' if decoder == 'pyav' else ', or ' + _OTHER}"


def _library(decoder: str) -> Any:
    name, fix = _MODULES[decoder]
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # the latter: torchcodec without FFmpeg's libraries
        raise DecoderError(f"decoder {decoder!r} cannot be loaded ({error}); {fix}") from error


def _decode_decord(decord: Any, clip: Probe, count: int) -> tuple[int, list[Any]]:
    _check_plain(clip, "decord")
    try:
        # At any tolerance above 0 it says so instead of giving a neighbour in place of a frame that it cannot decode.
        reader = decord.VideoReader(str(clip.file), num_threads=1, fault_tol=1e-9)
        _check_total(clip, "decord", len(reader))
        return clip.total, list(reader.get_batch(frame_indices(clip.total, count)).asnumpy())
    except (RuntimeError, decord.DECORDError, decord.DECORDLimitReachedError) as error:
        raise _unreadable(clip, "decord", error) from error


def _decode_torchcodec(torchcodec: Any, clip: Probe, count: int) -> tuple[int, list[Any]]:
    _check_plain(clip, "torchcodec")
    try:
        options = {"dimension_order": "NHWC", "num_ffmpeg_threads": 1, "seek_mode": "exact"}
        decoder = torchcodec.VideoDecoder(str(clip.file), **options)
        _check_total(clip, "torchcodec", len(decoder))
        return clip.total, list(decoder.get_frames_at(indices=frame_indices(clip.total, count)).data.numpy())
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, MediaError):
            raise
        raise _unreadable(clip, "torchcodec", error) from error


def _decode_pyav(av: Any, clip: Probe, count: int) -> tuple[int, list[Any]]:
    """Decode every frame, and again where packets hold more or fewer frames than one each."""
    total, decoded = clip.total, -1
    while decoded != total:
        total, decoded, arrays = (total if decoded < 0 else decoded), 0, []
        wanted = set(frame_indices(total, count))
        with opened(clip.file, clip.stream) as (container, stream):
            for frame in container.decode(stream):
                if decoded in wanted:
                    check_whole(frame, clip.file)
                    arrays.append(shown(frame, clip.turn, alpha=clip.alpha))
                decoded += 1
    return total, arrays


def _check_plain(clip: Probe, decoder: str) -> None:
    a, b, c, d = clip.turn
    if clip.alpha or a * d - b * c < 0:
        what = "is transparent" if clip.alpha else "is to be mirrored"
        raise MediaError(f"{clip.file}: the clip {what}, which {decoder} leaves out; {_OTHER}")


def _check_total(clip: Probe, decoder: str, total: int) -> None:
    if total != clip.total:
        raise MediaError(f"{clip.file}: {decoder} counts {total} frames, and {clip.total} are shown; {_OTHER}")


def _unreadable(clip: Probe, decoder: str, error: Exception) -> MediaError:
    reason = str(error).strip()[:120]
    return MediaError(f"{clip.file}: {decoder} cannot read this video ({reason}); {_OTHER}, or {FIX}")


_READERS = {"decord": _decode_decord, "pyav": _decode_pyav, "torchcodec": _decode_torchcodec}
