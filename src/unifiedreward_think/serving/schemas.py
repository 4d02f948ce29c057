"""What travels over HTTP: requests and replies. Candidates are named by their place in the request's list, from 0."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from unifiedreward_think.serving.body import Body

Status = Literal["ok", "unparsed", "truncated", "error"]
TaskName = Literal["image_generation", "video_generation", "image_understanding", "video_understanding"]
Index = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    """A request: an unknown key is an error, and "1" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImageItem(_Strict):
    """A picture."""

    image: str = Field(description="data:image/png;base64,... or an https address of an allowed host", min_length=1)


class VideoItem(_Strict):
    """A video."""

    frames: list[str] = Field(description="its frames in order, each like `image`", min_length=1)


class TextItem(_Strict):
    """An answer to a question."""

    text: str


def _kind(item: Any) -> str | None:
    """Return which kind of item it is, so that a message speaks of that kind only."""
    held = item if isinstance(item, dict) else getattr(item, "__dict__", {})
    return next((name for name in ("image", "frames", "text") if name in held), None)


_ONE_OF = Discriminator(
    _kind, custom_error_type="item", custom_error_message="expected an object with 'image', 'frames' or 'text'"
)
Medium = Annotated[Annotated[ImageItem, Tag("image")] | Annotated[VideoItem, Tag("frames")], _ONE_OF]
Candidate = Annotated[
    Annotated[ImageItem, Tag("image")] | Annotated[VideoItem, Tag("frames")] | Annotated[TextItem, Tag("text")],
    _ONE_OF,
]


class _Asked(Body, _Strict):
    """What compare and rank share."""

    task: TaskName
    prompt: str = Field(description="the caption (generation) or the question (understanding)")
    media: list[Medium] = Field(default=[], description="understanding: what the question is about")
    orders: Literal["one", "both"] = Field(
        default="one", description="each pair once, or in both orders: twice the cost"
    )
    reasoning: bool = Field(default=False, description="return what the judge wrote, too")
    deadline: float | None = Field(default=None, gt=0, description="seconds for the whole request")


class CompareRequest(_Asked):
    """A pair: pictures, videos, or answers to a question about `media`."""

    candidates: list[Candidate] = Field(min_length=2, max_length=2)


class RankRequest(_Asked):
    """A group of candidates for one prompt."""

    candidates: list[Candidate] = Field(min_length=2)
    schedule: Literal["round_robin", "k_opponents", "swiss"] = "round_robin"
    opponents: int | None = Field(default=None, ge=1, description="k_opponents: how many each candidate meets")
    rounds: int | None = Field(default=None, ge=1, description="swiss: rounds; log2 of the candidates + 1 by default")
    seed: int = Field(default=0, description="of the schedule")


class Dimension(BaseModel):
    """Scores out of 10 on one dimension."""

    name: str
    a: float
    b: float


class JudgedPair(BaseModel):
    """One judgment. Scores belong to the candidates, whichever was shown first."""

    a: Index
    b: Index
    shown_first: Index | None = Field(description="null for a tie: nothing was shown")
    status: Status
    reason: str = Field(description="why there is no winner")
    outcome: Literal["winner", "tie", "unreadable"] = Field(description="tie: equal candidates, half a win for each")
    winner: Index | None
    strict: bool | None = Field(description="the completion has exactly the form that was asked for")
    scores: list[Dimension]
    reasoning: str | None = Field(description="the completion; it names the candidates in the order shown")


class CompareReply(BaseModel):
    """The verdict on a pair. `ok`: a verdict could be read in at least one order, or the candidates are equal."""

    status: Status
    reason: str = Field(description="why there is no winner")
    outcome: Literal["winner", "tie", "split", "unreadable"] = Field(
        description="tie: equal candidates, nothing was asked; split: the two orders disagree"
    )
    winner: Index | None
    agreement: bool | None = Field(description="both orders: whether they name the same candidate, if both do")
    margin: float | None = Field(description="score sums: candidate 0 minus candidate 1, over readable judgments")
    scores: list[Dimension] = Field(description="means over readable judgments")
    judgments: list[JudgedPair]
    model: str


class RankedCandidate(BaseModel):
    """What the games say of one candidate; without a readable game its numbers are null, and `status` says why."""

    index: Index
    status: Status
    reason: str
    win_rate: float | None = Field(description="share of its readable games that it won")
    wins: float = Field(description="a tie is half a win")
    games: int = Field(description="readable games, ties included")
    asked: int = Field(description="all games, readable or not")
    score: float | None = Field(description="Bradley-Terry log-strength, 0 for the average candidate")
    score_low: float | None = Field(description="lower end of its 95% interval")
    score_high: float | None
    dimensions: dict[str, float] = Field(description="mean score out of 10 on each dimension")


class RankReply(BaseModel):
    """The candidates in the order of the request."""

    candidates: list[RankedCandidate]
    judgments: list[JudgedPair]
    model: str


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


class ServedModel(BaseModel):
    """A name under which the judge answers."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "unifiedreward-think"


class ModelList(BaseModel):
    """All names."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class Health(BaseModel):
    """Whether the judge answers, by a judgment of drawn pictures a short while ago."""

    status: Literal["ok", "degraded", "error"] = Field(description="degraded: it answers, but not readably")
    canary: Status
    reason: str
    seconds: float = Field(description="that the canary took")
    age: float = Field(description="seconds since then")
    model: str


class Problem(BaseModel):
    """Why a request failed."""

    message: str
    type: str


class ErrorReply(BaseModel):
    """The body of every reply that is no success, in the form of OpenAI's API."""

    error: Problem
