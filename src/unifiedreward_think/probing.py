"""What a clip holds, before a decoder is asked for frames: which stream, how many frames, which side is up.

All decoders are held against it, so that none shows another stream, a frame that an edit list hides, or a sideways
picture. FFmpeg reads it by way of PyAV, without decoding more than the first frame.
"""

from __future__ import annotations

import math
import struct
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unifiedreward_think.errors import MediaError
from unifiedreward_think.pixels import MAX_PIXELS, check_size

if TYPE_CHECKING:
    from collections.abc import Iterator

FIX = "fetch it again, re-encode it as mp4, or remove it"
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_UPRIGHT = (1, 0, 0, 1)


class Probe(NamedTuple):
    """What a video file shows.

    Attributes:
        file: its absolute path: FFmpeg takes a relative one with a colon for a protocol.
        stream: the number of the stream that FFmpeg calls the best; a cover picture is none.
        total: frames that are shown, one for each packet.
        fps: frames in a second, on average.
        turn: the matrix (a, b, c, d) that turns it upright: x goes to ax + cy, y to bx + dy.
        size: width and height, upright.
        alpha: whether its frames have an alpha channel.
        first: its first frame as an array.
    """

    file: Path
    stream: int
    total: int
    fps: float
    turn: tuple[int, ...]
    size: tuple[int, int]
    alpha: bool
    first: Any


@contextmanager
def opened(file: Path, stream: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Yield a file opened by PyAV, and its best stream or the one of a number.

    Raises:
        MediaError: it cannot be read, also inside the block, or holds no video.
    """
    import av

    try:
        with av.open(str(file)) as container:
            video = container.streams.best("video") if stream is None else container.streams[stream]
            if video is None:
                raise MediaError(f"{file}: holds no video; {FIX}")
            yield container, video
    except av.FFmpegError as error:
        raise MediaError(f"{file}: FFmpeg cannot read this video ({error}); {FIX}") from error


def probe(video: Path) -> Probe:
    """Return what a video file shows.

    Raises:
        MediaError: it cannot be read, is cut short, is one picture, or can be shown by no decoder.
    """
    file = video.absolute()
    with opened(file) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise MediaError(f"{file}: the video holds no frame; {FIX}")
        check_whole(frame, file)
        turn = _turn(frame, file)
        size = (frame.width, frame.height) if turn[0] else (frame.height, frame.width)
        check_size(*size, str(file), MAX_PIXELS)
        alpha = any(part.is_alpha for part in frame.format.components)
        index, first = stream.index, shown(frame, turn, alpha=alpha)
        if stream.metadata.get("alpha_mode") == "1" and not alpha:
            convert = "ffmpeg -c:v libvpx-vp9 -i CLIP.webm -c:v png CLIP.mov"
            raise MediaError(f"{file}: a transparent WebM, whose alpha is left out; convert it: {convert}")
    total, fps = _count(file)
    if total < 2:
        raise MediaError(f"{file}: one frame is no video; give the whole clip, or choose an image task")
    return Probe(file, index, total, fps, turn, size, alpha, first)


def check_whole(frame: Any, file: Path) -> None:
    """Refuse a frame in which FFmpeg has made up what it could not decode.

    Raises:
        MediaError: the clip is damaged.
    """
    if frame.is_corrupt:
        raise MediaError(f"{file}: the frame at {frame.time or 0:.2f} s is damaged; {FIX}")


def shown(frame: Any, turn: tuple[int, ...], *, alpha: bool) -> Any:
    """Return a frame of PyAV as an array, as the ffmpeg command line shows it, turned upright; RGB, or RGBA.

    PyAV's own conversion differs from it for BT.2020 and for interlaced frames.
    """
    from av.filter import Graph

    graph = Graph()
    a, b, c, d = turn
    steps: list[tuple[str, ...]] = [] if a else [("transpose", "dir=cclock_flip")]  # which swaps x and y
    steps += [(name,) for name, way in (("hflip", a or c), ("vflip", d or b)) if way < 0]
    steps += [("format", "rgba" if alpha else "rgb24"), ("buffersink",)]
    form = {"width": frame.width, "height": frame.height, "format": frame.format, "time_base": frame.time_base}
    graph.link_nodes(graph.add_buffer(**form), *(graph.add(*step) for step in steps)).configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


def _count(file: Path) -> tuple[int, float]:
    """Return how many frames are shown, and their average rate, without decoding any."""
    if (missing := _missing(file)) > 0:
        raise MediaError(f"{file}: lacks {missing:,} bytes at its end: the file is cut short; {FIX}")
    with opened(file) as (container, stream):
        # A header can promise more than the index of a whole file holds, which is complete where there is one.
        declared = len(stream.index_entries) if stream.frames and len(stream.index_entries) > 1 else stream.frames
        packets = [packet for packet in container.demux(stream) if packet.size]
        visible = [packet for packet in packets if not packet.is_discard]
        if len(packets) < declared or any(packet.is_corrupt for packet in packets):
            count = f"holds {len(packets)} of {declared or 'its'} declared frames"
            raise MediaError(f"{file}: {count}: the file is cut short; {FIX}")
        times = [float(packet.pts * packet.time_base) for packet in visible if packet.pts is not None]
        span = max(times) - min(times) if times else 0.0
        rate: Fraction | None = stream.average_rate or stream.guessed_rate
        return len(visible), float(rate) if rate else (len(times) - 1) / span if span else 1.0


def _turn(frame: Any, file: Path) -> tuple[int, ...]:
    """Return the matrix of a clip in units; only quarter turns and mirrors are known."""
    data = next((bytes(side) for side in frame.side_data if side.type.name == "DISPLAYMATRIX"), b"")
    a, b, _, c, d, *_ = struct.unpack("=9i", data) if data else (1, 0, 0, 0, 1)
    scale = math.hypot(a, b)
    if not scale:
        return _UPRIGHT
    units = [value / scale for value in (a, b, c, d)]
    turn = tuple(map(round, units))
    if any(abs(unit - whole) > 0.02 for unit, whole in zip(units, turn, strict=True)):
        angle = math.degrees(math.atan2(b, a))
        raise MediaError(f"{file}: to be turned by {angle:.0f} degrees, no quarter turn; re-encode it upright")
    return turn


def _missing(file: Path) -> int:
    """Return how many bytes a Matroska or WebM file lacks at its end: it declares no number of frames."""
    with file.open("rb") as video:
        head = video.read(100)
    place = len(_EBML)
    if not head.startswith(_EBML):
        return 0
    size, width = _ebml_size(head[place:])
    place += width + size
    if head[place : place + 4] != _SEGMENT:
        return 0
    size, width = _ebml_size(head[place + 4 :])
    unknown = size == 2 ** (7 * width) - 1  # a live recording
    return 0 if unknown else place + 4 + width + size - file.stat().st_size


def _ebml_size(data: bytes) -> tuple[int, int]:
    """Return a number of EBML and its width: as many bytes as there are zero bits in front, and one."""
    width = 9 - data[0].bit_length() if data and data[0] else 1
    return int.from_bytes(data[:width], "big") & (2 ** (7 * width) - 1), width
