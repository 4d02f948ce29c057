r"""The body of a request: its strings are text.

JSON can spell half of a surrogate pair, "\ud800", which no tokenizer takes and no reply could quote.

>>> list(_no_text({"messages": [{"content": "a\ud800b"}], "user": "an emoji: \U0001f600"}, ""))
['messages[0].content']
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, model_validator
from pydantic_core import PydanticCustomError

_SURROGATE = re.compile("[\ud800-\udfff]")


class Body(BaseModel):
    """A body that is refused where a string of it, or a key, is no text."""

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        if where := next(_no_text(value, ""), ""):
            raise PydanticCustomError("no_text", "{where}: half of a surrogate pair is no text", {"where": where})
        return value


def _no_text(value: Any, where: str) -> Iterator[str]:
    """Yield where strings of a JSON value are no text."""
    if isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
        yield where or "the body"
    for key, inner in value.items() if isinstance(value, dict) else ():
        if _SURROGATE.search(key):
            yield f"a key of {where or 'the body'}"
        yield from _no_text(inner, f"{where}.{key[:50]}".lstrip("."))
    for number, inner in enumerate(value) if isinstance(value, list) else ():
        yield from _no_text(inner, f"{where}[{number}]")
