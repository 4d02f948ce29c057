"""OpenAI chat completions, for clients with a prompt and a parser of their own, such as Pref-GRPO's and Flow-GRPO's."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import astuple
from typing import Literal

from unifiedreward_think.backends import Failure
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.records import digest
from unifiedreward_think.serving.batching import Batcher, Question
from unifiedreward_think.serving.intake import Intake, Picture, RequestMedia, opening
from unifiedreward_think.serving.limits import Limits, Refused
from unifiedreward_think.serving.questions import Settings
from unifiedreward_think.serving.schemas import ChatMessage, ChatReply, ChatRequest, Choice, ImagePart

# Parameters of a chat that change nothing here; others are refused, unless their value says "off".
_IGNORED = {"user", "metadata", "store", "safety_identifier", "stream_options"}
_OFF = {"repetition_penalty": 1, "top_k": -1, "min_p": 0}


async def answer_chat(asked: ChatRequest, batcher: Batcher, intake: Intake, settings: Settings) -> ChatReply:
    """Answer a chat completion, sampled as it says, or else as every judgment is.

    Raises:
        InputError: it cannot be answered.
    """
    sampling = _sampling(asked, settings)
    with intake.request() as media:
        until = time.monotonic() + settings.limits.deadline
        async with opening(until):
            turns, pictures = await _turns(asked, media, settings.limits)
        about = [json.dumps(turns), *(picture.sha256 for picture in pictures), *map(str, astuple(sampling))]
        row = {"id": "chat", "order": "ab", "prompt": turns, "images": [picture.image for picture in pictures]}
        questions = []
        for i in range(asked.n or 1):
            # A drawn answer without a seed is another one each time; all others can be told again.
            seed = digest(sampling.seed, i) if asked.seed is not None or not sampling.temperature else None
            drawn = secrets.randbits(63) if seed is None else seed
            questions.append(Question(key=digest("chat", drawn, *about), row=row, sampling=sampling, seed=drawn))
        answers = await batcher.ask(questions, seconds=max(0.0, until - time.monotonic()))
    choices = []
    for i, answer in enumerate(answers):
        if isinstance(answer, Failure):
            raise Refused(answer.reason, status=502)
        reason: Literal["stop", "length"] = "length" if answer.finish_reason == "length" else "stop"
        choices.append(Choice(index=i, message=ChatMessage(content=answer.text), finish_reason=reason))
    created = int(time.time())
    return ChatReply(id=f"chatcmpl-{secrets.token_hex(12)}", created=created, model=asked.model, choices=choices)


def events(reply: ChatReply) -> str:
    """Return a chat completion as the events of a stream: each choice whole, since its batch writes them together."""
    shared = {"id": reply.id, "object": "chat.completion.chunk", "created": reply.created, "model": reply.model}
    chunks = []
    for choice in reply.choices:
        chunks += [
            {"index": choice.index, "delta": choice.message.model_dump(), "finish_reason": None},
            {"index": choice.index, "delta": {}, "finish_reason": choice.finish_reason},
        ]
    lines = [json.dumps({**shared, "choices": [chunk]}) for chunk in chunks]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])


def _sampling(asked: ChatRequest, settings: Settings) -> Sampling:
    if asked.model not in settings.names:
        raise Refused(f"model {asked.model!r} is not served here; use {settings.names[0]!r}", status=404)
    for name, value in (asked.model_extra or {}).items():
        if value and name not in _IGNORED and _OFF.get(name) != value:
            raise Refused(f"{name}: this server does not know it; leave it out", status=400)
    own, limit = settings.sampling, settings.limits.max_tokens
    tokens = asked.max_completion_tokens or asked.max_tokens or own.max_new_tokens
    if tokens > limit:
        raise Refused(f"max_tokens: {tokens}; the limit is {limit}", status=400)
    temperature = own.temperature if asked.temperature is None else asked.temperature
    return Sampling(
        temperature=0.0 if asked.do_sample is False else temperature,
        top_p=asked.top_p or own.top_p,
        max_new_tokens=tokens,
        seed=own.seed if asked.seed is None else asked.seed,
    )


async def _turns(
    asked: ChatRequest, media: RequestMedia, limits: Limits
) -> tuple[list[dict[str, object]], list[Picture]]:
    pictures: list[Picture] = []
    turns: list[dict[str, object]] = []
    chars = 0
    for i, turn in enumerate(asked.messages):
        content: list[dict[str, str | None]] = []
        for k, part in enumerate([turn.content] if isinstance(turn.content, str) else turn.content):
            if isinstance(part, ImagePart):
                if len(pictures) == limits.chat_images:
                    raise Refused(f"more than {limits.chat_images} pictures", status=413)
                pictures.append(await media.picture(part.image_url.url, f"messages[{i}].content[{k}]"))
                content.append({"type": "image", "text": None})
            else:
                text = part if isinstance(part, str) else part.text
                chars += len(text)
                content.append({"type": "text", "text": text})
        turns.append({"role": turn.role, "content": content})
    if chars > limits.prompt_chars:
        raise Refused(f"messages: over {limits.prompt_chars} characters", status=413)
    return turns, pictures
