"""What travels over HTTP in chats: OpenAI chat completions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field

from unifiedreward_think.serving.body import Body


class _Chat(BaseModel):
    """A part of a chat: what is not listed is read, and refused where it would change the answer (`parameters`)."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class TextPart(_Chat):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageAddress(_Chat):
    """Where a picture is."""

    url: str


class ImagePart(_Chat):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageAddress


class Turn(_Chat):
    """A message."""

    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[Annotated[TextPart | ImagePart, Discriminator("type")]], Field(min_length=1)]


class StreamOptions(_Chat):
    """Of a stream."""

    include_usage: bool | None = Field(default=None, description="the last event says how many tokens were used")


class ChatRequest(Body, _Chat):
    """An OpenAI chat completion. What is not listed is refused if it would change the answer."""

    model: str
    messages: list[Turn] = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    n: int | None = Field(default=None, ge=1, le=16)
    do_sample: bool | None = Field(default=None, description="false asks for greedy decoding, as some clients do")
    stream: bool | None = Field(default=None, description="answer by events, each choice whole, as batches are shared")
    stream_options: StreamOptions | None = None


class ChatMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """One completion."""

    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatReply(BaseModel):
    """An OpenAI chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = Field(description="null where the backend does not count tokens")
