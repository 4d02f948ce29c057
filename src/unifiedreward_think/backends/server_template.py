"""What a server's chat template writes of the answer by itself, and whether its tokenizer hides tags of the answer.

vLLM's route `/tokenize` shows the end of a prompt. Where a tag is a single token, the server is made to write it: is it
seen? Servers without the route, or whose reply names no tokens, are taken to show what the model wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from unifiedreward_think.backends import BackendError
from unifiedreward_think.backends.placement import tokenized
from unifiedreward_think.blocks import TAGS
from unifiedreward_think.models.chat_template import SWITCH, USER, thinking
from unifiedreward_think.terminal import note

BYTES = str.maketrans("\u010a\u0120", "\n ")  # how byte-level tokenizers write line breaks and blanks
QUOTED = 300  # characters of the warning
CONTROL = r"<\|[\w.-]+\|>"  # what else shows where special tokens do


class Served(NamedTuple):
    """How a server's template and tokenizer treat answers.

    Attributes:
        opening: what completions begin with: the think block that prompts leave open.
        options: fields of every request.
        settings: what judgments say of it.
    """

    opening: str = ""
    options: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}

    def shown(self, text: str) -> str:
        """Return a text of the server without the special tokens that it was asked to show.

        >>> Served(options={"skip_special_tokens": False}).shown("</answer><|im_end|>")
        '</answer>'
        """
        return re.sub(CONTROL, "", text) if "skip_special_tokens" in self.options else text


AS_WRITTEN = Served()


def served(client: Any, model: str, wanted: bool) -> Served:
    """Ask a server that has the route; a template's switch lets the model think where that is wanted."""
    import openai

    turn = {"role": "user", "content": [{"type": "text", "text": "".join(TAGS["cot"])}]}
    try:
        on, off = (
            tokenized(client, model, [turn], return_token_strs=True, chat_template_kwargs={SWITCH: value})
            for value in (True, False)
        )
        names, others = (reply.get("token_strs") or [] for reply in (on, off))
        how = thinking("".join(names).translate(BYTES), "".join(others).translate(BYTES), wanted)
        numbers = dict(zip(names, on["tokens"], strict=False))
        hidden = any(_is_hidden(client, model, numbers[tag]) for tag in TAGS["cot"] if tag in numbers)
    except (openai.APIError, ValueError, LookupError, TypeError) as error:
        where = f"{client.base_url}: the server does not tell what its chat template writes of answers"
        note(f"{where} ({error})"[:QUOTED])
        return AS_WRITTEN
    options: dict[str, Any] = {"chat_template_kwargs": dict(how.options)} if how.options else {}
    return Served(how.opening, {**options, **({"skip_special_tokens": False} if hidden else {})}, how.settings)


def agreed(templates: Mapping[str, Served]) -> Served:
    """Return how all of several servers treat answers, by their addresses.

    Raises:
        BackendError: they do not treat them alike, so that the same prompt would be answered differently.
    """
    first, *others = templates
    for other in others:
        if templates[other] != templates[first]:
            raise BackendError(
                f"{first} and {other} have different chat templates or tokenizers; serve the same of both"
            )
    return templates[first]


def _is_hidden(client: Any, model: str, token: int) -> bool:
    """Whether nothing is seen of a token that is the only one allowed."""
    reply = client.chat.completions.create(
        model=model, messages=[USER], max_tokens=1, temperature=0, extra_body={"allowed_token_ids": [token]}
    )
    return not reply.choices[0].message.content
