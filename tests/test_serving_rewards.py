"""Rewards by points and of whole groups: the functions that trainers call, and Flow-Factory's remote protocol."""

import itertools
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.reward_server import SETTINGS, LiveServer, Says, Scores, best, marks, run, say_points, scripted
from unifiedreward_think.backends import Completion, Failure
from unifiedreward_think.serving.client import RewardClient, RewardError
from unifiedreward_think.serving.limits import Limits
from unifiedreward_think.serving.questions import Compute
from unifiedreward_think.serving.reward_fns import flow_grpo_reward, point_shares, win_rates


def share(number):
    return pytest.approx((sum(marks(scripted.colour_of(number))) - 3) / 27)


def images(*numbers):
    return [Image.new("RGB", (8, 8), f"#{scripted.colour_of(n)}") for n in numbers]


@pytest.fixture(scope="module")
def client():
    with LiveServer(Scores()) as address:
        yield RewardClient(address)


def test_by_points_a_single_picture_of_a_prompt_has_a_reward(client):
    reward = flow_grpo_reward(client, by="points")
    assert reward(images(5), ["kite"], [{}]) == ([share(5)], {"missing": 0, "reasons": [""]})
    scores, _ = reward(images(1, 2, 3), ["kite", "boat", "kite"], None)
    assert scores == [share(1), share(2), share(3)]


def test_by_points_batches_are_converted_as_those_of_win_rates(client):
    arrays = np.stack([np.asarray(image) for image in images(21, 22)])
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255
    for batch in (arrays, tensor, list(tensor)):
        assert flow_grpo_reward(client, by="points")(batch, ["kite"] * 2)[0] == [share(21), share(22)]
    videos = tensor[:, None].repeat(1, 3, 1, 1, 1)
    with LiveServer(Says(lambda row: Completion(say_points(scripted.seen(row["images"][-1])), "stop"))) as address:
        reward = flow_grpo_reward(RewardClient(address), by="points", task="video_generation")
        assert reward(videos, ["kite"] * 2)[0] == [share(21), share(22)]


def test_many_candidates_of_one_prompt_are_scored_in_parts_and_come_in_their_order(client):
    numbers = range(40)
    shares, reasons = point_shares(client, "image_generation", ["kite"] * 40, images(*numbers))
    assert shares == [share(n) for n in numbers] and set(reasons) == {""}


def test_points_of_answers_are_asked_for_about_their_own_picture():
    asked = []

    def answer(row):
        (picture,) = row["images"]
        asked.append(scripted.seen(picture))
        return Completion(say_points(scripted.seen(picture)), "stop")

    with LiveServer(Says(answer)) as address:
        shares, _ = point_shares(
            RewardClient(address), "image_understanding", ["Which?"] * 3, ["a", "b", "a"],
            media=[[image] for image in images(1, 1, 2)],
        )  # fmt: skip
    assert shares == [share(1), share(1), share(2)]
    assert sorted(asked) == sorted(scripted.colour_of(n) for n in (1, 1, 2))


def test_points_that_are_missing_are_never_made_up():
    with LiveServer(Says(lambda row: Failure("out of memory"))) as address:
        client = RewardClient(address)
        with pytest.raises(RewardError, match="2 of 2 candidates have no reward; the first: out of memory"):
            flow_grpo_reward(client, by="points")(images(1, 2), ["kite"] * 2)
        scores, info = flow_grpo_reward(client, by="points", missing=0.25)(images(1, 2), ["kite"] * 2)
        assert (scores, info["missing"]) == ([0.25, 0.25], 2)


def test_points_then_pairs_reward_by_the_win_rate_of_that_ranking(client):
    numbers = (19, 20, 21, 22, 23, 24)
    reply = client.rank("image_generation", "kite", images(*numbers), by="points_then_pairs", orders="both")
    reward = flow_grpo_reward(client, by="points_then_pairs", orders="both")
    rates = [row["win_rate"] for row in reply["candidates"]]
    assert reward(images(*numbers), ["kite"] * 6)[0] == rates and len(set(rates)) > 2


def test_a_torn_group_is_refused_and_a_prompt_that_comes_twice_is_not(client):
    reward = flow_grpo_reward(client, group_size=3)
    with pytest.raises(RewardError, match=r"2 candidates for 'boat', where a group has 3: .*gather them first"):
        reward(images(1, 2, 3, 4, 5), ["kite", "kite", "kite", "boat", "boat"])
    assert len(reward(images(1, 2, 3), ["kite"] * 3)[0]) == 3
    assert len(reward(images(*range(6)), ["kite"] * 6)[0]) == 6
    with pytest.raises(RewardError, match="1 candidates for 'boat'"):
        win_rates(client, "image_generation", ["boat"], images(1), group_size=3)
    stands_in = flow_grpo_reward(client, group_size=3, missing=0.5)  # an evaluation of one picture a prompt
    assert stands_in(images(1), ["boat"])[0] == [0.5]
    with pytest.raises(RewardError, match="2 candidates for 'boat'"):
        stands_in(images(1, 2), ["boat"] * 2)


def test_a_way_that_is_none_is_refused_before_training_starts():
    for wrong in ({"by": "luck"}, {"by": "points", "group_size": 8}):
        with pytest.raises(RewardError, match="by is one of pairs, points, points_then_pairs; points have no groups"):
            flow_grpo_reward(RewardClient("http://127.0.0.1:9"), **wrong)


# Flow-Factory --------------------------------------------------------------------------------------------------------


def bare(number):
    """A picture as its client sends it: base64 alone."""
    return scripted.picture(number).partition(",")[2]


