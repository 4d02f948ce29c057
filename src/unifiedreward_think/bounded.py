"""Pictures of strangers: opened as `media.open_image` does, but in bounded time and memory.

    image = open_bounded("upload.jpg")                             # the demo
    image = DECODERS.open(content, name="a", pixels=1024 * 1024)   # the reward server, where `quick` says no

Bytes and pixels do not bound what a picture costs: 110 KB of a JPEG can hold 1,500 scans of 16 million pixels, and EXIF
data of 240 KB, whose entries overlap, take 2 GB. So decoding is done in processes (`decoding_process`) that the system
ends at a limit of CPU time, which other work on the machine does not use up.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path
from queue import Empty, LifoQueue
from typing import TYPE_CHECKING, Any

from unifiedreward_think.errors import MediaError
from unifiedreward_think.media import open_image
from unifiedreward_think.pixels import FORMATS, MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SCANS = 100  # of a JPEG; encoders write 10 or so
QUICK_PIXELS = 2**21  # that decoding may go over for a picture to be opened in this process
HEADER_SECONDS = 1.0
SECONDS, SECONDS_A_MEGAPIXEL = 1.0, 0.25  # of CPU time; the slowest common kind (RGBA, WebP) takes 0.09 a megapixel
PATIENCE = 60.0  # seconds more that a process may take, in which it gets no CPU time
PROCESSES = min(8, max(2, os.cpu_count() or 1))
_CHUNKS = 1024
_PLAIN_CHUNKS = frozenset(
    [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"tIME"]
)
# Of a JPEG up to its first scan: frames, tables, restarts, JFIF, Adobe, comments.
_PLAIN_SEGMENTS = frozenset(bytes([255, kind]) for kind in (0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE))
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"


def plain(content: bytes) -> bool:
    """Whether a picture is a PNG or JPEG of few parts, without EXIF data, profiles and texts: nothing but its pixels.

    >>> plain(b"GIF89a"), plain(b"")
    (False, False)
    """
    png = content.startswith(b"\x89PNG\r\n\x1a\n")
    return _plain_png(content) if png else content.startswith(_JPEG) and _plain_jpeg(content)


def quick(content: bytes, pixels: int) -> bool:
    """Whether the bytes show that decoding is quick: few pixels, as often as the decoder goes over all of them.

    In a JPEG that is once for each scan, and what looks like the start of a scan is one: the data escape it.
    """
    scans = content.count(_SCAN) if content.startswith(_JPEG) else 1
    return plain(content) and scans <= MAX_SCANS and scans * pixels <= QUICK_PIXELS


def _plain_png(content: bytes) -> bool:
    place = 8
    for _ in range(_CHUNKS):
        kind = content[place + 4 : place + 8]
        if kind not in _PLAIN_CHUNKS:
            return kind == b"IEND" and place + 12 >= len(content)
        place += 12 + int.from_bytes(content[place : place + 4])
    return False


def _plain_jpeg(content: bytes) -> bool:
    place = 2
    for _ in range(_CHUNKS):
        if content[place : place + 2] == _SCAN:
            return True
        if content[place : place + 2] not in _PLAIN_SEGMENTS:
            return False
        place += 2 + int.from_bytes(content[place + 2 : place + 4])
    return False


class Decoders:
    """Processes that decode pictures; they start when they are needed, and may be asked from several threads.

    Args:
        processes: at most; who comes when all are busy waits.
    """

    def __init__(self, processes: int = PROCESSES) -> None:
        self._free: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(processes):
            self._free.put(None)
        atexit.register(self.close)

    def size(self, content: bytes, *, name: str, formats: tuple[str, ...] = FORMATS) -> tuple[int, int]:
        """Return the width and height that a picture declares.

        Raises:
            MediaError: it is none, or telling takes too long or too much memory.
        """
        said, _ = self._ask(content, HEADER_SECONDS, 0, name=name, formats=formats, open=False)
        width, height = said["size"]
        return width, height

    def open(
        self,
        content: bytes,
        *,
        name: str,
        pixels: int,
        limit: int = MAX_PIXELS,
        formats: tuple[str, ...] = FORMATS,
    ) -> Image:
        """Open a picture as `media.open_image` does.

        Args:
            content: of the file.
            name: what messages call it.
            pixels: that it declares.
            limit: of its pixels.
            formats: names of the formats that are tried.

        Raises:
            MediaError: as there; or decoding takes too long or too much memory.
        """
        from PIL import Image

        if content.startswith(_JPEG) and (scans := content.count(_SCAN)) > MAX_SCANS:
            raise MediaError(f"{name}: a JPEG of {scans} scans; the limit is {MAX_SCANS}: save it anew")
        pixels = min(pixels, limit)
        seconds = SECONDS + SECONDS_A_MEGAPIXEL * pixels / 1e6
        said, rgb = self._ask(content, seconds, pixels, name=name, formats=formats, open=True, limit=limit)
        return Image.frombytes("RGB", tuple(said["size"]), rgb)

    def close(self) -> None:
        """End the processes that are idle; those that work end with their work."""
        idle = []
        with suppress(Empty):
            while True:
                idle.append(self._free.get_nowait())
        for process in idle:
            if process is not None:
                process.end()
            self._free.put(None)

    def _ask(self, content: bytes, seconds: float, pixels: int, **job: Any) -> tuple[Mapping[str, Any], bytes]:
        with self._process() as process:
            said, rgb = process.ask({**job, "seconds": seconds, "pixels": pixels}, content)
        if "error" in said:
            raise MediaError(said["error"])
        return said, rgb

    @contextmanager
    def _process(self) -> Iterator[_Process]:
        process = self._free.get()
        try:
            if process is None or not process.alive:
                process = _Process()
            yield process
        finally:
            self._free.put(process)


class _Process:
    """A process that decodes one picture at a time."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        root = str(Path(__file__).parents[1])
        # -P: what lies in the working folder is not imported. A process of its own group is not ended by Ctrl-C.
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "unifiedreward_think.decoding_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
                "OPENBLAS_NUM_THREADS": "1",  # each thread would take a part of the memory
            },
        )
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._child.poll() is None

    def ask(self, job: Mapping[str, Any], content: bytes) -> tuple[Mapping[str, Any], bytes]:
        """Return what it says of a picture, and the RGB pixels.

        Raises:
            MediaError: it ended, or had to be ended, before it answered.
        """
        try:
            self._pipe.send_bytes(json.dumps(job).encode())
            self._pipe.send_bytes(content)
            if not self._pipe.poll(job["seconds"] + PATIENCE):
                raise EOFError
            return json.loads(self._pipe.recv_bytes()), self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            code = self.end()
            if code >= 0:
                raise RuntimeError(f"the process that decodes pictures ended with {code}; it says why above") from error
            slow = -code in (signal.SIGPROF, signal.SIGKILL)
            why = f"takes more than {job['seconds']:.1f} s" if slow else f"ends with {signal.Signals(-code).name}"
            raise MediaError(f"{job['name']}: decoding it {why}; save it anew, as PNG") from error

    def end(self) -> int:
        """End it, and return its exit code."""
        self._pipe.close()
        if self._child.poll() is None:
            self._child.kill()
        return self._child.wait()


DECODERS = Decoders()


def open_bounded(file: Path | str) -> Image:
    """Open an image file that somebody else has made, as `media.open_image` does.

    Raises:
        MediaError: as there; or decoding takes too long or too much memory.
    """
    if not Path(file).is_file():
        return open_image(file)  # says what is wrong
    content, name = Path(file).read_bytes(), str(file)
    width, height = DECODERS.size(content, name=name)
    return DECODERS.open(content, name=name, pixels=width * height)
