"""The reward server over HTTP with a scripted judge: what it answers, and how it refuses, shares, limits and drains."""

import asyncio
import base64
import contextlib
import io
import json
import signal
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from PIL import Image

from helpers.reward_server import SETTINGS, LiveServer, Says, bench, best, pair, run, scripted, served
from unifiedreward_think.backends import BackendError, Completion, Failure
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.bounded import DECODERS
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import MediaError
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.serving.__main__ import _parser, make_app
from unifiedreward_think.serving.hosts import own_hosts
from unifiedreward_think.serving.limits import Limits


def post(path, body, *arguments, **options):
    return run(lambda http: http.post(path, json=body), *arguments, **options)


class Gated(scripted.ScriptedBackend):
    """A judge that answers `free` batches, and the others when it is told to go."""

    def __init__(self, free=0, **options):
        super().__init__(**options)
        self.free = free
        self.go = threading.Event()

    def complete(self, prompts, **options):
        found = super().complete(prompts, **options)
        assert len(self.calls) <= self.free or self.go.wait(60)
        return found

    async def busy(self):
        while not self.calls:
            await asyncio.sleep(0.02)


def test_a_pair_has_the_better_candidate_as_winner_wherever_it_stands():
    for numbers in ((1, 2), (2, 1), (7, 9)):
        reply = post("/v1/compare", pair(*numbers, orders="both", reasoning=True)).json()
        assert (reply["status"], reply["winner"], reply["agreement"]) == ("ok", best(*numbers), True)
        assert [row["shown_first"] for row in reply["judgments"]] == [0, 1]
        (score,) = reply["scores"]
        assert (score["name"], score["a"] > score["b"]) == ("Aesthetics", reply["winner"] == 0)
        assert (reply["margin"] > 0) == (reply["winner"] == 0)
        first, second = (scripted.colour_of(n) for n in numbers)
        assert f"saw {first} and {second}" in reply["judgments"][0]["reasoning"]
        assert f"saw {second} and {first}" in reply["judgments"][1]["reasoning"]


def test_reasoning_is_returned_on_request_only():
    (row,) = post("/v1/compare", pair(1, 2)).json()["judgments"]
    assert row["reasoning"] is None


def test_orders_that_disagree_have_no_winner_and_say_so():
    always_first = Says(lambda row: Completion("<think>x</think><answer>Image 1 is better</answer>", "stop"))
    reply = post("/v1/compare", pair(1, 2, orders="both"), always_first).json()
    assert (reply["winner"], reply["agreement"], reply["reason"]) == (None, False, "the two orders disagree")


FATES = {
    "unparsed": (Completion("no idea", "stop"), "no answer block"),
    "truncated": (Completion("<think>still th", "length"), "token limit"),
    "error": (Failure("CUDA out of memory"), "CUDA out of memory"),
}


@pytest.mark.parametrize("fate", FATES)
def test_what_cannot_be_read_has_a_status_and_a_reason_and_never_a_number(fate):
    answer, reason = FATES[fate]
    reply = post("/v1/compare", pair(1, 2, orders="both"), Says(lambda row: answer)).json()
    assert (reply["status"], reply["winner"], reply["margin"], reply["scores"]) == (fate, None, None, [])
    assert reason in reply["reason"]
    for row in post("/v1/rank", pair(1, 2, 3), Says(lambda row: answer)).json()["candidates"]:
        assert row["status"] == fate and reason in row["reason"] and row["asked"] == 2 and row["games"] == 0
        assert row["win_rate"] is None and row["score"] is None and row["score_low"] is None


def test_an_unreadable_game_counts_for_nobody_and_the_others_count():
    dark = scripted.colour_of(1)

    def answer(row):
        colours = [scripted.seen(image) for image in row["images"]]
        return Failure("lost") if dark in colours else Completion(scripted.say(*colours), "stop")

    reply = post("/v1/rank", pair(1, 2, 3, orders="both"), Says(answer)).json()
    assert [row["games"] for row in reply["candidates"]] == [0, 2, 2]
    assert [row["status"] for row in reply["candidates"]] == ["error", "ok", "ok"]
    assert sorted(row["win_rate"] for row in reply["candidates"][1:]) == [0, 1]


def test_win_rates_and_scores_follow_the_quality():
    numbers = list(range(20, 28))
    reply = post("/v1/rank", pair(*numbers, orders="both")).json()
    rank = sorted(range(8), key=lambda i: scripted.quality(scripted.colour_of(numbers[i])))
    rows = reply["candidates"]
    assert [rows[i]["win_rate"] for i in rank] == [k / 7 for k in range(8)]
    assert [rows[i]["score"] for i in rank] == sorted(row["score"] for row in rows)
    assert all(row["score_low"] < row["score"] < row["score_high"] for row in rows)
    assert len(reply["judgments"]) == 56 and rows[rank[7]]["dimensions"] == {"Aesthetics": 9}


