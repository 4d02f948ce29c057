"""The server backend against a server that misbehaves on purpose, and against the real `transformers serve`."""

import asyncio
import base64
import io
import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from helpers.servers import GOOD, FakeServer, caption, free_port, prompt, reply, serving, transformers_serve
from unifiedreward_think.backends import BackendError, Completion, Failure, Video, parts
from unifiedreward_think.backends.parts import data_url
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.backends.server_replies import read_reply
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.media import Clip, FrameSampling, open_image
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.verdict import render

REPO = Path(__file__).parents[1]


def backend(server, **changes):
    return ServerBackend("judge", server=server.url, **{"max_retries": 0, "timeout": 20, **changes})


def ask(asked, count=1, samples=1, **sampling):
    prompts = [prompt(f"r{i}") for i in range(count)]
    seeds = [[100 * i + sample for sample in range(samples)] for i in range(count)]
    return asked.complete(prompts, sampling=Sampling(**sampling), seeds=seeds)


@pytest.fixture
def records(tmp_path):
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    media = ((str(tmp_path / "red.png"),), (str(tmp_path / "blue.png"),))
    return [
        PreferenceRecord(id=f"r{i}", task="image_generation", prompt=f"picture {i}", media=media, preferred=1)
        for i in range(12)
    ]


def protocol(**changes):
    frames = FrameSampling(frames=4, cache=Path("unused"))
    return JudgingConfig(
        **{"prompts": load_prompts("cot"), "style": "cot", "sampling": Sampling(), "frames": frames, **changes}
    )


def told(rows):
    return [replace(row, seconds=0.0) for row in rows]


def winner_of_caption(body, nth):
    """Different pairs get different verdicts, at different speeds."""
    number = int(caption(body).split("picture ")[1].split()[0].strip('".,'))
    time.sleep(0.002 * (number % 5))
    return 200, {}, reply(render(1 + number % 2, [("Aesthetics", 9 - 8 * (number % 2), 5)], noun="Image"))


def test_the_server_sees_the_pixels_that_a_local_model_sees(tmp_path):
    picture = Image.effect_noise((37, 23), 90)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.convert("RGB").save(tmp_path / "turned.jpg", exif=turned)
    picture.convert("P").save(tmp_path / "palette.gif")
    Image.merge("RGBA", [picture] * 4).save(tmp_path / "alpha.png")
    picture.save(tmp_path / "grey.png")
    paths = sorted(tmp_path.iterdir())
    with serving() as server:
        asked = {**prompt(images=len(paths)), "images": [open_image(path) for path in paths]}
        backend(server).complete([asked], sampling=Sampling(), seeds=[[0]])
        parts = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url"] * 4 + ["text"]
    for path, part in zip(paths, parts, strict=False):
        kind, _, content = part["image_url"]["url"].partition(";base64,")
        sent = Image.open(io.BytesIO(base64.b64decode(content)))
        assert (kind, sent.format, sent.mode) == ("data:image/png", "PNG", "RGB")
        assert (sent.size, sent.tobytes()) == (open_image(path).size, open_image(path).tobytes())


def test_a_request_says_how_to_sample_and_nothing_else():
    with serving() as server:
        ask(backend(server), max_new_tokens=7)
        ask(backend(server, stop=True), temperature=0.7, top_p=0.9)
        greedy, drawn = ({k: v for k, v in body.items() if k != "messages"} for body in server.bodies)
    assert greedy == {"model": "judge", "temperature": 0.0, "top_p": 1.0, "max_tokens": 7, "seed": 0}
    assert drawn == {
        "model": "judge",
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 2048,
        "seed": 0,
        "stop": ["</answer>"],
        "include_stop_str_in_output": True,
    }


def test_each_sample_is_a_request_with_its_own_seed_and_pictures_are_encoded_once_a_prompt(monkeypatch):
    encoded = []
    with serving(lambda body, nth: (200, {}, reply(str(body["seed"])))) as server:
        asked = backend(server)
        monkeypatch.setattr(
            "unifiedreward_think.backends.parts.data_url", lambda image: encoded.append(image) or data_url(image)
        )
        answers = ask(asked, count=3, samples=4, temperature=1.0)
        big = asked.complete([prompt()], sampling=Sampling(), seeds=[[2**64 - 1]])
    assert [[a.text for a in mine] for mine in answers] == [[str(100 * i + k) for k in range(4)] for i in range(3)]
    assert len(encoded) == 3 * 2 + 2 and big[0][0].text == str(2**31 - 1)


