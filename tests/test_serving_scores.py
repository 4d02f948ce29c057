"""Scores of single candidates from the reward server, rankings by them, and their client."""

import asyncio
import itertools
from dataclasses import replace
from statistics import fmean, pstdev

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.reward_server import SETTINGS, LiveServer, Says, Scores, marks, pair, run, say_points, scripted
from unifiedreward_think.backends import Completion, Failure
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging.api import Judge
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.points import render_points
from unifiedreward_think.serving.__main__ import _parser, make_app
from unifiedreward_think.serving.client import RewardClient, RewardError
from unifiedreward_think.serving.limits import Limits

WARM = {"samples": 3, "temperature": 0.7}


def post(path, body, backend=None, *arguments, **options):
    return run(lambda http: http.post(path, json=body), backend or Scores(), *arguments, **options)


def share(number):
    return (sum(marks(scripted.colour_of(number))) - 3) / 27


def images(*numbers):
    return [Image.new("RGB", (8, 8), f"#{scripted.colour_of(n)}") for n in numbers]


def test_each_candidate_has_its_points_as_said_and_as_a_share():
    reply = post("/v1/score", pair(1, 2, 3, reasoning=True)).json()
    for index, (number, row) in enumerate(zip((1, 2, 3), reply["candidates"], strict=True)):
        values = marks(scripted.colour_of(number))
        assert (row["index"], row["status"], row["reason"], row["spread"]) == (index, "ok", "", None)
        assert row["points"] == pytest.approx(share(number))
        assert row["score"] == {"value": sum(values), "lowest": 3, "highest": 30}
        assert list(row["dimensions"].values()) == values and (row["samples"], row["readable"]) == (1, 1)
        (judged,) = [each for each in reply["judgments"] if each["index"] == index]
        assert judged["reasoning"] == say_points(scripted.colour_of(number))
        assert (judged["strict"], judged["arithmetic_ok"], judged["points"]) == (True, True, row["points"])
    assert reply["model"] == "scripted"


def test_one_picture_alone_is_enough_and_reasoning_is_returned_on_request_only():
    reply = post("/v1/score", pair(7)).json()
    assert reply["candidates"][0]["points"] == pytest.approx(share(7))
    assert reply["judgments"][0]["reasoning"] is None


class Sampled(scripted.ScriptedBackend):
    """A judge whose samples say `values`, by the number of the sample, and that keeps what it was asked."""

    def __init__(self, *said, **options):
        super().__init__(**options)
        self.said, self.seeds, self.sampling = said, [], set()

    def complete(self, prompts, *, sampling, seeds):
        self.calls.append(len(prompts))
        self.seeds += [seed for (seed,) in seeds]
        self.sampling.add(sampling)
        texts = [self.said[row.get("sample", 0)] for row in prompts]
        return [[Completion(text, "stop") if isinstance(text, str) else text] for text in texts]


def test_samples_are_averaged_and_those_that_cannot_be_read_abstain():
    said = render_points([("Light", 9), ("Form", 5)]), "no idea", render_points([("Light", 5)])
    backend = Sampled(*said)
    reply = post("/v1/score", pair(1, **WARM), backend).json()
    (row,) = reply["candidates"]
    shares = [12 / 18, 4 / 9]
    assert row["points"] == pytest.approx(fmean(shares)) and row["spread"] == pytest.approx(pstdev(shares))
    assert row["score"] is None  # of 20 and of 10
    assert row["dimensions"] == {"Light": 7, "Form": 5}
    assert (row["status"], row["samples"], row["readable"]) == ("ok", 3, 2)
    assert [judged["status"] for judged in reply["judgments"]] == ["ok", "unparsed", "ok"]
    assert len(set(backend.seeds)) == 3 and {each.temperature for each in backend.sampling} == {0.7}


FATES = {
    "unparsed": (Completion("no idea", "stop"), "no answer block"),
    "truncated": (Completion("<think>still th", "length"), "token limit"),
    "error": (Failure("CUDA out of memory"), "CUDA out of memory"),
}


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("by", ["", "points", "points_then_pairs"])
def test_what_cannot_be_read_has_a_status_and_a_reason_and_never_a_number(fate, by):
    answer, reason = FATES[fate]
    path, more = ("/v1/rank", {"by": by}) if by else ("/v1/score", {})
    reply = post(path, pair(1, 2, **more), Says(lambda row: answer)).json()
    for row in reply["candidates"]:
        assert row["status"] == fate and reason in row["reason"] and row["dimensions"] == {}
        numbers = ("win_rate", "score") if by else ("points", "score", "spread")
        assert [row[name] for name in numbers] == [None] * len(numbers)
    assert by == "" or reply["judgments"] == []