@pytest.mark.parametrize(
    ("more", "games"),
    [
        ({}, 28),
        ({"orders": "both"}, 56),
        ({"schedule": "k_opponents", "opponents": 3}, 12),
        ({"schedule": "swiss"}, 16),
    ],
)
def test_a_schedule_decides_how_many_games_are_played(more, games):
    numbers = range(40, 48)
    reply = post("/v1/rank", pair(*numbers, **more)).json()
    assert len(reply["judgments"]) == games
    if more.get("schedule") == "swiss":
        top = max(reply["candidates"], key=lambda row: row["score"])
        assert top["index"] == best(*numbers) and top["win_rate"] == 1


TASKS = {
    "video_generation": {"candidates": [{"frames": [scripted.picture(n)] * 3} for n in (1, 2)]},
    "image_understanding": {
        "candidates": [{"text": "red"}, {"text": "blue"}],
        "media": [{"image": scripted.picture(1)}],
    },
    "video_understanding": {
        "candidates": [{"text": "red"}, {"text": "blue"}],
        "media": [{"frames": [scripted.picture(n) for n in range(12)]}],
    },
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_judged_by_its_own_prompt(task):
    rows = []

    def answer(row):
        rows.append(row)
        noun = "Video" if task == "video_generation" else "Answer"
        return Completion(f"<think>x</think><answer>{noun} 2 is better</answer>", "stop")

    reply = post("/v1/compare", {"task": task, "prompt": "{media_1}?", **TASKS[task], "orders": "both"}, Says(answer))
    assert reply.status_code == 200 and reply.json()["reason"] == "the two orders disagree"
    assert [len(row["images"]) for row in rows] == {"video_generation": [6] * 2, "image_understanding": [1] * 2}.get(
        task, [8] * 2
    )
    texts = ["".join(part["text"] or "" for part in row["prompt"][0]["content"]) for row in rows]
    assert all("{media_1}?" in text for text in texts)
    assert [part["type"] for part in rows[0]["prompt"][0]["content"]].count("image") == len(rows[0]["images"])
    if "understanding" in task:
        assert texts[0].index("red") < texts[0].index("blue") and texts[1].index("blue") < texts[1].index("red")
    if task == "video_understanding":  # 8 of 12 frames, both ends included
        colours = [scripted.seen(image) for image in rows[0]["images"]]
        assert colours[0] == scripted.colour_of(0) and colours[-1] == scripted.colour_of(11)


def test_a_chat_of_a_published_client_is_answered_under_its_model_name():
    backend = scripted.ScriptedBackend()
    asked = []
    complete = backend.complete
    backend.complete = lambda rows, **options: asked.append((rows, options)) or complete(rows, **options)
    template = load_prompts("cot")["image_generation"]
    body = bench.chat_body("a kite", [scripted.picture(1), scripted.picture(2)], template)
    body |= {"do_sample": False, "max_tokens": 4096, "temperature": 0.7}
    reply = post("/v1/chat/completions", body, backend).json()
    assert (reply["object"], reply["model"]) == ("chat.completion", "UnifiedReward")
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "stop" and choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == scripted.say(scripted.colour_of(1), scripted.colour_of(2))
    ((row,), options) = asked[0]
    assert options["sampling"] == Sampling(temperature=0.0, max_new_tokens=4096)
    text = "".join(part["text"] or "<image>" for part in row["prompt"][0]["content"])
    assert text == template.replace("{prompt}", "a kite").replace("{media_1}", "<image>").replace(
        "{media_2}", "<image>"
    )


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "gpt"}, 404, "'UnifiedReward'"),
        ({"tools": [{}]}, 400, "tools"),
        ({"max_tokens": 10**6}, 400, "limit is 8192"),
        ({"messages": []}, 422, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, 422, "image_url"),
    ],
)
def test_a_chat_that_cannot_be_answered_as_asked_is_refused(change, status, message):
    body = {"model": "UnifiedReward", "messages": [{"role": "user", "content": "Which?"}], "stream": False, **change}
    reply = post("/v1/chat/completions", body)
    assert reply.status_code == status and message in reply.json()["error"]["message"]


