"""What travels over HTTP: requests and replies. Candidates are named by their place in the request's list, from 0."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from unifiedreward_think.ranking import Way
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
    """What compare, rank and score share."""

    task: TaskName
    prompt: str = Field(description="the caption (generation) or the question (understanding)")
    media: list[Medium] = Field(default=[], description="understanding: what the question is about")
    reasoning: bool = Field(default=False, description="return what the judge wrote, too")
    deadline: float | None = Field(default=None, gt=0, description="seconds for the whole request")


class _Shown(_Asked):
    """What compare and rank share."""

    orders: Literal["one", "both"] = Field(
        default="one", description="each pair once, or in both orders: twice the cost"
    )


class _Sampled(_Strict):
    """How often each candidate is asked about, where it is scored."""

    samples: int = Field(default=1, ge=1, le=16, description="scores of each candidate, whose mean counts")
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="of the samples; by default the server's, often 0: then only one sample"
    )


class CompareRequest(_Shown):
    """A pair: pictures, videos, or answers to a question about `media`."""

    candidates: list[Candidate] = Field(min_length=2, max_length=2)


class ScoreRequest(_Asked, _Sampled):
    """Candidates for one prompt, each scored alone."""

    candidates: list[Candidate] = Field(min_length=1)


class RankRequest(_Shown, _Sampled):
    """A group of candidates for one prompt."""

    candidates: list[Candidate] = Field(min_length=2)
    by: Way = Field(
        default="pairs",
        description="who is better: as pairs; by the points of each; or by points, and neighbours by these as pairs",
    )
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


class Points(BaseModel):
    """A score as it was said, or the mean of such scores, and the ends of its scale."""

    value: float
    lowest: float
    highest: float


class JudgedCandidate(BaseModel):
    """One sample: one score of one candidate."""

    index: Index
    sample: int = Field(ge=0)
    status: Status
    reason: str = Field(description="why there is no score")
    points: float | None = Field(description="where the score stands on its scale, from 0 to 1")
    score: Points | None
    strict: bool = Field(description="the completion has exactly the form that was asked for")
    arithmetic_ok: bool | None = Field(description="the answer is the sum of the dimensions; null without a score")
    dimensions: dict[str, float] = Field(description="score out of 10 on each dimension")
    reasoning: str | None = Field(description="the completion")


class ScoredCandidate(BaseModel):
    """What its samples say of one candidate; without a readable one its numbers are null, and `status` says why."""

    index: Index
    status: Status
    reason: str
    points: float | None = Field(description="mean over readable samples of where the score stands, from 0 to 1")
    score: Points | None = Field(description="mean of the scores as they were said; null where scales differ")
    spread: float | None = Field(description="standard deviation of the points; null with fewer than 2 readable")
    dimensions: dict[str, float] = Field(description="mean score out of 10 on each dimension")
    samples: int = Field(description="all samples, readable or not")
    readable: int


class ScoreReply(BaseModel):
    """The candidates in the order of the request."""

    candidates: list[ScoredCandidate]
    judgments: list[JudgedCandidate]
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
    score: float | None = Field(
        description="Bradley-Terry log-strength, 0 for the average candidate; null where points decide"
    )
    score_low: float | None = Field(description="lower end of its 95% interval")
    score_high: float | None
    dimensions: dict[str, float] = Field(description="mean score out of 10 on each dimension")


class RankReply(BaseModel):
    """The candidates in the order of the request."""

    candidates: list[RankedCandidate]
    judgments: list[JudgedPair] = Field(description="of pairs")
    points: ScoreReply | None = Field(default=None, description="where candidates were scored: as /v1/score says it")
    model: str


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