def payload(prompts, *numbers, **changes):
    """A request with all keys of its client, null where there is nothing."""
    empty = dict.fromkeys(("video", "condition_images", "condition_videos"))
    return {"prompt": prompts, "image": [bare(n) for n in numbers], **empty, **changes}


def compute(body, backend=None, limits=None, **way):
    settings = replace(SETTINGS, compute=Compute(**way), limits=limits or Limits())
    return run(lambda http: http.post("/compute", json=body), backend or Scores(), settings)


def test_a_whole_group_is_ranked_in_both_orders():
    backend = Scores()
    reply = compute(payload(["kite"] * 4, 1, 2, 3, 4), backend, group=4)
    assert reply.status_code == 200 and reply.json().keys() == {"rewards"} and sum(backend.calls) == 12
    rewards = reply.json()["rewards"]
    assert sorted(rewards) == [0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1]
    assert rewards.index(1) == best(1, 2, 3, 4)
    once = Scores()
    assert compute(payload(["kite"] * 4, 1, 2, 3, 4), once, orders="one").json()["rewards"] == rewards
    assert sum(once.calls) == 6
    mixed = Scores()
    compute(payload(["kite"] * 4, 1, 2, 3, 4), mixed, by="points_then_pairs", orders="one")
    assert sum(mixed.calls) == 4 + 3


def test_by_points_any_batch_is_rewarded_in_its_order():
    prompts = ["kite", "boat", "kite", "kite", "sea"]
    reply = compute(payload(prompts, 1, 2, 3, 4, 5), limits=Limits(candidates=2), by="points")
    assert reply.json()["rewards"] == [share(n) for n in (1, 2, 3, 4, 5)]


def test_videos_are_judged_as_videos():
    shown = []

    def answer(row):
        shown.append(len(row["images"]))
        return Completion(say_points(scripted.seen(row["images"][0])), "stop")

    clips = [[bare(n)] * 3 for n in (1, 2)]
    reply = compute(payload(["kite"] * 2, image=None, video=clips), Says(answer), by="points")
    assert reply.json()["rewards"] == [share(1), share(2)] and shown == [3, 3]


def broken(row):
    return Failure("out of memory") if scripted.colour_of(2) in map(scripted.seen, row["images"]) else said(row)


def said(row):
    return Completion(scripted.say(*map(scripted.seen, row["images"])), "stop")


ERRORS = {
    "a batch of several groups": (payload(["kite", "boat"], 1, 2), {}, "of 2 prompts: send whole groups"),
    "a torn group": (payload(["kite"] * 2, 1, 2), {"group": 4}, "2 candidates, where a group has 4"),
    "one alone": (payload(["kite"], 1), {}, "one candidate has no win rate"),
    "a prompt too few": (payload(["kite"], 1, 2), {}, "1 prompts and 2 candidates"),
    "nothing to see": (payload(["kite"], image=None), {}, "image, video: send either"),
    "pictures and videos": (payload(["kite"], 1, video=[[bare(1)]]), {}, "image, video: send either"),
    "a picture to edit": (payload(["kite"] * 2, 1, 2, condition_images=[[bare(1)]] * 2), {}, "no task of this server"),
    "no picture": (payload(["kite"] * 2, 1, 2, image=[bare(1), "aGVsbG8="]), {}, "candidates[1].image: "),
    "too many": (payload(["kite"] * 33, *range(33)), {}, "33 of them; the limit is 32"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_would_be_refused_again_is_an_error_that_its_client_shows(case):
    body, way, reason = ERRORS[case]
    backend = Scores()
    reply = compute(body, backend, **way)
    assert reply.status_code == 200 and reply.json().keys() == {"error"} and backend.calls == []
    assert reason in reply.json()["error"]


@pytest.mark.parametrize("by", ["pairs", "points"])
def test_a_group_is_never_rewarded_in_part(by):
    answer = broken if by == "pairs" else lambda row: Completion("no idea", "stop")
    reply = compute(payload(["kite"] * 3, 1, 2, 3), Says(answer), by=by)
    lost = "1 of 3 candidates have no reward; the first: out of memory" if by == "pairs" else "3 of 3 candidates"
    assert reply.json().keys() == {"error"} and lost in reply.json()["error"]


def test_a_full_server_is_a_status_that_its_client_tries_again():
    reply = compute(payload(["kite"] * 2, 1, 2), limits=Limits(flying_pixels=100))
    assert reply.status_code == 429 and "retry-after" in reply.headers


@pytest.mark.parametrize(
    "body", [{}, {"prompt": []}, {"prompt": ["a"], "image": [""]}, {"prompt": ["a"], "video": [[]]}, payload("a", 1)]
)
def test_a_body_out_of_shape_is_a_422(body):
    assert compute(body).status_code == 422


def test_its_client_finds_the_server_healthy_and_the_requests_counted():
    with LiveServer(Says(said)) as url, httpx.Client(base_url=url) as http:
        assert http.get("/health").is_success
        rewards = http.post("/compute", json=payload(["kite"] * 2, 1, 2)).json()["rewards"]
        assert rewards.index(1) == best(1, 2) and sorted(rewards) == [0, 1]
        counted = http.get("/metrics").text
    assert 'unifiedreward_requests_total{path="/compute",status="200"} 1.0' in counted
    assert 'unifiedreward_judgments_total{status="ok",task="image_generation"} 2.0' in counted


def test_rewards_of_a_permuted_group_are_permuted():
    numbers = (3, 4, 5)
    found = set()
    for order in itertools.permutations(numbers):
        rewards = compute(payload(["kite"] * 3, *order)).json()["rewards"]
        found.add(tuple(rewards[order.index(n)] for n in numbers))
    assert len(found) == 1