def test_a_bad_candidate_fails_alone():
    class Fragile(Scores):
        def complete(self, prompts, **options):
            if any(scripted.seen(image) == scripted.colour_of(5) for row in prompts for image in row["images"]):
                raise ValueError("image features and image tokens do not match")
            return super().complete(prompts, **options)

    rows = post("/v1/score", pair(*range(8)), Fragile()).json()["candidates"]
    assert [row["status"] for row in rows] == ["ok"] * 5 + ["error"] + ["ok"] * 2
    assert "do not match" in rows[5]["reason"] and rows[4]["points"] == pytest.approx(share(4))
    long = Says(lambda row: Failure("too long for the model", refused=True))
    refusal = post("/v1/score", pair(1, 2), long)
    assert refusal.status_code == 422 and refusal.json()["error"]["message"] == "too long for the model"


def test_a_score_depends_on_what_is_scored_not_on_its_place_or_its_company():
    backend = Sampled(render_points([("Light", 9)]))

    async def work(http):
        one = (await http.post("/v1/score", json=pair(1, 2, 3))).json()
        other = (await http.post("/v1/score", json=pair(4, 3))).json()
        return one, other, (await http.get("/metrics")).text

    _, _, metrics = run(work, backend)
    assert len(backend.seeds) == len(set(backend.seeds)) == 4  # the second 3 is remembered
    assert 'shared_answers_total{how="remembered"} 1.0' in metrics
    assert 'unifiedreward_judgments_total{status="ok",task="image_generation"} 5.0' in metrics
    assert 'unifiedreward_requests_total{path="/v1/score",status="200"} 2.0' in metrics


def test_candidates_of_equal_content_are_asked_about_once():
    backend = Scores()
    rows = post("/v1/score", pair(6, 6, 6), backend).json()["candidates"]
    assert sum(backend.calls) == 1 and {row["points"] for row in rows} == {rows[0]["points"]}