def test_a_chat_is_streamed_to_clients_that_ask_for_it():
    body = {"model": "UnifiedReward", "messages": [{"role": "user", "content": "Which?"}]}
    backend = Says(lambda row: Completion("<answer>Image 1 is better</answer>", "stop"))
    with LiveServer(backend) as url:
        judge = ServerBackend("UnifiedReward", server=f"{url}/v1")
        row = {"id": "x", "order": "ab", "prompt": [{"role": "user", "content": []}], "images": []}
        row["prompt"][0]["content"] = [{"type": "text", "text": "Which?"}]
        heard = []
        streamed = judge.stream(row, sampling=Sampling(), seed=0, on_text=heard.append)
        whole = httpx.post(f"{url}/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert streamed == Completion("<answer>Image 1 is better</answer>", "stop")
    assert heard == [streamed.text] and whole == streamed.text


def test_the_request_of_flow_grpo_is_answered_as_its_client_sends_it():
    content = [
        {"type": "image_url", "image_url": {"url": scripted.picture(1).replace("image/png", "image")}},
        {"type": "text", "text": "<image>\nAssign a score from 1 to 5 after 'Final Score:'."},
    ]
    body = {"model": "UnifiedReward-7b-v1.5", "messages": [{"role": "user", "content": content}], "temperature": 0}

    async def work(http):
        return await http.post("/v1/chat/completions", json=body, headers={"Authorization": "Bearer flowgrpo"})

    reply = run(work, Says(lambda row: Completion(f"Final Score: 4 {scripted.seen(row['images'][0])}", "stop")))
    assert reply.json()["choices"][0]["message"]["content"] == f"Final Score: 4 {scripted.colour_of(1)}"


def test_a_chat_whose_backend_fails_is_an_error_and_no_text():
    body = {"model": "UnifiedReward", "messages": [{"role": "user", "content": "Which?"}]}
    reply = post("/v1/chat/completions", body, Says(lambda row: Failure("out of memory")))
    assert reply.status_code == 502 and reply.json()["error"]["message"] == "out of memory"


def test_drawn_answers_differ_unless_a_seed_is_given():
    seeds = []

    class Seeds(scripted.ScriptedBackend):
        def complete(self, prompts, *, sampling, seeds):
            seen.extend(s for row in seeds for s in row)
            return [[Completion(str(row[0]), "stop")] for row in seeds]

    seen = seeds
    body = {"model": "UnifiedReward", "messages": [{"role": "user", "content": "Which?"}], "temperature": 1, "n": 3}

    async def work(http):
        return [
            [c["message"]["content"] for c in (await http.post("/v1/chat/completions", json=each)).json()["choices"]]
            for each in (body, body, {**body, "seed": 4}, {**body, "seed": 4})
        ]

    first, second, third, fourth = run(work, Seeds())
    assert len({*first, *second, *third}) == 9 and third == fourth and len(seeds) == 9


# Sharing, batching, waiting ------------------------------------------------------------------------------------------


def test_equal_requests_in_flight_are_judged_once_and_all_are_answered():
    backend = scripted.ScriptedBackend(seconds=0.1)

    async def work(http):
        replies = await asyncio.gather(*(http.post("/v1/compare", json=pair(1, 2)) for _ in range(20)))
        return [reply.json()["winner"] for reply in replies], (await http.get("/metrics")).text

    winners, metrics = run(work, backend)
    assert winners == [best(1, 2)] * 20 and sum(backend.calls) == 1
    assert 'shared_answers_total{how="in flight"} 19.0' in metrics


def test_questions_of_many_requests_share_batches():
    backend = scripted.ScriptedBackend(batch_size=16, seconds=0.02)

    async def work(http):
        await asyncio.gather(*(http.post("/v1/compare", json=pair(2 * i, 2 * i + 1)) for i in range(64)))

    run(work, backend, max_wait=0.05)
    assert sum(backend.calls) == 64 and max(backend.calls) == 16 and len(backend.calls) <= 10


def test_a_question_alone_waits_no_longer_than_the_bound():
    async def work(http):
        await http.get("/health")
        started = time.perf_counter()
        await http.post("/v1/compare", json=pair(1, 2))
        return time.perf_counter() - started

    assert run(work, max_wait=1.0) >= 1.0
    assert run(work, max_wait=0.0) < 1.0


def test_a_full_queue_is_refused_with_a_time_to_come_back_and_nothing_of_it_is_judged():
    backend = Gated(batch_size=4)

    async def work(http):
        first = asyncio.create_task(http.post("/v1/rank", json=pair(*range(8))))
        await backend.busy()
        refused = await http.post("/v1/rank", json=pair(*range(10, 18)))
        backend.go.set()
        return await first, refused

    first, refused = run(work, backend, max_queue=30)
    assert first.status_code == 200 and sum(backend.calls) == 28
    assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60


def test_a_deadline_makes_errors_of_what_is_late_and_keeps_the_rest():
    backend = Gated(batch_size=4, free=1)

    async def work(http):
        reply = (await http.post("/v1/rank", json=pair(*range(4), orders="both", deadline=1))).json()
        backend.go.set()
        return reply

    rows = run(work, backend)["judgments"]
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["error"] * 8
    assert all("no answer within the deadline" in row["reason"] for row in rows[4:])
    assert sum(backend.calls) == 8  # the third batch was in the queue, and nobody waits for it any more


def test_what_was_judged_after_the_deadline_is_there_when_the_client_comes_back():
    backend = Gated()

    async def work(http):
        late = (await http.post("/v1/compare", json=pair(1, 2, deadline=0.5))).json()
        backend.go.set()
        for _ in range(250):  # on a machine so slow that the question never reached a batch, the second asks it
            if "batch_size_count 1.0" in (await http.get("/metrics")).text:
                break
            await asyncio.sleep(0.02)
        return late, (await http.post("/v1/compare", json=pair(1, 2, deadline=5))).json()

    late, there = run(work, backend)
    assert (late["status"], there["status"], sum(backend.calls)) == ("error", "ok", 1)


def test_a_question_that_breaks_the_backend_fails_alone():
    class Fragile(scripted.ScriptedBackend):
        def complete(self, prompts, **options):
            if any(scripted.seen(image) == scripted.colour_of(5) for row in prompts for image in row["images"]):
                raise ValueError("image features and image tokens do not match")
            return super().complete(prompts, **options)

    rows = post("/v1/rank", pair(*range(8)), Fragile()).json()["judgments"]
    assert {(row["status"], 5 in (row["a"], row["b"])) for row in rows} == {("ok", False), ("error", True)}
    assert all("do not match" in row["reason"] for row in rows if row["status"] == "error")


def test_a_backend_that_is_gone_is_asked_once_a_batch():
    class Gone(scripted.ScriptedBackend):
        def complete(self, prompts, **options):
            self.calls.append(len(prompts))
            raise BackendError("no server answers")

    backend = Gone()
    rows = post("/v1/rank", pair(*range(4)), backend).json()["judgments"]
    assert [row["reason"] for row in rows] == ["no server answers"] * 6 and backend.calls == [6]


def test_a_chat_whose_pictures_come_too_slowly_is_refused_at_the_deadline(monkeypatch):
    async def slow(self, address):
        await asyncio.sleep(30)

    monkeypatch.setattr("unifiedreward_think.serving.fetch.Fetcher.__call__", slow)
    body = bench.chat_body("a kite", ["https://slow.example/a.png", scripted.picture(2)], "{media_1}{media_2}{prompt}")
    settings = replace(SETTINGS, limits=Limits(deadline=0.2))
    reply = post("/v1/chat/completions", body, settings=settings, fetch_hosts=["slow.example"])
    assert reply.status_code == 504 and "deadline" in reply.json()["error"]["message"]


def test_what_a_client_that_leaves_has_asked_is_not_judged():
    backend = Gated(batch_size=1)
    with LiveServer(backend) as url, httpx.Client() as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post(f"{url}/v1/rank", json=pair(*range(8)), timeout=1)
        while "clients_left_total 1.0" not in http.get(f"{url}/metrics").text:
            time.sleep(0.02)
        backend.go.set()
    assert backend.calls == [1]


def test_a_client_that_leaves_takes_nothing_from_another_with_the_same_question():
    backend = Gated(batch_size=1)
    with LiveServer(backend) as url, httpx.Client() as http, ThreadPoolExecutor(1) as thread:
        other = thread.submit(httpx.post, f"{url}/v1/rank", json=pair(*range(5)), timeout=60)
        asyncio.run(backend.busy())
        with pytest.raises(httpx.ReadTimeout):
            http.post(f"{url}/v1/rank", json=pair(*range(5)), timeout=0.5)
        while "clients_left_total 1.0" not in http.get(f"{url}/metrics").text:
            time.sleep(0.02)
        backend.go.set()
        rows = other.result().json()["judgments"]
    assert {row["status"] for row in rows} == {"ok"} and sum(backend.calls) == 10


def test_a_server_told_to_stop_answers_what_is_in_flight():
    backend = Gated(batch_size=1)
    with ThreadPoolExecutor(1) as thread:
        live = LiveServer(backend)
        with live as url:
            asking = thread.submit(httpx.post, f"{url}/v1/rank", json=pair(*range(4)), timeout=60)
            asyncio.run(backend.busy())
            live.server.should_exit = True
            time.sleep(0.3)  # it stops listening, and waits for the request
            backend.go.set()
        assert {row["status"] for row in asking.result().json()["judgments"]} == {"ok"}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_drain_gives_up_what_the_backend_hangs_on_and_names_how_many(caplog):
    backend = Gated(batch_size=2)

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            http = await stack.enter_async_context(served(backend, drain_seconds=0.3))
            asking = asyncio.create_task(http.post("/v1/rank", json=pair(*range(4))))  # 6 questions
            await backend.busy()
            begun = time.monotonic()
            await stack.aclose()
            return await asking, time.monotonic() - begun

    try:
        reply, seconds = asyncio.run(main())
    finally:
        backend.go.set()
    assert seconds < 50 and backend.calls == [2]  # the backend would go on for 60
    assert {row["reason"] for row in reply.json()["judgments"]} == {"the server stopped before the backend answered"}
    assert "gave up 6 questions: no answer within the 0.3 s to drain" in caplog.text


def test_a_drain_waits_for_a_long_queue_of_batches_that_are_each_short():
    backend = scripted.ScriptedBackend(batch_size=1, seconds=0.2)

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            http = await stack.enter_async_context(served(backend, drain_seconds=30))
            asking = asyncio.create_task(http.post("/v1/rank", json=pair(*range(4))))
            while not backend.calls:
                await asyncio.sleep(0.02)
            await stack.aclose()
            return await asking

    assert {row["status"] for row in asyncio.run(main()).json()["judgments"]} == {"ok"} and len(backend.calls) == 6


HANGING = """
import sys
import time
from unifiedreward_think.judging import settings
from unifiedreward_think.serving import __main__ as command

class Hangs:
    model, batch_size, settings = "hangs", 4, {}

    def complete(self, prompts, **options):
        print("asked", file=sys.stderr, flush=True)
        time.sleep(600)

settings.make_backend = lambda args, **_: Hangs()
command.main(["--port", "0", "--drain-seconds", "1"])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_though_its_backend_hangs(number, tmp_path):
    with (tmp_path / "log").open("w+") as log:
        child = subprocess.Popen([sys.executable, "-c", HANGING], stderr=log, stdout=log)
        try:
            url = bench.listening(child, log)
            with ThreadPoolExecutor(1) as thread:
                asking = thread.submit(httpx.post, f"{url}/v1/compare", json=pair(1, 2), timeout=60)
                while "asked" not in (tmp_path / "log").read_text():
                    time.sleep(0.05)
                child.send_signal(number)
                assert child.wait(30) != 0
                assert asking.exception() or asking.result().is_error
        finally:
            child.kill()
            child.wait()
    assert "gave up 1 questions" in (tmp_path / "log").read_text()


def test_hundreds_of_requests_at_once_get_each_its_own_answer():
    with LiveServer(scripted.ScriptedBackend(batch_size=64)) as url:
        seconds, wrong = asyncio.run(bench.storm(url, 300, 100))
    assert len(seconds) == 300 and wrong == []


def test_the_storm_notices_a_mixed_up_answer():
    swap = Says(lambda row: Completion(scripted.say(*(scripted.seen(i) for i in row["images"][::-1])), "stop"))
    with LiveServer(swap) as url:
        _, wrong = asyncio.run(bench.storm(url, 4, 2))
    assert len(wrong) == 4 and all("mixed up" in problem for problem in wrong)


# Health and metrics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (Completion("<think>x</think><answer>Image 1 is better</answer>", "stop"), "ok", 200),
        (Completion("mumble", "stop"), "degraded", 200),
        (Failure("the GPU fell off"), "error", 503),
    ],
)
def test_health_is_that_of_a_real_judgment(answer, status, code):
    backend = Says(lambda row: answer)

    async def work(http):
        return [await http.get("/health") for _ in range(3)]

    replies = run(work, backend)
    assert [reply.status_code for reply in replies] == [code] * 3
    assert {reply.json()["status"] for reply in replies} == {status} and backend.calls == [1]


def test_an_old_canary_is_judged_anew_and_not_remembered():
    backend = Says(lambda row: Completion("<think>x</think><answer>Image 1 is better</answer>", "stop"))

    async def work(http):
        return [await http.get("/health") for _ in range(3)]

    run(work, backend, replace(SETTINGS, canary_seconds=-1))
    assert backend.calls == [1, 1, 1]


def test_a_backend_that_hangs_is_not_healthy():
    backend = Gated()

    async def work(http):
        reply = await http.get("/health")
        backend.go.set()
        return reply

    reply = run(work, backend, replace(SETTINGS, canary_deadline=1.5))
    assert reply.status_code == 503 and "no answer within the deadline of 1.5 s" in reply.json()["reason"]


def test_a_server_whose_decoders_are_stuck_is_not_healthy(monkeypatch):
    def broken(*_, **__):
        raise MediaError("picture: decoding it takes more than 1.0 s; save it anew, as PNG")

    monkeypatch.setattr(DECODERS, "open", broken)
    backend = scripted.ScriptedBackend()
    reply = run(lambda http: http.get("/health"), backend)
    assert (reply.status_code, reply.json()["status"]) == (503, "error") and backend.calls == []
    assert "pictures are not decoded: picture: decoding it takes" in reply.json()["reason"]
    go = threading.Event()
    monkeypatch.setattr(DECODERS, "open", lambda *_, **__: go.wait(30))

    async def work(http):
        reply = await http.get("/health")
        go.set()
        return reply

    stuck = run(work, settings=replace(SETTINGS, canary_deadline=0.2))
    assert stuck.status_code == 503 and "nothing within the deadline of 0.2 s" in stuck.json()["reason"]


def test_metrics_count_requests_and_judgments():
    async def work(http):
        await http.post("/v1/rank", json=pair(1, 2, 3))
        await http.get("/no/such/path")
        return (await http.get("/metrics")).text

    text = run(work)
    for line in (
        'unifiedreward_requests_total{path="/v1/rank",status="200"} 1.0',
        'unifiedreward_requests_total{path="other",status="404"} 1.0',
        'unifiedreward_judgments_total{status="ok",task="image_generation"} 3.0',
        'unifiedreward_media_total{cache="miss"} 3.0',
        'unifiedreward_held{unit="pixels"} 0.0',
        "unifiedreward_queue 0.0",
    ):
        assert line in text


# What is refused -----------------------------------------------------------------------------------------------------


def png(width=8, height=8):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return bytearray(buffer.getvalue())


def url(content, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(bytes(content)).decode()}"


def bomb(side):
    """A few bytes that declare a picture of side x side pixels."""
    content = png()
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return url(content)


SMALL = Limits(
    body_bytes=200_000, json_depth=8, json_skeleton=4000, medium_bytes=50_000, pixels=10_000, request_pixels=15_000,
    frames=4, media=3, candidates=4, prompt_chars=100, deadline=5,
)  # fmt: skip
IMAGES = {
    "a path": ("/etc/passwd", 422, "expected data:image"),
    "a file address": ("file:///etc/passwd", 422, "expected data:image"),
    "an address": ("https://example.com/a.png", 422, "fetches nothing"),
    "no base64": ("data:image/png;base64,%%%", 422, "not valid base64"),
    "no picture": (url(b"GIF but not really"), 422, "no picture of the formats"),
    "a cut picture": (url(png(50, 50)[:-40]), 422, "not a readable image"),
    "a large picture": (url(png(101, 100)), 413, "101x100 pixels"),
    "a bomb": (bomb(60_000), 422, "not a readable picture"),
    "a smaller bomb": (bomb(9_000), 413, "9000x9000 pixels"),
    "a thread": (url(png(2000, 1)), 422, "too narrow"),
    "many bytes": (url(b"0" * 50_010), 413, "50000 bytes"),
    "an SVG": (url(b"<svg/>", "svg+xml"), 422, "no picture of the formats"),
    "a TIFF": (url(b"II*\0" + bytes(40), "tiff"), 422, "no picture of the formats"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", IMAGES)
def test_media_that_cannot_be_used_are_refused_by_name(case):
    source, status, reason = IMAGES[case]
    backend = scripted.ScriptedBackend()
    body = pair(1, 2)
    body["candidates"][1] = {"image": source}
    reply = post("/v1/compare", body, backend, replace(SETTINGS, limits=SMALL))
    message = reply.json()["error"]["message"]
    assert reply.status_code == status and reason in message and backend.calls == []
    assert "candidates[1].image" in message or case == "an address"


def refused(change, settings=replace(SETTINGS, limits=SMALL)):  # noqa: B008
    reply = post("/v1/rank", {**pair(1, 2), **change}, scripted.ScriptedBackend(), settings)
    return reply.status_code, reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"candidates": pair(*range(5))["candidates"]}, 422, "the limit is 4"),
        ({"candidates": pair(1)["candidates"]}, 422, "at least 2"),
        ({"candidates": [{"frames": [scripted.picture(1)]}] * 2}, 422, "takes images"),
        ({"task": "video_generation", "candidates": [{"frames": [scripted.picture(1)] * 5}] * 2}, 422, "5 frames"),
        ({"task": "image_understanding"}, 422, "understanding tasks need"),
        ({"media": [{"image": scripted.picture(1)}]}, 422, "generation tasks have none"),
        ({"candidates": [{"image": url(png(90, 90))}, {"image": url(png(90, 91))}]}, 413, "15000 pixels"),
        ({"prompt": "x" * 101}, 413, "100 characters"),
        ({"prompt": "x" * 250_000}, 413, "200000 bytes"),
        ({"schedule": "k_opponents"}, 422, "opponents"),
        ({"opponents": 2}, 422, "opponents"),
        ({"rounds": 2}, 422, "rounds"),
        ({"deadline": -1}, 422, "deadline"),
        ({"task": "poetry"}, 422, "task"),
        ({"surprise": 1}, 422, "surprise"),
        ({"candidates": [{"sound": ""}, {"image": ""}]}, 422, "'image', 'frames' or 'text'"),
        ({"media": [[[[[[[[]]]]]]]]}, 400, "deeper than 8"),
        ({"media": [[]] * 2000}, 400, "4000 bytes"),
        ({"task": "image_understanding", "media": [{"image": scripted.picture(1)}] * 4}, 413, "the limit is 3"),
    ],
)
def test_a_request_over_a_limit_or_out_of_shape_is_refused(change, status, reason):
    found, message = refused(change)
    assert found == status and reason in message
    assert len(message) < 600  # what was sent is not sent back


def test_a_body_without_a_length_is_cut_off_at_the_limit():
    sent = []

    async def endless():
        while True:
            sent.append(1)
            yield b" " * 10_000

    reply = run(
        lambda http: http.post("/v1/rank", content=endless(), headers={"Content-Type": "application/json"}),
        settings=replace(SETTINGS, limits=SMALL),
    )
    assert reply.status_code == 413 and len(sent) <= 25


def test_json_in_utf_16_is_refused_before_it_is_parsed():
    deep = '{"\u2200":' + "[" * 500 + "]" * 500 + "}"
    for content in (deep.encode("utf-16-le"), json.dumps(pair(1, 2)).encode("utf-32")):
        reply = run(
            lambda http, content=content: http.post(
                "/v1/rank", content=content, headers={"Content-Type": "application/json"}
            ),
        )
        assert reply.status_code == 400 and "send it in UTF-8" in reply.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1,", b'"\\', b"\xff", b"nul"])
def test_what_is_no_json_is_refused(content):
    reply = run(
        lambda http: http.post("/v1/rank", content=content, headers={"Content-Type": "application/json"}),
    )
    assert reply.status_code in (400, 422) and reply.json()["error"]["message"]


def test_a_picture_sent_as_a_form_or_plain_text_is_refused():
    reply = run(lambda http: http.post("/v1/rank", content=b"{}", headers={"Content-Type": "text/plain"}))
    assert reply.status_code == 422


def test_all_requests_together_hold_no_more_than_they_may():
    length = len(json.dumps(pair(1, 2)))
    for budget in ({"flying_pixels": 150}, {"flying_bytes": length * 3 // 2}):
        backend = Gated()

        async def work(http, backend=backend):
            slow = asyncio.create_task(http.post("/v1/compare", json=pair(1, 2)))
            await backend.busy()
            busy = await http.post("/v1/compare", json=pair(5, 6))
            backend.go.set()
            return busy, await slow, await http.get("/metrics")

        busy, slow, metrics = run(work, backend, replace(SETTINGS, limits=Limits(**budget)))
        assert (slow.status_code, busy.status_code, busy.headers["retry-after"]) == (200, 429, "1")
        assert 'held{unit="pixels"} 0.0' in metrics.text and 'held{unit="bytes"} 0.0' in metrics.text


def test_the_pictures_of_a_batch_that_runs_count_after_their_request_has_ended():
    backend = Gated()

    async def held(http):
        return next(line for line in (await http.get("/metrics")).text.splitlines() if 'held{unit="pixels"}' in line)

    async def work(http):
        late = await http.post("/v1/compare", json=pair(1, 2, deadline=0.3))
        during = await held(http)
        backend.go.set()
        for _ in range(200):
            await asyncio.sleep(0.02)
            if (after := await held(http)) != during:
                break
        return late.json()["status"], during, after

    status, during, after = run(work, backend)
    assert status == "error" and during.endswith(" 128.0") and after.endswith(" 0.0")


def test_the_answers_of_a_chat_together_have_a_limit():
    body = bench.chat_body("kite", [scripted.picture(1), scripted.picture(2)], load_prompts("cot")["image_generation"])
    settings = replace(SETTINGS, limits=Limits(chat_tokens=400))
    said = [
        post("/v1/chat/completions", {**body, "n": n, "max_tokens": 100}, scripted.ScriptedBackend(), settings)
        for n in (4, 5)
    ]
    assert [reply.status_code for reply in said] == [200, 400]
    assert said[1].json()["error"]["message"] == "n x max_tokens: 500; the limit is 400"


def test_a_question_without_room_in_the_model_is_refused_and_one_of_many_is_named():
    too_long = "40000 tokens and 4096 to be written are more than the 32768 that the model was made for"

    def answer(row):
        colours = [scripted.seen(image) for image in row["images"]]
        long = scripted.colour_of(3) in colours or not colours
        return Failure(too_long, refused=True) if long else Completion(scripted.say(*colours), "stop")

    backend = Says(answer)
    for body in (pair(3, 1), pair(3, 1, orders="both")):
        refusal = post("/v1/compare", body, backend)
        assert refusal.status_code == 422 and refusal.json()["error"]["message"] == too_long
    chat = {"model": "UnifiedReward", "messages": [{"role": "user", "content": "Which?"}]}
    assert post("/v1/chat/completions", chat, backend).status_code == 422
    ranked = post("/v1/rank", pair(1, 2, 3), backend).json()
    assert [one["status"] for one in ranked["candidates"]] == ["ok", "ok", "error"]
    assert ranked["candidates"][2]["reason"] == too_long


def test_a_page_whose_name_was_made_to_point_here_is_refused():
    hosts = own_hosts("127.0.0.1", ["judge.example"])

    async def work(http):
        named = {}
        for host in ("127.0.0.1:8080", "LOCALHOST", "[::1]:9", "judge.example", "evil.example:8080", "", "127.0.0.1.x"):
            reply = await http.post("/v1/compare", json=pair(1, 2), headers={"Host": host})
            named[host] = reply.status_code
        return named, await http.get("/health", headers={"Host": "evil.example"}), await http.get("/metrics")

    named, health, metrics = run(work, hosts=hosts)
    assert list(named.values()) == [200] * 4 + [421] * 3
    assert health.status_code == 421 and health.json()["error"]["type"] == "invalid_request_error"
    assert metrics.status_code == 421  # it came from http://test


@pytest.mark.parametrize(("host", "heard"), [(b"localhost:1", True), (b"evil.example", False)])
def test_a_socket_of_a_page_is_closed_under_a_foreign_name_and_a_start_needs_none(host, heard):
    from unifiedreward_think.serving.hosts import HostCheck

    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope["type"])

    async def send(message):
        sent.append(message["type"])

    check = HostCheck(app, hosts=own_hosts("127.0.0.1", []))
    for scope in ({"type": "lifespan"}, {"type": "websocket", "headers": [(b"host", host)]}):
        asyncio.run(check(scope, None, send))
    assert (reached, sent) == ((["lifespan", "websocket"], []) if heard else (["lifespan"], ["websocket.close"]))


def test_the_command_goes_by_the_names_of_this_machine_only(monkeypatch):
    made = {}
    monkeypatch.setattr(
        "unifiedreward_think.judging.settings.make_backend", lambda args, **_: scripted.ScriptedBackend()
    )
    monkeypatch.setattr("unifiedreward_think.serving.app.create_app", lambda *_, **options: made.update(options))
    for host, more, found in [
        ("127.0.0.1", [], ["localhost", "127.0.0.1", "[::1]"]),
        ("0.0.0.0", [], []),
        ("0.0.0.0", ["a.example"], ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", "a.example"]),
    ]:
        make_app(_parser().parse_args(["--model", "m", "--host", host, *(["--allow-hosts", *more] if more else [])]))
        assert made["hosts"] == found


def test_the_frames_shown_of_a_video_do_not_limit_those_that_are_sent(monkeypatch):
    made = []
    monkeypatch.setattr(
        "unifiedreward_think.judging.settings.make_backend", lambda args, **_: scripted.ScriptedBackend()
    )
    monkeypatch.setattr(
        "unifiedreward_think.serving.app.create_app", lambda _, settings, **options: made.append(settings)
    )
    make_app(_parser().parse_args(["--model", "m", "--frames", "4", "--limit-candidates", "3"]))
    assert made[0].judging.frames.frames == 4 and made[0].limits == Limits(candidates=3)


def test_a_key_is_needed_everywhere_but_for_health():
    async def work(http):
        good = {"Authorization": "Bearer sesame"}
        tried = [("POST", "/v1/compare"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/health")]
        denied = [
            (await http.request(*each, headers=headers)).status_code
            for each in tried
            for headers in ({}, {"Authorization": "Bearer wrong"})
        ]
        return denied, (await http.post("/v1/compare", json=pair(1, 2), headers=good)).status_code

    denied, allowed = run(work, api_key="sesame")
    assert denied == [401] * 6 + [200] * 2 and allowed == 200


def test_no_request_opens_a_file():
    opened = []
    watched = []
    template = load_prompts("cot")["image_generation"]

    def hook(event, arguments):
        if watched and event in ("open", "os.mkdir", "os.rename", "os.remove", "shutil.copyfile", "tempfile.mkstemp"):
            opened.append((event, arguments[0]))

    sys.addaudithook(hook)

    async def work(http):
        await http.post("/v1/compare", json=pair(1, 2))  # loads what is imported late
        await http.get("/health")
        watched.append(1)
        for source in ("/etc/passwd", "../../secret.png", "file:///etc/hosts", scripted.picture(77)):
            for task in ("image_generation", "video_generation"):
                kind = {"image": source} if task == "image_generation" else {"frames": [source, source]}
                body = {"task": task, "prompt": source[:40], "candidates": [kind, {**kind}]}
                await http.post("/v1/rank", json=body)
        body = bench.chat_body("/etc/passwd", ["/etc/passwd", "file:///x"], template)
        await http.post("/v1/chat/completions", json=body)
        await http.get("/../../etc/passwd")
        watched.clear()

    run(work)
    own = [path for event, path in opened if isinstance(path, str) and path.endswith((".py", ".pyc"))]
    assert [found for found in opened if found[1] not in own] == []