@pytest.mark.parametrize("limit", [1, 4])
def test_no_more_requests_are_in_flight_than_allowed(limit):
    def slow(body, nth):
        time.sleep(0.05)
        return 200, {}, reply()

    with serving(slow) as server:
        ask(backend(server, concurrency=limit), count=3, samples=4)
        assert server.most == limit and len(server.bodies) == 12


def test_completions_end_at_the_answer_tag_and_keep_their_finish_reason():
    said = [("a</answer> b</answer>", "length"), ("cut", "length"), ("done", "stop"), ("", "stop")]
    with serving(lambda body, nth: (200, {}, reply(*said[nth - 1]))) as server:
        asked = backend(server, concurrency=1)
        answers = [ask(asked)[0][0] for _ in said]
    assert answers == [
        Completion("a</answer>", "stop"),
        Completion("cut", "length"),
        Completion("done", "stop"),
        Completion("", "stop"),
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "no chat completion"),
        ("<html>Bad gateway</html>", "<html>Bad gateway"),
        ('{"choices": [{"message"', "JSONDecodeError"),
        ("[]", "TypeError"),
        ("null", "TypeError"),
        ("{}", "KeyError"),
        ('{"choices": []}', "IndexError"),
        ('{"choices": null}', "TypeError"),
        ('{"choices": [{"message": null, "finish_reason": "stop"}]}', "AttributeError"),
        (reply(None).decode(), "no text"),
        (reply(["a"]).decode(), "no text"),
        (reply("a", "content_filter").decode(), "content_filter"),
        (reply("a", None).decode(), "None"),
        (reply("answer", reasoning_content="thoughts").decode(), "without a reasoning parser"),
    ],
)
def test_a_reply_that_is_no_completion_is_a_failure_with_a_reason(body, reason):
    found = read_reply(body)
    assert isinstance(found, Failure) and reason in found.reason and len(found.reason) < 400


