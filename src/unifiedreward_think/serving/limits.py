"""What a request may ask for, and how one that asks for more is refused: with a 4xx and the reason, never a guess.

>>> check_json(b'{"prompt": "brackets [[[[ in a string do not count"}', Limits())
>>> check_json(b"[" * 40, Limits())
Traceback (most recent call last):
...
unifiedreward_think.serving.limits.Refused: JSON nested deeper than 16 levels
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

from unifiedreward_think.errors import InputError
from unifiedreward_think.pixels import MAX_ASPECT

# A whole string, or one that never ends: then to the end of the text. Possessive, so it takes linear time.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_STEP = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a server; the defaults fit 8 candidates of 8 frames, or 32 pictures of 1024x1024.

    Attributes:
        body_bytes: of one request.
        flying_bytes: of all request bodies held at once; over it, 429.
        json_depth: levels of nesting.
        json_skeleton: bytes of a body outside its strings: media are strings, so little else is needed.
        medium_bytes: of one encoded picture or frame.
        pixels: of one picture or frame.
        request_pixels: of all pictures of one request.
        flying_pixels: of the pictures of all requests at once; over it, 429.
        aspect: long side over short side; processors of the Qwen family fail over 200.
        frames: of one video; more are thinned to what the model is shown, up to this many are taken.
        media: that one question is about; each is a picture or a video.
        candidates: of one ranking, or of one request for scores.
        scores: of one request, candidates x samples.
        prompt_chars: of a caption, a question or an answer.
        chat_images: pictures in one chat.
        max_tokens: of one answer that a chat may ask for.
        chat_tokens: of all answers of one chat.
        deadline: seconds a request may ask for, and gets when it asks for none.
    """

    body_bytes: int = 128 * 2**20
    flying_bytes: int = 2**30
    json_depth: int = 16
    json_skeleton: int = 256 * 2**10
    medium_bytes: int = 16 * 2**20
    pixels: int = 16 * 2**20
    request_pixels: int = 64 * 2**20
    flying_pixels: int = 512 * 2**20
    aspect: int = MAX_ASPECT
    frames: int = 64
    media: int = 16
    candidates: int = 32
    scores: int = 256
    prompt_chars: int = 32_768
    chat_images: int = 32
    max_tokens: int = 8192
    chat_tokens: int = 32_768
    deadline: float = 600.0


class Refused(InputError):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        retry_after: seconds after which to try again, for a 429.
    """

    def __init__(self, message: str, *, status: int = 422, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Budget:
    """Something that all requests share, such as memory: who asks for more than is left is told to come back.

    >>> budget = Budget(10, "bytes")
    >>> with budget.share() as take:
    ...     take(8)
    ...     with budget.share() as more:
    ...         more(8)
    Traceback (most recent call last):
    ...
    unifiedreward_think.serving.limits.Refused: the server holds as many bytes as it may; try again
    >>> budget.held
    0
    """

    def __init__(self, limit: int, unit: str) -> None:
        self.limit = limit
        self.unit = unit
        self.held = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Yield what takes an amount; all of it is given back at the end, or when the work that keeps it has ended."""
        share = Share(self)
        release = share.keep()
        try:
            yield share
        finally:
            release()


class Share:
    """What one request has taken of a budget.

    >>> budget = Budget(10, "bytes")
    >>> with budget.share() as take:
    ...     take(8)
    ...     end = take.keep()  # of work that may outlive the request
    >>> budget.held
    8
    >>> end()
    >>> budget.held
    0
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._keepers = 0
        self.taken = 0

    def keep(self) -> Callable[[], None]:
        """Hold what is taken until the function that is returned is called; the last one gives it back."""
        self._keepers += 1
        return self._release

    def _release(self) -> None:
        self._keepers -= 1
        if not self._keepers:
            self._budget.held -= self.taken

    def __call__(self, amount: int) -> None:
        """Take an amount, or raise Refused with 429."""
        if self._budget.held + amount > self._budget.limit:
            raise Refused(
                f"the server holds as many {self._budget.unit} as it may; try again", status=429, retry_after=1
            )
        self._budget.held += amount
        self.taken += amount


def check_json(body: bytes, limits: Limits) -> None:
    """Refuse a body that would be costly to parse: nested deeply, or of very many values.

    What is checked must be what is parsed, and the parser would take UTF-16 and UTF-32, too: there a character of a
    string may have the byte of a quote.

    >>> check_json('{"prompt": "a kite"}'.encode("utf-16"), Limits())
    Traceback (most recent call last):
    ...
    unifiedreward_think.serving.limits.Refused: JSON in utf-16; send it in UTF-8

    Raises:
        Refused: with status 400.
    """
    if not (encoding := json.detect_encoding(body)).startswith("utf-8"):  # "utf-8-sig" has a mark, and the same bytes
        raise Refused(f"JSON in {encoding}; send it in UTF-8", status=400)
    skeleton = bytearray()
    end = 0
    for string in _STRING.finditer(body):  # piece by piece: millions of short strings must not be looked at for long
        skeleton += body[end : string.start()]
        skeleton += b"0"
        end = string.end()
        if len(skeleton) > limits.json_skeleton:
            break
    skeleton += body[end : end + limits.json_skeleton + 1]
    if len(skeleton) > limits.json_skeleton:
        raise Refused(f"more than {limits.json_skeleton} bytes of JSON besides the strings", status=400)
    depths = accumulate(_STEP.get(byte, 0) for byte in skeleton)
    if any(depth > limits.json_depth for depth in depths):
        raise Refused(f"JSON nested deeper than {limits.json_depth} levels", status=400)
