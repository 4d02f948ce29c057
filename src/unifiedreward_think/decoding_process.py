"""The process that decodes pictures for `bounded`: it ends at a limit of CPU time, and has a limit of memory.

`bounded` starts it, with the number of a pipe. It is asked, and answers, by two messages each on that pipe: JSON, then
the bytes of the picture or its RGB pixels.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from unifiedreward_think.errors import MediaError
from unifiedreward_think.media import open_image
from unifiedreward_think.pixels import declared_size

MEMORY, MEMORY_A_PIXEL = 2**30, 32  # bytes of addresses: Python, Pillow and numpy; copies of the deepest modes


def main() -> None:
    """Answer until the pipe is closed."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, also within Pillow
    pipe = Connection(int(sys.argv[1]))
    while True:
        try:
            job, content = json.loads(pipe.recv_bytes()), pipe.recv_bytes()
        except EOFError:
            return
        _limit(job)
        said, pixels = _decoded(job, content)
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send_bytes(json.dumps(said).encode())
        pipe.send_bytes(pixels)


def _limit(job: Mapping[str, Any]) -> None:
    if sys.platform == "linux":  # macOS keeps no such limit
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY + MEMORY_A_PIXEL * job["pixels"], most))
    signal.setitimer(signal.ITIMER_PROF, job["seconds"])


def _decoded(job: Mapping[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the size and the pixels of a picture, or what is wrong with it."""
    name, formats = job["name"], tuple(job["formats"])
    try:
        if not job["open"]:
            return {"size": declared_size(io.BytesIO(content), name, formats)}, b""
        image = open_image(io.BytesIO(content), name=name, limit=job["limit"], formats=formats)
        return {"size": image.size}, image.tobytes()
    except MediaError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"error": f"{name}: decoding it takes too much memory; save it anew, as PNG"}, b""


if __name__ == "__main__":
    main()
