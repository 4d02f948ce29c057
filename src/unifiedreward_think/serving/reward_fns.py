"""Reward functions for generator training, in the shapes that trainers call.

    from unifiedreward_think.serving.reward_fns import flow_grpo_reward, trl_reward
    client = RewardClient()
    reward_fn = flow_grpo_reward(client, orders="both")                # reward_fn(images, prompts, metadata)
    GRPOTrainer(reward_funcs=[trl_reward(client, orders="both")], ...) # f(prompts, completions, images=..., **kwargs)

The reward of a candidate is its win rate among the candidates of the same prompt in the call, so a call must hold whole
groups; TRL's are gathered from all processes, elsewhere `group_size` refuses torn ones. `by="points"` rewards each
candidate by its own points instead: one picture of a prompt is enough then. A candidate of which nothing could be read
has no reward. TRL takes None for that; Flow-GRPO takes numbers only, so there it raises, unless `missing` says which
number to use.

>>> groups(["kite", "kite", "boat", "kite"])
[[0, 1, 3], [2]]
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from unifiedreward_think.gathering import gathered
from unifiedreward_think.ranking import WAYS
from unifiedreward_think.serving.client import RewardClient, RewardError, data_url

_ALONE = "a win rate needs the group; give all samples of a prompt in one call (on several GPUs: gather them first)"

MOST = 8  # candidates in one request for points: each is scored alone, so that any part of a group will do
ROUNDING = 0.01  # by which floats may leave 0 to 1: half a step of bfloat16 near 1 is a hundredth


def groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the places of equal keys, in the order in which each first appears."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        places[key].append(i)
    return list(places.values())


def win_rates(
    client: RewardClient,
    task: str,
    prompts: Sequence[str],
    candidates: Sequence[Any],
    *,
    alone: bool = False,
    group_size: int | None = None,
    **more: Any,
) -> tuple[list[float | None], list[str]]:
    """Return each candidate's win rate among those of the same prompt, and why it has none ("" where it has).

    Args:
        client: of the reward server.
        task: as in `records.TASK_NAMES`.
        prompts: one for each candidate; equal ones make a group.
        candidates: pictures, videos or answers.
        alone: a candidate without another of its prompt has no win rate; by default it is an error.
        group_size: candidates that a prompt has, or a multiple where it comes twice; None takes any number as a group.
        more: as `RewardClient.rank` takes; `media` is a list for each candidate, and only equal ones make a group.

    Raises:
        RewardError: a group is torn or has one candidate only, unless `alone`, or the server refuses it.
    """
    media, grouped = _grouped(prompts, more.pop("media", None))
    asked = [group for group in grouped if len(group) > 1 or not alone]
    _refuse_torn(asked, group_size, prompts)
    lonely = [group[0] for group in grouped if len(group) < 2]
    if not alone:
        _refuse(lonely, prompts)
    grouped = [group for group in grouped if len(group) > 1]
    requests = [
        _request(task, prompts[group[0]], [candidates[i] for i in group], media[group[0]], more) for group in grouped
    ]
    rates: list[float | None] = [None] * len(prompts)
    reasons = [_ALONE if i in lonely else "" for i in range(len(prompts))]
    for group, reply in zip(grouped, client.rank_all(requests), strict=True):
        for i, row in zip(group, reply["candidates"], strict=True):
            rates[i], reasons[i] = row["win_rate"], row["reason"]
    return rates, reasons


def _refuse_torn(asked: Sequence[Sequence[int]], group_size: int | None, prompts: Sequence[str]) -> None:
    if group_size and (torn := [group for group in asked if len(group) % group_size]):
        found = f"{len(torn[0])} candidates for {prompts[torn[0][0]]!r}, where a group has {group_size}"
        raise RewardError(f"{found}: {_ALONE}")


def _refuse(lonely: Sequence[int], prompts: Sequence[str]) -> None:
    if lonely:
        raise RewardError(f"only one candidate for {prompts[lonely[0]]!r}: {_ALONE}")


def point_shares(
    client: RewardClient, task: str, prompts: Sequence[str], candidates: Sequence[Any], **more: Any
) -> tuple[list[float | None], list[str]]:
    """Return each candidate's points, from 0 to 1, and why it has none ("" where it has).

    Args:
        client: of the reward server.
        task: as in `records.TASK_NAMES`.
        prompts: one for each candidate.
        candidates: pictures, videos or answers; each is scored alone.
        more: as `RewardClient.score` takes; `media` is a list for each candidate.

    Raises:
        RewardError: the server refuses it.
    """
    media, grouped = _grouped(prompts, more.pop("media", None))
    parts = [group[start : start + MOST] for group in grouped for start in range(0, len(group), MOST)]
    requests = [_request(task, prompts[part[0]], [candidates[i] for i in part], media[part[0]], more) for part in parts]
    shares: list[float | None] = [None] * len(prompts)
    reasons = [""] * len(prompts)
    for part, reply in zip(parts, client.score_all(requests), strict=True):
        for i, row in zip(part, reply["candidates"], strict=True):
            shares[i], reasons[i] = row["points"], row["reason"]
    return shares, reasons


def flow_grpo_reward(
    client: RewardClient,
    *,
    task: str = "image_generation",
    by: str = "pairs",
    missing: float | None = None,
    group_size: int | None = None,
    **more: Any,
) -> Callable[[Any, Sequence[str], Any], tuple[list[float], dict[str, Any]]]:
    """Return a reward function as Flow-GRPO and DiffusionNFT call it: (images, prompts, metadata) -> (rewards, info).

    Args:
        client: of the reward server.
        task: "image_generation", or "video_generation" for batches of videos.
        by: "pairs" and "points_then_pairs" reward by the win rate of such a ranking, "points" by each one's points.
        missing: the reward of a candidate of which nothing can be read, or that is alone in the call; None raises.
        group_size: as in `win_rates`; points have no groups.
        more: as `RewardClient.rank` takes, such as `orders="both"`; by points as `score` takes, such as `samples`.

    Raises:
        RewardError: there is no such way, or it has no groups.
    """
    if by not in WAYS or (by == "points" and group_size):
        raise RewardError(f"by={by!r}, group_size={group_size}: by is one of {', '.join(WAYS)}; points have no groups")

    def rewards(prompts: list[str], pictures: list[Any]) -> tuple[list[float | None], list[str]]:
        if by == "points":
            return point_shares(client, task, prompts, pictures, **more)
        alone = missing is not None
        return win_rates(client, task, prompts, pictures, alone=alone, group_size=group_size, by=by, **more)

    def reward(images: Any, prompts: Sequence[str], metadata: Any = None) -> tuple[list[float], dict[str, Any]]:
        rates, reasons = rewards(list(prompts), to_pictures(images))
        lost = [i for i, rate in enumerate(rates) if rate is None]
        if lost and missing is None:
            raise RewardError(f"{len(lost)} of {len(rates)} candidates have no reward; the first: {reasons[lost[0]]}")
        filled = [rate if rate is not None else float(missing or 0) for rate in rates]
        return filled, {"missing": len(lost), "reasons": reasons}

    return reward


def trl_reward(
    client: RewardClient, *, task: str = "image_understanding", **more: Any
) -> Callable[..., list[float | None]]:
    """Return a reward function for TRL's GRPOTrainer: a group of answers to a question about a picture is ranked.

    The columns `image`, or `images`, of the data set hold what the question is about; for a video task its frames. The
    question is the text of the last user message. A group is ranked whole, on whatever processes its answers are: that
    of its first answer asks for all.
    """

    def unifiedreward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        pictures = columns.get("images") or [[image] for image in columns["image"]]
        about = [[list(images)] if task.startswith("video") else list(images) for images in pictures]
        media = [[_encoded(entry) for entry in entries] for entries in about]
        keys = [(_said(prompt, "user"), _digest(each)) for prompt, each in zip(prompts, media, strict=True)]
        everyone, own = gathered(list(zip(keys, (_said(each, "assistant") for each in completions), strict=True)))
        grouped = groups([key for key, _ in everyone])
        _refuse([group[0] for group in grouped if len(group) < 2], [question for (question, _), _ in everyone])
        mine = [group for group in grouped if own.start <= group[0] < own.stop]
        requests = [
            _request(task, everyone[group[0]][0][0], [everyone[i][1] for i in group], media[group[0] - own.start], more)
            for group in mine
        ]
        rates = _told_to_all(client, requests, mine)
        return [rates[i] for i in range(own.start, own.stop)]

    return unifiedreward


def _told_to_all(
    client: RewardClient, requests: list[dict[str, Any]], mine: Sequence[Sequence[int]]
) -> dict[int, float | None]:
    """Rank the groups of this process; return place -> win rate of the groups of all.

    Raises:
        RewardError: the server refused a group of any process; raised on all, as none waits for one that has ended.
    """
    rates: dict[int, float | None] = {}
    problem = ""
    try:
        for group, reply in zip(mine, client.rank_all(requests), strict=True):
            rates |= {i: row["win_rate"] for i, row in zip(group, reply["candidates"], strict=True)}
    except RewardError as error:
        problem = str(error)
    told, _ = gathered([(rates, problem)])
    if problems := [text for _, text in told if text]:
        raise RewardError(problems[0])
    return {place: rate for part, _ in told for place, rate in part.items()}


def _grouped(prompts: Sequence[str], media: Sequence[Any] | None) -> tuple[list[list[Any]], list[list[int]]]:
    """Return the media of each candidate, encoded, and the places of those that are asked the same about the same."""
    # Encoded first: trainers decode the picture of each row anew, so only its content says whether two are the same.
    encoded = [[_encoded(entry) for entry in entries] for entries in media or [[]] * len(prompts)]
    return encoded, groups([(prompt, str(about)) for prompt, about in zip(prompts, encoded, strict=True)])


def _request(
    task: str, prompt: str, candidates: list[Any], media: Sequence[Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    return {"task": task, "prompt": prompt, "candidates": candidates, "media": media, **more}


def to_pictures(images: Any) -> list[Any]:
    """Return a batch as a list of pictures, or of lists of frames; arrays and tensors become arrays of bytes.

    Args:
        images: a list of pictures or videos, or one array or tensor of N of them: bytes, or floats from 0 to 1, with
            three channels last or before height and width; videos have a dimension of frames after N.

    Raises:
        RewardError: the values have another type or range, or it cannot be told what the dimensions are.
    """
    if not isinstance(images, list | tuple):
        return [list(each) if each.ndim == 4 else each for each in _to_bytes(images, dims=(4, 5))]
    pictures = []
    for each in images:
        if isinstance(each, list | tuple):
            pictures.append(to_pictures(each))
        elif hasattr(each, "dtype"):
            values = _to_bytes(each, dims=(3, 4))
            pictures.append(list(values) if values.ndim == 4 else values)
        else:
            pictures.append(each)
    return pictures


def _to_bytes(values: Any, *, dims: tuple[int, int]) -> Any:
    """Return an array of bytes, channels last, with one of two numbers of dimensions."""
    import numpy as np

    if hasattr(values, "detach"):  # a tensor, without importing torch
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    shape = " x ".join(map(str, values.shape))
    places = [place for place in (-1, -3) if values.ndim in dims and values.shape[place] == 3]
    if len(places) != 1 or not values.size:
        raise RewardError(f"pixels of shape {shape}: which dimension are three channels? Give them last, or before two")
    if values.dtype != np.uint8:
        values = _from_floats(values)
    return values if places == [-1] else np.moveaxis(values, -3, -1)


def _from_floats(values: Any) -> Any:
    import numpy as np

    if not np.issubdtype(values.dtype, np.floating):
        range_found = f"from {values.min()} to {values.max()}"
        raise RewardError(f"{values.dtype} values {range_found}: convert them to uint8 (0 to 255) or floats (0 to 1)")
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RewardError("pixel values that are not finite: the generator has diverged")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise RewardError(
            f"{values.dtype} values from {low:g} to {high:g}, where floats are from 0 to 1: "
            "divide 0 to 255 by 255; -1 to 1 becomes x / 2 + 0.5"
        )
    return (values.clip(0, 1) * np.float32(255)).round().astype(np.uint8)


def _encoded(medium: Any) -> Any:
    return [data_url(frame) for frame in medium] if isinstance(medium, list | tuple) else data_url(medium)


def _digest(media: Sequence[Any]) -> str:
    return hashlib.sha256(str(media).encode()).hexdigest()


def _said(messages: Any, role: str) -> str:
    """Return the text of the last message of a role; a plain string is that text."""
    if isinstance(messages, str):
        return messages
    content = next(turn["content"] for turn in reversed(messages) if turn["role"] == role)
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if part["type"] == "text")