FAULTS = {
    "500": ((500, {}, b"CUDA out of memory"), "the server answered 500: CUDA out of memory"),
    "400": ((400, {}, b'{"error": "no such model"}'), "answered 400"),
    "429": ((429, {}, b"slow down"), "answered 429"),
    "garbage": ((200, {}, b"\xff\xfe no json"), "no chat completion"),
    "text": ((200, {"Content-Type": "text/html"}, b"<html>"), "no chat completion"),
    "half a JSON": ((200, {}, reply()[:40]), "no chat completion"),
    "half a body": ((200, {"Content-Length": "4000"}, reply()[:40]), "connection to the server was lost"),
    "no choices": ((200, {}, b'{"choices": []}'), "no chat completion"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_failing_item_has_its_reason_in_its_row_and_the_next_run_tries_it_again(fault, records, tmp_path):
    answer, reason = FAULTS[fault]
    broken = True

    def respond(body, nth):
        return answer if broken and "picture 3" in caption(body) else winner_of_caption(body, nth)

    output = tmp_path / "judgments.jsonl"
    with serving(respond) as server:
        rows = judge(records, backend(server, batch_size=4), protocol(), output)
        assert [row.record_id for row in rows if row.error] == ["r3"]
        assert reason in rows[3].error and rows[3].completion is None and not rows[3].correct
        broken, before = False, len(server.bodies)
        again = judge(records, backend(server, batch_size=4), protocol(), output)
        assert len(server.bodies) == before + 1
    assert not any(row.error for row in again) and told(again[:3] + again[4:]) == told(rows[:3] + rows[4:])
    assert list(load_judgments(output).values()) == again  # in the order of the records, too


@pytest.mark.parametrize("status", [429, 500, 503])
def test_only_the_sdk_tries_again_and_as_often_as_asked(status):
    def respond(body, nth):
        return (status, {"retry-after-ms": "1"}, b"later") if nth < 3 else (200, {}, reply())

    with serving(respond) as server:
        assert ask(backend(server, max_retries=2))[0][0].text == GOOD and len(server.bodies) == 3
    with serving(lambda body, nth: (status, {"retry-after-ms": "1"}, b"later")) as server:
        assert str(status) in ask(backend(server, max_retries=2))[0][0].reason and len(server.bodies) == 3


def test_a_slow_answer_times_out():
    def sleepy(body, nth):
        time.sleep(0.5 if nth == 1 else 0)
        return 200, {}, reply()

    with serving(sleepy) as server:
        slow, quick = ask(backend(server, timeout=0.2, concurrency=1), count=2)
    assert "no answer within 0.2 s" in slow[0].reason and quick[0].text == GOOD


# Streaming


def pieces(text=GOOD, finish="stop", size=7, **first):
    """A streamed chat completion, as bytes of server-sent events."""
    deltas = [{"content": text[i : i + size]} for i in range(0, len(text), size)]
    chunks = [{"delta": delta, "finish_reason": None} for delta in [{"role": "assistant", **first}, *deltas]]
    chunks += [{"delta": {}, "finish_reason": finish}]
    events = [{"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, **c}]} for c in chunks]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in [*events, {"choices": []}]) + "data: [DONE]\n\n"


EVENTS = {"Content-Type": "text/event-stream"}


def streaming(text=GOOD, finish="stop", **first):
    return lambda body, nth: (
        (200, EVENTS, pieces(text, finish, **first).encode())
        if body.get("stream")
        else (200, {}, reply(text, finish, **first))
    )


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"text": GOOD + " and so on, for a long time"},
        {"text": "<think>\nstill th", "finish": "length"},
        {"text": "", "finish": "stop"},
        {"reasoning_content": "thoughts"},
        {"text": "<think>", "finish": "content_filter"},
    ],
)
def test_what_is_streamed_is_what_is_completed_at_once(said):
    with serving(streaming(**said)) as server:
        judge = backend(server)
        heard = []
        sampling = Sampling(temperature=0.5, top_p=0.9, max_new_tokens=32)
        streamed = judge.stream(prompt(), sampling=sampling, seed=5, on_text=heard.append)
        (whole,) = judge.complete([prompt()], sampling=sampling, seeds=[[5]])
        first, second = server.bodies
    assert [streamed] == whole and first == {**second, "stream": True}
    assert isinstance(streamed, Failure) or "".join(heard) == streamed.text
    assert len(heard) > 3 or len(said.get("text", GOOD)) < 30


def test_stopping_a_stream_closes_its_connection():
    closed = threading.Event()

    def endless(handler, *_):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(pieces("on and on").partition("data: [DONE]")[0].encode())
        except ConnectionError:
            closed.set()

    def stop(piece):
        raise InterruptedError

    with serving() as server:
        judge = backend(server)
        server.http.RequestHandlerClass.send = endless
        with pytest.raises(InterruptedError):
            judge.stream(prompt(), sampling=Sampling(), seed=0, on_text=stop)
        assert closed.wait(20)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((500, {}, b"out of memory"), "answered 500: out of memory"),
        ((200, EVENTS, b'data: {"error": {"message": "engine died"}}\n\n'), "engine died"),
        ((200, {**EVENTS, "Content-Length": "9999"}, pieces()[:60].encode()), "connection to the server was lost"),
        ((200, EVENTS, pieces("<think>still th", finish=None).encode()), "finish reason None"),
    ],
)
def test_a_stream_that_breaks_off_is_a_failure_with_its_reason(answer, reason):
    with serving(lambda body, nth: answer) as server:
        found = backend(server).stream(prompt(), sampling=Sampling(), seed=0, on_text=lambda piece: None)
    assert isinstance(found, Failure) and reason in found.reason


def test_a_picture_of_many_pairs_is_encoded_once(monkeypatch):
    encoded = []
    show = parts.image_part
    pictures = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(4)]
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    prompts = [{**prompt(f"{a}{b}"), "images": [pictures[a], pictures[b]]} for a, b in pairs]
    with serving() as server:
        asked = backend(server)
        monkeypatch.setattr(parts, "image_part", lambda image: encoded.append(image) or show(image))
        answers = asked.complete(prompts, sampling=Sampling(), seeds=[[0]] * 12)
        shown = [
            [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
            for body in server.bodies
        ]
    assert len(answers) == 12 and len(encoded) == 4
    urls = [data_url(picture) for picture in pictures]
    assert sorted(shown) == sorted([urls[a], urls[b]] for a, b in pairs)


def test_a_server_that_is_down_is_found_before_anything_is_judged():
    with pytest.raises(BackendError, match=r"no server answers.*start it first"):
        ServerBackend("judge", server=f"http://127.0.0.1:{free_port()}/v1")


@pytest.mark.parametrize(("status", "reason"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "lack /v1")])
def test_a_refusal_is_found_before_anything_is_judged(status, reason):
    with serving(models=status) as server, pytest.raises(BackendError, match=reason):
        backend(server)


