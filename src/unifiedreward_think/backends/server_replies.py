"""What the reply of an OpenAI-compatible server says, whole or piece by piece.

>>> read_reply('{"choices": [{"message": {"content": "<answer>"}, "finish_reason": "length"}]}')
Completion(text='<answer>', finish_reason='length', seconds=None, tokens=None, numbers=())
>>> read_reply('{"choices": []}').reason
'the reply is no chat completion (IndexError): {"choices": []}'
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from unifiedreward_think.backends import Completion, Failure, Numbers, Tokens, end_at_tag
from unifiedreward_think.backends.numbers import Spoken, masses_from_top
from unifiedreward_think.backends.server_template import AS_WRITTEN, Served
from unifiedreward_think.blocks import STOP_STRING

QUOTED = 300  # characters of a reply in an error


def read_reply(body: str, template: Served = AS_WRITTEN, numbers: Numbers | None = None) -> Completion | Failure:
    """Read the body of a chat completion; a body that is none is a failure that quotes it.

    Where `numbers` says where a completion has numbers, it brings how probable the allowed ones were.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message, reason = choice["message"], choice["finish_reason"]
        text, thoughts = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Failure(f"the reply is no chat completion ({type(error).__name__}): {body[:QUOTED]}")
    shown = template.opening + template.shown(text) if isinstance(text, str) else text
    completion = _completion(shown, thoughts, reason, read_usage(reply))
    if numbers is None or isinstance(completion, Failure):
        return completion
    spoken = [Spoken(template.opening, {})] * bool(template.opening) + spoken_of(choice)
    return completion._replace(
        numbers=tuple((place, masses_from_top(place, spoken)) for place in numbers(completion.text))
    )


def spoken_of(choice: Any) -> list[Spoken]:
    """Return the tokens of a choice with their top tokens; nothing where the server tells none.

    >>> top = [{"token": "8", "logprob": -0.5}, {"token": "9", "logprob": -1.2}]
    >>> spoken = spoken_of({"logprobs": {"content": [{"token": "8", "logprob": -0.5, "top_logprobs": top}]}})
    >>> spoken[0].text, sorted(spoken[0].top)
    ('8', ['8', '9'])
    """
    try:
        tokens = [
            (_told(one), [_told(other) for other in one["top_logprobs"]]) for one in choice["logprobs"]["content"]
        ]
    except (LookupError, TypeError, ValueError):
        return []
    return [Spoken(text, {**dict(top), text: chance}) for (text, chance), top in tokens]


def _told(token: Any) -> tuple[str, float]:
    return str(token["token"]), math.exp(float(token["logprob"]))


def read_usage(reply: Any) -> Tokens | None:
    """Return the tokens that a reply says it used, None where it does not say.

    >>> read_usage({"usage": {"prompt_tokens": 9, "completion_tokens": 2}}), read_usage({"usage": None}), read_usage([])
    (Tokens(prompt=9, completion=2), None, None)
    """
    try:
        return Tokens(*(int(reply["usage"][key]) for key in ("prompt_tokens", "completion_tokens")))
    except (ValueError, TypeError, LookupError):
        return None


def _completion(text: Any, thoughts: Any, reason: Any, tokens: Tokens | None = None) -> Completion | Failure:
    if thoughts:
        return Failure("the server splits the chain of thought off; start it without a reasoning parser")
    if not isinstance(text, str) or reason not in ("stop", "length"):
        return Failure(f"the server returned no text (finish reason {reason!r})")
    return end_at_tag(text, reason, tokens)


def listen(chunks: Iterable[Any], on_text: Callable[[str], object], template: Served) -> Completion | Failure:
    """Read the pieces of a streamed chat completion, up to the closing answer tag."""
    text, thoughts, reason = template.opening, "", None
    if text:
        on_text(text)
    for chunk in chunks:
        for choice in chunk.choices:  # the last chunk of some servers has none
            delta = choice.delta.to_dict()
            thoughts += delta.get("reasoning_content") or delta.get("reasoning") or ""
            before, text = text, end_at_tag(text + template.shown(delta.get("content") or ""), "").text
            reason = choice.finish_reason or reason
            if len(text) > len(before):
                on_text(text[len(before) :])
        if text.endswith(STOP_STRING):
            return _completion(text, thoughts, "stop")
    return _completion(text, thoughts, reason)
