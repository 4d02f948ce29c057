"""Pictures and videos as parts of messages to a server: PNG, so that it sees the very pixels a local model would.

>>> from PIL import Image
>>> image_part(Image.new("RGB", (1, 1)))["image_url"]["url"][:30]
'data:image/png;base64,iVBORw0K'
"""

from __future__ import annotations

import base64
import io
import mimetypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from unifiedreward_think.backends import Video

if TYPE_CHECKING:
    from PIL.Image import Image


def data_url(image: Image) -> str:
    """Return a picture as PNG in a data URL: no pixel changes on the way."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def once_each(prompts: Sequence[Mapping[str, Any]]) -> Callable[[Image], dict[str, Any]]:
    """Return what shows a picture to the server, encoding each only once while prompts of a batch still need it.

    The pairs of a group share their candidates: 8 pictures in both orders are shown 112 times.
    """
    left = Counter(id(image) for prompt in prompts for image in prompt["images"])
    locks = {key: Lock() for key in left}  # prompts are made in several threads
    encoded: dict[int, dict[str, Any]] = {}

    def show(image: Image) -> dict[str, Any]:
        key = id(image)  # the prompts keep it alive
        with locks[key]:
            part = encoded.pop(key, None) or image_part(image)
            left[key] -= 1
            if left[key]:
                encoded[key] = part
        return part

    return show


def image_part(image: Image) -> dict[str, Any]:
    """Return a picture as a part of a message."""
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def video_part(video: Video) -> dict[str, Any]:
    """Return a video's file, as it is, as a part of a message."""
    kind = mimetypes.guess_type(video.clip.video.absolute())[0] or "video/mp4"  # a relative one may look like a URL
    data = base64.b64encode(video.clip.video.read_bytes()).decode()
    return {"type": "video_url", "video_url": {"url": f"data:{kind};base64,{data}"}}


def frames_asked(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the field of vLLM that says how many frames of each video to sample; nothing without videos."""
    counts = [len(video.clip.indices) for video in prompt.get("videos", ())]
    return {"media_io_kwargs": {"video": {"num_frames": max(counts)}}} if counts else {}