TASKS = {
    "video_generation": ({"candidates": [{"frames": [scripted.picture(n)] * 3} for n in (1, 2, 3)]}, [3] * 3),
    "image_understanding": (
        {"candidates": [{"text": "red"}, {"text": "blue"}], "media": [{"image": scripted.picture(1)}]},
        [1] * 2,
    ),
    "video_understanding": (
        {"candidates": [{"text": "red"}], "media": [{"frames": [scripted.picture(n) for n in range(12)]}]},
        [8],
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_scored_by_its_own_prompt(task):
    more, pictures = TASKS[task]
    rows = []
    said = render_points([("Light", 8)])
    reply = post(
        "/v1/score",
        {"task": task, "prompt": "{media_1}?", **more},
        Says(lambda row: rows.append(row) or Completion(said, "stop")),
    )
    assert [row["points"] for row in reply.json()["candidates"]] == [pytest.approx(7 / 9)] * len(pictures)
    assert [len(row["images"]) for row in rows] == pictures
    texts = ["".join(part["text"] or "" for part in row["prompt"][0]["content"]) for row in rows]
    assert all("{media_1}?" in text and "score/10" in text for text in texts)
    if "understanding" in task:
        words = [item["text"] for item in more["candidates"]]
        assert [[word for word in words if f"Answer: {word}" in text] for text in texts] == [[word] for word in words]


SMALL = replace(SETTINGS, limits=Limits(candidates=3, scores=4, prompt_chars=50, media=1))


@pytest.mark.parametrize(
    ("path", "change", "status", "reason"),
    [
        ("score", {"candidates": []}, 422, "at least 1"),
        ("score", {"candidates": pair(*range(4))["candidates"]}, 422, "candidates: 4 of them; the limit is 3"),
        ("score", {"samples": 3, "temperature": 1}, 422, "candidates x samples: 6; the limit is 4"),
        ("score", {"samples": 17}, 422, "samples"),
        ("score", {"samples": 2}, 422, "samples: 2 at temperature 0 are all the same"),
        ("score", {"samples": 2, "temperature": 0}, 422, "send a temperature above 0, or 1"),
        ("score", {"orders": "both"}, 422, "orders"),
        ("score", {"prompt": "x" * 51}, 413, "50 characters"),
        ("score", {"media": [{"image": scripted.picture(1)}]}, 422, "generation tasks have none"),
        ("score", {"candidates": [{"text": "a"}]}, 422, "takes images"),
        ("score", {"candidates": [{"image": "/etc/passwd"}]}, 422, "candidates[0].image: expected data:image"),
        ("rank", {"by": "luck"}, 422, "by"),
        ("rank", {"samples": 2}, 422, "samples: only points have samples"),
        ("rank", {"temperature": 1.0}, 422, "temperature: only points"),
        ("rank", {"by": "points", "schedule": "swiss"}, 422, "schedule: only a ranking by pairs"),
        ("rank", {"by": "points_then_pairs", "seed": 3}, 422, "seed: only a ranking by pairs"),
        ("rank", {"by": "points", "orders": "both"}, 422, "there is one order"),
        ("rank", {"by": "points", "samples": 3, "temperature": 1}, 422, "candidates x samples: 6"),
    ],
)
def test_a_request_over_a_limit_or_out_of_shape_is_refused_before_anything_is_asked(path, change, status, reason):
    backend = Scores()
    reply = post(f"/v1/{path}", {**pair(1, 2), **change}, backend, SMALL)
    assert reply.status_code == status and reason in reply.json()["error"]["message"] and backend.calls == []


def test_a_full_queue_refuses_as_many_scores_as_are_asked_for():
    backend = Scores(batch_size=1, seconds=0.2)

    async def work(http):
        first = asyncio.create_task(http.post("/v1/score", json=pair(*range(10))))
        while not backend.calls:
            await asyncio.sleep(0.01)
        refused = await http.post("/v1/score", json=pair(*range(20, 22), samples=8, temperature=1))
        return await first, refused

    first, refused = run(work, backend, max_queue=20)
    assert first.status_code == 200 and refused.status_code == 429 and "retry-after" in refused.headers


def test_a_server_without_prompts_for_scores_says_so_and_still_compares():
    plain = replace(SETTINGS, points=None)
    for path, more in (("score", {}), ("rank", {"by": "points"}), ("rank", {"by": "points_then_pairs"})):
        reply = post(f"/v1/{path}", pair(1, 2, **more), settings=plain)
        assert reply.status_code == 422 and "scores no single candidates" in reply.json()["error"]["message"]
    assert post("/v1/compare", pair(1, 2), settings=plain).json()["status"] == "ok"


def test_prompts_of_ones_own_for_scores_stand_in_a_folder_beside_those_for_pairs(tmp_path, monkeypatch):
    (tmp_path / "image_generation.txt").write_text("Mine: {prompt} {media_1} {media_2} {format}")
    (tmp_path / "format_cot_one_line.txt").write_text("As you like.")
    ways = {"prompts": str(tmp_path), "max_new_tokens": 77, "temperature": 0.5}
    assert JudgingArguments(**ways).point_config() is None
    (tmp_path / "pointwise").mkdir()
    with pytest.raises(InputError, match="no prompt template here"):
        JudgingArguments(**ways).point_config()
    (tmp_path / "pointwise" / "image_generation.txt").write_text("One of mine: {prompt} {media_1}")
    config = JudgingArguments(**ways).point_config()
    assert config.prompts == {"image_generation": "One of mine: {prompt} {media_1}"}
    assert (config.form.name, config.sampling.max_new_tokens, config.sampling.temperature) == ("pointwise", 77, 0.5)
    assert set(JudgingArguments().point_config().prompts) == set(JudgingArguments().config().prompts)
    rows = []
    backend = Says(lambda row: rows.append(row) or Completion(render_points([("Light", 8)]), "stop"))
    monkeypatch.setattr("unifiedreward_think.judging.settings.make_backend", lambda args, **_: backend)
    app = make_app(_parser().parse_args(["--model", "m", "--prompts", str(tmp_path)]))
    with LiveServer(app=app) as url:
        assert httpx.post(f"{url}/v1/score", json=pair(1)).json()["candidates"][0]["status"] == "ok"
    texts = ["".join(part["text"] or "" for part in row["prompt"][0]["content"]) for row in rows]
    assert "One of mine: one colour " in texts


# Rankings ------------------------------------------------------------------------------------------------------------


def test_by_points_a_candidate_wins_against_all_with_fewer():
    backend = Scores()
    numbers = (1, 2, 3, 4, 5)
    reply = post("/v1/rank", pair(*numbers, by="points"), backend).json()
    assert sum(backend.calls) == 5 and reply["judgments"] == []
    shares = [row["points"] for row in reply["points"]["candidates"]]
    assert shares == [pytest.approx(share(n)) for n in numbers]
    for mine, row in zip(shares, reply["candidates"], strict=True):
        beaten = sum(mine > other for other in shares) + (sum(mine == other for other in shares) - 1) / 2
        assert row["win_rate"] == pytest.approx(beaten / 4) and (row["games"], row["asked"]) == (4, 4)
        assert row["score"] is None and row["status"] == "ok"


def test_points_choose_who_meets_whom_and_a_pair_decides_what_it_has_judged():
    backend = Scores()
    numbers = (19, 20, 21, 22, 23, 24)
    reply = post("/v1/rank", pair(*numbers, by="points_then_pairs"), backend).json()
    shares = [row["points"] for row in reply["points"]["candidates"]]
    assert len(set(shares)) == 6 and sum(backend.calls) == 6 + 5
    line = sorted(range(6), key=lambda i: -shares[i])
    met = {frozenset(each) for each in itertools.pairwise(line)}
    assert {frozenset((row["a"], row["b"])) for row in reply["judgments"]} == met
    wins = dict.fromkeys(range(6), 0)
    for a, b in itertools.combinations(range(6), 2):
        by = (lambda i: scripted.quality(scripted.colour_of(numbers[i]))) if {a, b} in met else shares.__getitem__
        wins[max(a, b, key=by)] += 1
    assert [row["win_rate"] for row in reply["candidates"]] == [wins[i] / 5 for i in range(6)]
    assert wins != {i: sum(mine < shares[i] for mine in shares) for i in range(6)}  # pairs have changed it
    both = post("/v1/rank", pair(*numbers, by="points_then_pairs", orders="both")).json()
    assert [row["win_rate"] for row in both["candidates"]] == [wins[i] / 5 for i in range(6)]
    assert {row["games"] for row in both["candidates"]} == {10} and len(both["judgments"]) == 10


def test_a_candidate_without_points_meets_nobody_and_the_others_count():
    def answer(row):
        colours = [scripted.seen(image) for image in row["images"]]
        if len(colours) == 2:
            return Completion(scripted.say(*colours), "stop")
        return Completion("no idea" if colours == [scripted.colour_of(2)] else say_points(*colours), "stop")

    reply = post("/v1/rank", pair(1, 2, 3, by="points_then_pairs"), Says(answer)).json()
    assert [row["status"] for row in reply["candidates"]] == ["ok", "unparsed", "ok"]
    assert [row["asked"] for row in reply["candidates"]] == [1, 0, 1]
    assert sorted(row["win_rate"] for row in reply["candidates"][::2]) == [0, 1]
    alone = post("/v1/rank", pair(1, 2, by="points"), Says(answer)).json()["candidates"]
    assert (alone[0]["status"], alone[0]["reason"]) == ("error", "no other candidate has points")


def test_a_pair_that_cannot_be_read_counts_for_nobody_though_both_have_points():
    def answer(row):
        colours = [scripted.seen(image) for image in row["images"]]
        return Completion("no idea" if len(colours) == 2 else say_points(*colours), "stop")

    reply = post("/v1/rank", pair(1, 2, by="points_then_pairs"), Says(answer)).json()
    assert [(row["status"], row["win_rate"], row["games"], row["asked"]) for row in reply["candidates"]] == [
        ("unparsed", None, 0, 1)
    ] * 2


@settings(max_examples=5, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 6), min_size=2, max_size=6),
    order=st.randoms(use_true_random=False),
    by=st.sampled_from(["points", "points_then_pairs"]),
)
def test_a_permuted_request_has_the_permuted_win_rates(numbers, order, by):
    turned = order.sample(numbers, len(numbers))

    async def work(http):
        replies = [(await http.post("/v1/rank", json=pair(*group, by=by))).json() for group in (numbers, turned)]
        return [
            sorted((n, row["win_rate"]) for n, row in zip(group, reply["candidates"], strict=True))
            for group, reply in zip((numbers, turned), replies, strict=True)
        ]

    there, back = run(work, Scores(), max_wait=0)
    assert there == back