def test_a_server_that_cannot_list_its_models_is_used_all_the_same():
    with serving(models=500) as server:
        assert ask(backend(server))[0][0].text == GOOD


def test_a_server_that_dies_ends_the_run_and_nothing_is_lost_or_judged_twice(records, tmp_path):
    output = tmp_path / "judgments.jsonl"
    server = FakeServer(winner_of_caption)
    asked = backend(server, batch_size=4)
    asked.complete = dying(server, asked.complete)
    with pytest.raises(BackendError, match="no server answers"):
        judge(records, asked, protocol(), output)
    before = load_judgments(output)
    assert len(before) == 8 and not any(row.error for row in before.values())
    with serving(winner_of_caption) as other:
        rows = judge(records, backend(other, batch_size=4), protocol(), output)
        assert len(other.bodies) == 4
    kept = [row for row in rows if (row.record_id, row.order, row.sample) in before]
    assert sorted(map(str, told(kept))) == sorted(map(str, told(before.values())))
    assert not any(row.error for row in rows)


def dying(server, complete):
    """Stop the server before the third batch."""
    calls = []

    def wrapped(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            server.stop()
        return complete(*args, **options)

    return wrapped


def test_results_do_not_depend_on_the_number_of_requests_in_flight(records, tmp_path):
    files = []
    for limit in (1, 4):
        with serving(winner_of_caption) as server:
            output = tmp_path / f"{limit}.jsonl"
            sampling = protocol(sampling=Sampling(temperature=1.0), samples=2, orders="both")
            files.append(told(judge(records, backend(server, concurrency=limit), sampling, output)))
            assert told(load_judgments(output).values()) == files[-1]
    assert files[0] == files[1] and len(files[0]) == 48


def test_it_works_where_an_event_loop_runs_already():
    async def notebook(server):
        return ask(backend(server))

    with serving() as server:
        assert asyncio.run(notebook(server))[0][0].text == GOOD


def test_a_missing_openai_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(BackendError, match=r"pip install -e '\.\[serve\]'"):
        ServerBackend("judge")


def test_native_video_travels_as_its_own_bytes_with_the_number_of_frames(tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"any bytes")
    clip = Clip(film, [], [0, 3, 6, 9], 10, 4.0)
    content = [{"type": "video", "text": None}, {"type": "text", "text": "Which?"}]
    row = {"id": "r", "order": "ab", "prompt": [{"role": "user", "content": content}], "images": []}
    with serving() as server:
        asked = backend(server)
        assert asked.native_video == "file"
        asked.complete([{**row, "videos": [Video(clip, [])]}], sampling=Sampling(), seeds=[[1]])
        asked.complete([prompt()], sampling=Sampling(), seeds=[[1]])
    sent, plain = server.bodies
    url = sent["messages"][0]["content"][0]["video_url"]["url"]
    assert url == "data:video/mp4;base64," + base64.b64encode(b"any bytes").decode()
    assert sent["media_io_kwargs"] == {"video": {"num_frames": 4}} and "media_io_kwargs" not in plain


@pytest.mark.slow
def test_a_real_server_and_a_local_model_give_the_same_greedy_text(models, toy_data, tmp_path):
    from unifiedreward_think.backends.transformers import TransformersBackend
    from unifiedreward_think.data.formats.loading import load_records

    model = str(models["qwen2_5_vl"])
    pairs = load_records([str(toy_data / "heldout.jsonl")]).rows  # one of each task
    asked = protocol(
        prompts=load_prompts("cot", path=REPO / "configs/toy/prompts"),
        sampling=Sampling(max_new_tokens=24),
        frames=FrameSampling(frames=8, cache=tmp_path / "frames"),
        orders="both",
    )
    local = judge(pairs, TransformersBackend(model, dtype="float32", device="cpu"), asked, tmp_path / "local.jsonl")
    with transformers_serve(model, tmp_path) as url:
        remote = judge(pairs, ServerBackend(model, server=url, max_retries=0), asked, tmp_path / "remote.jsonl")
        wrong = ServerBackend("no-such-model", server=url, max_retries=0)
        (failed,) = judge(pairs[:1], wrong, protocol(), tmp_path / "wrong.jsonl")
    assert not any(row.error for row in remote) and len({row.completion for row in local}) > 2
    # The server strips the text, and a random model likes white space.
    assert [row.completion.strip() for row in remote] == [row.completion.strip() for row in local]
    assert [row.finish_reason for row in remote] == [row.finish_reason for row in local]
    assert failed.error.startswith("the server answered 400")
