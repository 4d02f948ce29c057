"""The remote protocol of Flow-Factory: a batch or a group in by `POST /compute`, a reward for each or a reason out.

Its clients send base64 without the head of a data URL, one prompt for each candidate, and no task: pictures or videos
say which it is. They try a failed status again and lose its reason, and raise the `error` of a reply at once: so what
would be refused again is a reply, and what may pass, such as a full server, is a status.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from unifiedreward_think.serving.body import Body
from unifiedreward_think.serving.limits import Refused
from unifiedreward_think.serving.public import without_folders
from unifiedreward_think.serving.questions import Compute
from unifiedreward_think.serving.schemas import RankRequest, ScoreRequest
from unifiedreward_think.serving.service import Service

T = TypeVar("T")
Encoded = Annotated[str, Field(min_length=1, description="a picture in base64, without `data:...`")]
HEAD = "data:image/png;base64,"
WHOLE = "send whole groups: RemoteGroupwiseRewardModel, or start the server with --compute-by points"


class ComputeRequest(Body):
    """Candidates, each with its prompt; what is null is not there."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: list[str] = Field(min_length=1)
    image: list[Encoded] | None = None
    video: list[Annotated[list[Encoded], Field(min_length=1)]] | None = Field(default=None, description="frames")
    condition_images: list[Any] | None = Field(default=None, description="refused: no task here has them")
    condition_videos: list[Any] | None = Field(default=None, description="refused: no task here has them")


class ComputeReply(BaseModel):
    """A reward for each candidate, or why there is none for some of them: never a part."""

    rewards: list[float] | None = None
    error: str | None = None


async def compute(body: ComputeRequest, service: Service) -> ComputeReply:
    """Return a reward for each candidate.

    Raises:
        Refused: the same request may pass later.
    """
    try:
        return ComputeReply(rewards=await _rewards(body, service))
    except Refused as error:
        if error.status in (429, 499, 504):
            raise
        return ComputeReply(error=without_folders(str(error)))


async def _rewards(body: ComputeRequest, service: Service) -> list[float]:
    task, candidates = _candidates(body)
    if service.settings.compute.by == "points":
        found = await _points(task, body.prompt, candidates, service)
    else:
        found = await _win_rates(task, body.prompt, candidates, service)
    lost = [reason for reward, reason in found if reward is None]
    if lost:
        raise Refused(f"{len(lost)} of {len(found)} candidates have no reward; the first: {lost[0]}")
    return [reward for reward, _ in found if reward is not None]


def _candidates(body: ComputeRequest) -> tuple[str, list[dict[str, Any]]]:
    """Return the task, and the candidates as the other requests name them."""
    if body.condition_images or body.condition_videos:
        raise Refused("condition_images, condition_videos: no task of this server has them")
    if bool(body.image) == bool(body.video):
        raise Refused("image, video: send either of them")
    task = "image_generation" if body.image else "video_generation"
    candidates: list[dict[str, Any]] = [{"image": HEAD + image} for image in body.image or ()]
    candidates += [{"frames": [HEAD + frame for frame in frames]} for frames in body.video or ()]
    if len(candidates) != len(body.prompt):
        raise Refused(f"{len(body.prompt)} prompts and {len(candidates)} candidates: send a prompt for each")
    return task, candidates


async def _win_rates(
    task: str, prompts: Sequence[str], candidates: Sequence[dict[str, Any]], service: Service
) -> list[tuple[float | None, str]]:
    """Return the win rate of each candidate of one group, or why it has none."""
    way = service.settings.compute
    _check_group(prompts, way)
    request: dict[str, Any] = {"task": task, "prompt": prompts[0], "candidates": candidates, "by": way.by}
    reply = await service.rank(RankRequest(**request, orders=way.orders))
    return [(row.win_rate, row.reason) for row in reply.candidates]


def _check_group(prompts: Sequence[str], way: Compute) -> None:
    """Refuse what is no whole group: a win rate among a part of it would be another number."""
    if len(set(prompts)) > 1:
        raise Refused(f"a win rate is that of a group, and these are of {len(set(prompts))} prompts: {WHOLE}")
    if way.group and len(prompts) != way.group:
        raise Refused(f"{len(prompts)} candidates, where a group has {way.group} (--compute-group): {WHOLE}")
    if len(prompts) < 2:
        raise Refused(f"one candidate has no win rate: {WHOLE}")


async def _points(
    task: str, prompts: Sequence[str], candidates: Sequence[dict[str, Any]], service: Service
) -> list[tuple[float | None, str]]:
    """Return the points of each candidate, or why it has none; each is scored alone, so any batch will do."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        places[prompt].append(i)
    size = min(service.settings.limits.candidates, service.settings.limits.scores)
    parts = [group[k : k + size] for group in places.values() for k in range(0, len(group), size)]
    requests: list[dict[str, Any]] = [
        {"task": task, "prompt": prompts[part[0]], "candidates": [candidates[i] for i in part]} for part in parts
    ]
    replies = await _all([service.score(ScoreRequest(**request)) for request in requests])
    found: dict[int, tuple[float | None, str]] = {}
    for part, reply in zip(parts, replies, strict=True):
        found.update({i: (row.points, row.reason) for i, row in zip(part, reply.candidates, strict=True)})
    return [found[i] for i in range(len(prompts))]


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what all return; when one fails, or nobody waits any more, the others end."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