# The client ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url():
    with LiveServer(Scores()) as address:
        yield address


def test_the_client_scores_one_picture_or_many(url):
    client = RewardClient(url)
    reply = client.score("image_generation", "one colour", images(3))
    assert reply["candidates"][0]["points"] == pytest.approx(share(3))
    assert asyncio.run(client.ascore("image_generation", "one colour", images(3))) == reply
    asked = [{"task": "image_generation", "prompt": "x", "candidates": images(n, n + 1)} for n in range(5)]
    found = [[row["points"] for row in each["candidates"]] for each in client.score_all(asked)]
    assert found == [[pytest.approx(share(n)), pytest.approx(share(n + 1))] for n in range(5)]
    with pytest.raises(RewardError, match=r"422: .*temperature above 0"):
        client.score("image_generation", "x", images(1), samples=2)


def test_the_server_says_what_the_judge_says_in_python(url, tmp_path):
    paths = []
    for number, image in zip((1, 2), images(1, 2), strict=True):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    own = Judge(Scores(), form="pointwise").score("image_generation", "one colour", paths)
    served = RewardClient(url).score("image_generation", "one colour", paths)["candidates"]
    assert [row["points"] for row in served] == [each.share for each in own]
    assert [row["dimensions"] for row in served] == [{d.name: d.scores[0] for d in each.dimensions} for each in own]
