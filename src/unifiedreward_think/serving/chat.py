"""OpenAI chat completions, for clients with a prompt and a parser of their own, such as Pref-GRPO's and Flow-GRPO's."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import astuple
from typing import Literal

from unifiedreward_think.backends import Completion, Failure
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.plain_text import as_text
from unifiedreward_think.records import digest
from unifiedreward_think.serving.batching import Batcher
from unifiedreward_think.serving.chat_schemas import ChatMessage, ChatReply, ChatRequest, Choice, ImagePart, Usage
from unifiedreward_think.serving.intake import Intake, Picture, RequestMedia, opening
from unifiedreward_think.serving.jobs import Answer, Question
from unifiedreward_think.serving.limits import Limits, Refused
from unifiedreward_think.serving.parameters import check_parameters, check_parts
from unifiedreward_think.serving.questions import Settings


async def answer_chat(body: ChatRequest, batcher: Batcher, intake: Intake, settings: Settings) -> ChatReply:
    """Answer a chat completion, sampled as it says, or else as every judgment is.

    Raises:
        InputError: it cannot be answered.
    """
    sampling, limit = _sampling(body, settings), settings.limits.chat_tokens
    if (tokens := (body.n or 1) * sampling.max_new_tokens) > limit:
        raise Refused(f"n x max_tokens: {tokens}; the limit is {limit}", status=400)
    with intake.request() as media:
        until = time.monotonic() + settings.limits.deadline
        async with opening(until):
            turns, pictures = await _turns(body, media, settings.limits)
        about = [json.dumps(turns), *(picture.sha256 for picture in pictures), *map(str, astuple(sampling))]
        name = f"chat {digest(*about):016x}"
        row = {"id": name, "order": "ab", "prompt": turns, "images": [picture.image for picture in pictures]}
        questions = []
        for i in range(body.n or 1):
            # A drawn answer without a seed is another one each time; all others can be told again.
            seed = digest(sampling.seed, i) if body.seed is not None or not sampling.temperature else None
            drawn = secrets.randbits(63) if seed is None else seed
            questions.append(Question(key=digest("chat", drawn, *about), row=row, sampling=sampling, seed=drawn))
        left = max(0.0, until - time.monotonic())
        answers = await batcher.ask(questions, seconds=left, held=media.held)
    choices = []
    for i, answer in enumerate(answers):
        if isinstance(answer, Failure):
            raise Refused(answer.reason, status=422 if answer.refused else 502)
        reason: Literal["stop", "length"] = "length" if answer.finish_reason == "length" else "stop"
        choices.append(Choice(index=i, message=ChatMessage(content=answer.text), finish_reason=reason))
    return ChatReply(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        created=int(time.time()),
        model=body.model,
        choices=choices,
        usage=_usage(answers),
    )


def _usage(answers: Sequence[Answer]) -> Usage | None:
    """Return the tokens of a chat, whose prompt is read once; None where the backend does not count them."""
    tokens = [answer.tokens for answer in answers if isinstance(answer, Completion) and answer.tokens is not None]
    if len(tokens) < len(answers):
        return None
    prompt, completion = tokens[0].prompt, sum(each.completion for each in tokens)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def events(reply: ChatReply, *, usage: bool) -> str:
    """Return a chat completion as the events of a stream: each choice whole, since its batch writes them together.

    With `usage` the last one has no choice, and says what was used, as OpenAI's does.
    """
    shared = {"id": reply.id, "object": "chat.completion.chunk", "created": reply.created, "model": reply.model}
    chunks = []
    for choice in reply.choices:
        chunks += [
            {"index": choice.index, "delta": choice.message.model_dump(), "finish_reason": None},
            {"index": choice.index, "delta": {}, "finish_reason": choice.finish_reason},
        ]
    lines = [json.dumps({**shared, "choices": [chunk]}) for chunk in chunks]
    if usage:
        used = None if reply.usage is None else reply.usage.model_dump()
        lines.append(json.dumps({**shared, "choices": [], "usage": used}))
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])


def _sampling(body: ChatRequest, settings: Settings) -> Sampling:
    if body.model not in settings.names:
        raise Refused(f"model {body.model[:100]!r} is not served here; use {settings.names[0]!r}", status=404)
    _check_extras(body)
    default, limit = settings.judging.sampling, settings.limits.max_tokens
    tokens = body.max_completion_tokens or body.max_tokens or default.max_new_tokens
    if tokens > limit:
        raise Refused(f"max_tokens: {tokens}; the limit is {limit}", status=400)
    temperature = default.temperature if body.temperature is None else body.temperature
    if body.do_sample and not temperature:
        raise Refused("do_sample: true draws answers; name a temperature above 0, too", status=400)
    return Sampling(
        temperature=0.0 if body.do_sample is False else temperature,
        top_p=body.top_p or default.top_p,
        max_new_tokens=tokens,
        seed=default.seed if body.seed is None else body.seed,
    )


def _check_extras(body: ChatRequest) -> None:
    """Refuse what stands in a chat and changes its answer, unless it is honoured."""
    check_parameters(body.model_extra or {})
    if body.stream_options is not None:
        check_parts("stream_options", body.stream_options.model_extra or {})
    for i, turn in enumerate(body.messages):
        check_parts(f"messages[{i}]", turn.model_extra or {})
        for k, part in enumerate(turn.content if isinstance(turn.content, list) else []):
            where = f"messages[{i}].content[{k}]"
            check_parts(where, part.model_extra or {})
            if isinstance(part, ImagePart):
                check_parts(f"{where}.image_url", part.image_url.model_extra or {})


async def _turns(
    body: ChatRequest, media: RequestMedia, limits: Limits
) -> tuple[list[dict[str, object]], list[Picture]]:
    pictures: list[Picture] = []
    turns: list[dict[str, object]] = []
    chars = 0
    for i, turn in enumerate(body.messages):
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
                content.append({"type": "text", "text": as_text(text)})
        turns.append({"role": turn.role, "content": content})
    if chars > limits.prompt_chars:
        raise Refused(f"messages: over {limits.prompt_chars} characters", status=413)
    return turns, pictures
