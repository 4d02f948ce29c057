"""Whether a server shows a prompt to its model as it was trained: pictures where they stand among the text.

Where vLLM takes the content of a message for one string it moves all pictures in front of the text and joins the parts
by line breaks; no completion tells. Its route `/tokenize`, which takes chats with pictures, does. Equal letters are
equal tokens; the last column is as the model was trained (LLaVA-OneVision's own template):

    parts of a chat           parts in order    one string    a template that moves pictures
    One, picture, Two         A                 C             E
    picture, One, Two         B                 C             E
    picture, OneTwo           B                 D             E
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unifiedreward_think.backends import BackendError
from unifiedreward_think.terminal import note

PLACEMENT = "placement"  # key of a judgment's settings, only where the check was not possible
QUOTED = 200  # characters of a server's reply in the warning
Part = Mapping[str, Any]


def placement_settings(client: Any, model: str, show: Callable[[Any], Part]) -> dict[str, str]:
    """Check where a server puts pictures; return what its judgments' settings say of it where that cannot be told.

    Args:
        client: of the OpenAI SDK.
        model: what the server calls the model.
        show: makes a part of a message from a picture.

    Raises:
        BackendError: the server moves pictures in front of the text.
    """
    import openai
    from PIL import Image

    picture = show(Image.new("RGB", (64, 64)))
    one, two, both = ({"type": "text", "text": text} for text in ("One", "Two", "OneTwo"))
    try:
        in_front = _tokens(client, model, [picture, one, two])
        moved = _tokens(client, model, [one, picture, two]) == in_front
        moved = moved and _tokens(client, model, [picture, both]) != in_front
    except openai.APIStatusError as error:
        reason = f"it answers {error.status_code}: {error.response.text}"
    except openai.APIConnectionError as error:
        reason = str(error)
    except (ValueError, LookupError, TypeError) as error:
        reason = f"no tokens in its reply ({type(error).__name__})"
    else:
        if not moved:
            return {}
        raise BackendError(
            f"{client.base_url}: the server moves all pictures in front of the text, which no judge was trained on; "
            "start vLLM with --chat-template-content-format openai"
        )
    where = f"{client.base_url}: /tokenize does not tell whether pictures stand where prompts put them, nor what the"
    note(f"{where} chat template writes of answers: {reason[:QUOTED]}")
    return {PLACEMENT: "unverified"}


def _tokens(client: Any, model: str, content: Sequence[Part]) -> list[int]:
    tokens: list[int] = tokenized(client, model, [{"role": "user", "content": content}])["tokens"]
    return tokens


def tokenized(client: Any, model: str, messages: Sequence[Part], **options: Any) -> dict[str, Any]:
    """Return what `/tokenize` says of a chat, its `tokens` among it; the route stands beside the API's /v1.

    Raises:
        TypeError: the reply holds no tokens; or another error of a body that is not what it should be.
    """
    address = str(client.base_url).rstrip("/").removesuffix("/v1") + "/tokenize"
    reply: dict[str, Any] = client.post(address, cast_to=object, body={"model": model, "messages": messages, **options})
    if not reply["tokens"] or not all(isinstance(token, int) for token in reply["tokens"]):
        raise TypeError("no tokens")
    return reply
