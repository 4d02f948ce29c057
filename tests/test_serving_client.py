"""The Python client and the reward functions against a live server, and the server on the real tiny model."""

import asyncio
import base64
import io
import os
import socket
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.reward_server import LiveServer, Says, bench, best, pair, scripted
from unifiedreward_think.backends import Completion, Failure
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging.settings import JudgingArguments
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.serving.client import RewardClient, RewardError, data_url
from unifiedreward_think.serving.questions import Settings
from unifiedreward_think.serving.reward_fns import flow_grpo_reward, to_pictures, trl_reward
from unifiedreward_think.verdict import render

REPO = Path(__file__).parents[1]
NUMBERS = (3, 4, 5)


def images(*numbers):
    return [Image.new("RGB", (8, 8), f"#{scripted.colour_of(n)}") for n in numbers]


@pytest.fixture(scope="module")
def url():
    with LiveServer(scripted.ScriptedBackend()) as address:
        yield address


def rates(reply):
    return [row["win_rate"] for row in reply["candidates"]]


def test_sync_and_async_calls_say_the_same(url):
    client = RewardClient(url)
    first = client.rank("image_generation", "one colour", images(*NUMBERS), orders="both")

    async def work():
        return await client.arank("image_generation", "one colour", images(*NUMBERS), orders="both"), client.compare(
            "image_generation", "one colour", images(1, 2)
        )

    second, compared = asyncio.run(work())  # the blocking call works where a loop runs, too
    assert rates(first) == rates(second) and max(rates(first)) == rates(first)[best(*NUMBERS)] == 1
    assert compared["winner"] == best(1, 2)
    assert asyncio.run(client.acompare("image_generation", "one colour", images(1, 2))) == compared
    assert client.health()["status"] == "ok"


def test_every_form_of_a_picture_travels_unchanged(url, tmp_path):
    (image,) = images(9)
    image.save(tmp_path / "a.png")
    forms = [image, np.asarray(image), (tmp_path / "a.png").read_bytes(), tmp_path / "a.png", str(tmp_path / "a.png")]
    for form in forms:
        assert scripted.seen(Image.open(content_of(data_url(form)))) == scripted.colour_of(9)
    with pytest.raises(RewardError, match="a int is no picture"):
        data_url(3)
    with pytest.raises(RewardError, match=r"float32 array of shape \(3, 8, 8\) .* height x width x 3 bytes"):
        data_url(np.zeros((3, 8, 8), np.float32))


def content_of(address):
    return io.BytesIO(base64.b64decode(address.partition(",")[2]))


def test_a_refusal_is_raised_with_its_reason(url):
    with pytest.raises(RewardError, match=r"422: .*unknown_task|422"):
        RewardClient(url).rank("unknown_task", "", images(1, 2))


def test_a_server_that_is_away_is_an_error_after_the_retries():
    with pytest.raises(RewardError, match=r"no answer from the reward server at http://127\.0\.0\.1:9"):
        RewardClient("http://127.0.0.1:9", retries=0).rank("image_generation", "", images(1, 2))


def test_the_client_comes_back_when_the_server_is_full():
    tried = []

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            tried.append(self.headers.get("Authorization"))
            status, body = (200, b'{"winner": 1}') if len(tried) == 3 else (429, b"{}")
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = RewardClient(f"http://127.0.0.1:{server.server_port}", api_key="sesame", retries=2)
    assert client.compare("image_generation", "", images(1, 2)) == {"winner": 1}
    assert tried == ["Bearer sesame"] * 3
    server.shutdown()
    server.server_close()


def test_flow_grpo_gets_win_rates_within_each_prompt(url):
    reward = flow_grpo_reward(RewardClient(url), orders="both")
    prompts = ["kite", "boat", "kite", "boat", "kite"]
    numbers = (11, 12, 13, 14, 15)
    scores, info = reward(images(*numbers), prompts, [{}] * 5)
    kites, boats = [scores[0], scores[2], scores[4]], [scores[1], scores[3]]
    assert sorted(kites) == [0, 0.5, 1] and kites[best(11, 13, 15)] == 1
    assert sorted(boats) == [0, 1] and boats[best(12, 14)] == 1
    assert info == {"missing": 0, "reasons": [""] * 5}


def test_flow_grpo_batches_come_as_tensors_arrays_or_lists():
    arrays = np.stack([np.asarray(image) for image in images(21, 22)])
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255
    for batch in (list(arrays), arrays, tensor):
        assert [np.asarray(p).tolist() for p in to_pictures(batch)] == arrays.tolist()
    videos = to_pictures(tensor[:, None].repeat(1, 3, 1, 1, 1))
    assert [len(video) for video in videos] == [3, 3] and videos[0][2].tolist() == arrays[0].tolist()


def pixels(frames=None):
    """Two pictures, or videos, of 4 x 5 pixels with values from 0 to 255 in each picture, channels last."""
    values = np.arange(2 * (frames or 1) * 4 * 5 * 3, dtype=np.uint8).reshape(2, *([frames] if frames else []), 4, 5, 3)
    values[..., 0, 0, :2] = 0, 255
    return values


def first(values):
    return np.moveaxis(values, -1, -3)


SAME_PICTURES = {
    "bytes": pixels(),
    "bytes, channels first": first(pixels()),
    "floats": pixels() / 255,
    "floats, channels first": first(pixels()).astype("float32") / 255,
    "half precision": (pixels() / 255).astype("float16"),
    "tensor of bytes": torch.from_numpy(first(pixels()).copy()),
    "tensor of bytes, channels last": torch.from_numpy(pixels()),
    "tensor of floats": torch.from_numpy(first(pixels()) / 255),
    "tensor that is trained": torch.from_numpy(first(pixels()) / 255).requires_grad_(),
    "floats with an error of rounding": pixels() / 255 + 1e-6,
    "list of tensors": list(torch.from_numpy(first(pixels()).copy())),
    "tuple of arrays": tuple(pixels() / 255),
}


@pytest.mark.parametrize("kind", SAME_PICTURES)
def test_a_batch_is_the_same_pictures_whatever_its_type(kind):
    found = to_pictures(SAME_PICTURES[kind])
    assert [np.asarray(each).dtype for each in found] == [np.uint8, np.uint8]
    assert np.array_equal(np.stack(found), pixels())
    assert data_url(found[0]) == data_url(Image.fromarray(pixels()[0]))


def test_a_batch_in_bfloat16_keeps_its_three_digits():
    found = np.stack(to_pictures((torch.from_numpy(first(pixels())) / 255).bfloat16()))
    assert np.abs(found.astype(int) - pixels()).max() <= 1


@pytest.mark.parametrize("batch", [pixels(7), first(pixels(7)), torch.from_numpy(first(pixels(7)) / 255)])
def test_a_batch_of_videos_is_lists_of_frames(batch):
    found = to_pictures(batch)
    assert [len(video) for video in found] == [7, 7] and np.array_equal(np.array(found), pixels(7))
    assert np.array_equal(np.array(to_pictures(list(batch))), pixels(7))


def test_what_is_no_array_stays_as_it_is():
    picture = images(1)[0]
    assert to_pictures([picture, "a.png", b"png", [picture, "b.png"]]) == [picture, "a.png", b"png", [picture, "b.png"]]


UNTELLABLE = {
    "floats 0 to 255": (pixels().astype("float32"), "values from 0 to 255"),
    "floats -1 to 1": (pixels() / 127.5 - 1, "values from -1 to 1"),
    "a tensor -1 to 1": (torch.from_numpy(first(pixels()) / 127.5 - 1), "values from -1 to 1"),
    "NaN": (np.where(pixels() == 9, np.nan, 0.5), "not finite"),
    "infinity": (np.where(pixels() == 9, np.inf, 0.5), "not finite"),
    "whole numbers": (pixels().astype("int64"), "int64 values from 0 to 255"),
    "16 bits": (pixels().astype("uint16") * 257, "uint16 values from 0 to 65535"),
    "truth values": (pixels() > 7, "bool"),
    "complex numbers": (pixels() + 1j, "complex"),
    "grey": (pixels()[..., :1], "2 x 4 x 5 x 1"),
    "four channels": (np.concatenate([pixels(), pixels()[..., :1]], axis=-1), "2 x 4 x 5 x 4"),
    "one picture, not a batch": (pixels()[0], "4 x 5 x 3"),
    "a picture of three by three": (np.zeros((2, 3, 3, 3), "uint8"), "2 x 3 x 3 x 3"),
    "no picture": (np.zeros((0, 4, 5, 3)), "0 x 4 x 5 x 3"),
    "a list of these": (list(pixels().astype("float32")), "values from 0 to 255"),
    "a list of clips of these": ([list(pixels().astype("float32"))], "values from 0 to 255"),
}


@pytest.mark.parametrize("kind", UNTELLABLE)
def test_a_batch_whose_range_or_form_cannot_be_told_is_refused_with_what_was_found(kind):
    batch, message = UNTELLABLE[kind]
    with pytest.raises(RewardError, match=message):
        to_pictures(batch)


def test_a_reward_that_is_missing_is_never_made_up():
    with LiveServer(Says(lambda row: Failure("out of memory"))) as address:
        client = RewardClient(address)
        with pytest.raises(RewardError, match="2 of 2 candidates have no reward; the first: out of memory"):
            flow_grpo_reward(client)(images(1, 2), ["kite"] * 2, None)
        scores, info = flow_grpo_reward(client, missing=0.5)(images(1, 2), ["kite"] * 2, None)
        assert (scores, info["missing"]) == ([0.5, 0.5], 2)
        rewarded = trl_reward(client)(prompts=["Which?"] * 2, completions=["a", "b"], image=images(1, 1))
        assert rewarded == [None, None]


def test_a_candidate_alone_has_no_win_rate(url):
    with pytest.raises(RewardError, match=r"only one candidate for 'boat'"):
        flow_grpo_reward(RewardClient(url))(images(1, 2, 3), ["kite", "kite", "boat"], None)


def test_an_evaluation_of_one_image_a_prompt_gets_the_reward_for_what_is_missing(url):
    reward = flow_grpo_reward(RewardClient(url), missing=0.5)
    scores, info = reward(images(1, 2, 3), ["kite", "boat", "kite"], None)
    assert scores[1] == 0.5 and sorted([scores[0], scores[2]]) == [0, 1]
    assert info["missing"] == 1 and "needs the group" in info["reasons"][1] and info["reasons"][::2] == ["", ""]
    assert reward(images(4), ["sea"], None)[0] == [0.5]


def test_trl_ranks_the_answers_to_the_same_question_about_the_same_picture():
    asked = []

    def longer(row):
        texts = [part["text"] for part in row["prompt"][0]["content"] if part["text"]]
        asked.append([scripted.seen(image) for image in row["images"]])
        joined = "".join(texts)
        first = min((w for w in ("aa", "bbbb", "cccccc")), key=lambda w: joined.find(w) if w in joined else 10**9)
        second = next(w for w in ("aa", "bbbb", "cccccc") if w in joined and w != first)
        return Completion(render(1 if len(first) > len(second) else 2, [("Clarity", 5, 6)], noun="Answer"), "stop")

    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    said = [[{"role": "assistant", "content": text}] for text in ("aa", "bbbb", "cccccc", "aa", "bbbb")]
    pictures = [[image] for image in images(1, 1, 1, 2, 2)]
    with LiveServer(Says(longer)) as address:
        found = trl_reward(RewardClient(address))(prompts=[question] * 5, completions=said, images=pictures)
    assert found == [0, 0.5, 1, 0, 1]
    assert sorted(asked) == [[scripted.colour_of(1)]] * 3 + [[scripted.colour_of(2)]]


def test_the_openai_sdk_works_unchanged(url):
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    body = bench.chat_body(
        "a kite", [scripted.picture(1), scripted.picture(2)], load_prompts("cot")["image_generation"]
    )
    reply = client.chat.completions.create(**body, temperature=0)
    assert reply.choices[0].message.content == scripted.say(scripted.colour_of(1), scripted.colour_of(2))
    assert [model.id for model in client.models.list()] == ["UnifiedReward", "UnifiedReward-7b-v1.5"]


# The real tiny model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    from unifiedreward_think.backends.transformers import TransformersBackend

    model = str(REPO / "src/unifiedreward_think/toy/base")
    judging = JudgingArguments(prompts=str(REPO / "configs/toy/prompts"), max_new_tokens=48, frames=2)
    settings = Settings(judging.config())
    with LiveServer(TransformersBackend(model, dtype="float32", device="cpu", batch_size=16), settings) as address:
        yield RewardClient(address)


def test_the_tiny_model_says_over_http_what_it_says_to_the_judge(toy, tmp_path):
    from unifiedreward_think.judging.api import Judge

    for name, shade in (("a", (200, 30, 30)), ("b", (30, 30, 200))):
        Image.new("RGB", (64, 64), shade).save(tmp_path / f"{name}.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    prompts = str(REPO / "configs/toy/prompts")
    judge = Judge(str(REPO / "src/unifiedreward_think/toy/base"), prompts=prompts, orders="both", max_new_tokens=48)
    own = judge("image_generation", "a red circle", paths)
    reply = toy.compare("image_generation", "a red circle", paths, orders="both", reasoning=True)
    assert reply["judgments"][0]["reasoning"] == own.reasoning
    votes = [sum(row["winner"] == k for row in reply["judgments"]) for k in (0, 1)]
    assert votes == [own.votes["1"], own.votes["2"]] and reply["winner"] == (own.winner and own.winner - 1)


@pytest.mark.parametrize("task", ["image_generation", "video_generation", "image_understanding", "video_understanding"])
def test_the_tiny_model_ranks_candidates_of_every_task(toy, task):
    pictures = [Image.new("RGB", (64, 64), (80 * i, 40, 200 - 60 * i)) for i in range(3)]
    media = [pictures[:2] if task.startswith("video") else pictures[0]] if "understanding" in task else []
    candidates = ["red", "blue", "a circle"] if media else pictures
    if task == "video_generation":
        candidates = [[picture, picture] for picture in pictures]
    reply = toy.rank(task, "a red circle", candidates, media=media, orders="both", reasoning=True)
    assert len(reply["judgments"]) == 6 and not [row for row in reply["judgments"] if row["status"] == "error"]
    for row in reply["candidates"]:
        readable = [j for j in reply["judgments"] if j["winner"] is not None and row["index"] in (j["a"], j["b"])]
        assert row["games"] == len(readable)
        assert row["win_rate"] == (
            sum(j["winner"] == row["index"] for j in readable) / len(readable) if readable else None
        )


# What a user types ---------------------------------------------------------------------------------------------------


def serve(*arguments, **environment):
    return subprocess.run(
        ["bash", REPO / "scripts" / "serve.sh", *arguments],
        env={**os.environ, "DRY_RUN": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_script_starts_the_toy_model_a_model_vllm_or_a_front():
    assert "--prompts configs/toy/prompts" in serve().stdout
    assert serve("--model", "m", PORT="81").stdout.split()[3:] == ["--port", "81", "--model", "m"]
    assert "--backend server --server http://127.0.0.1:82/v1" in serve("front", VLLM_PORT="82").stdout
    said = serve("vllm", "m", "--dtype", "half", CUDA_VISIBLE_DEVICES="0,1").stdout
    assert said.startswith("vllm serve m --served-model-name UnifiedReward") and said.split()[-2:] == [
        "--dtype",
        "half",
    ]
    assert "--tensor-parallel-size 2" in said
    assert "usage: bash scripts/serve.sh vllm MODEL" in serve("vllm").stderr


@pytest.mark.parametrize("arguments", [[], ["front"], ["--model", "m", "--fetch-hosts", "pictures.example"]])
def test_every_argument_of_the_script_is_one_of_the_server(arguments):
    from unifiedreward_think.serving.__main__ import _parser

    words = serve(*arguments).stdout.split()
    args = _parser().parse_args(words[words.index("unifiedreward_think.serving") + 1 :])
    assert args.model and args.host == "127.0.0.1" and args.fetch_hosts == arguments[3:]


def test_other_machines_need_a_key(monkeypatch):
    from unifiedreward_think.serving.__main__ import KEY, main

    monkeypatch.delenv(KEY, raising=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "judge.example"):
        with pytest.raises(InputError, match=KEY):
            main(["--model", "m", "--host", host])


def test_a_port_in_use_is_told_before_a_model_is_loaded(monkeypatch):
    from unifiedreward_think.serving import __main__ as command

    monkeypatch.setattr(command, "set_up", lambda *_: pytest.fail("a model was loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*choose another --port"):
            command.main(["--model", "m", "--port", str(port)])


@pytest.mark.slow
def test_the_toy_server_starts_with_one_command_and_ends_when_told():
    script = ["bash", "-c", f'exec bash "{REPO}/scripts/serve.sh"']
    with tempfile.NamedTemporaryFile("w+") as log:
        child = subprocess.Popen(script, env={**os.environ, "PORT": "0"}, stderr=log)
        try:
            address = bench.listening(child, log)
            assert RewardClient(address).health()["status"] in ("ok", "degraded")
            assert len(httpx.post(f"{address}/v1/rank", json=pair(1, 2, 3), timeout=60).json()["candidates"]) == 3
        finally:
            child.terminate()
            child.wait(60)
        log.seek(0)
        assert "Finished server process" in log.read()


def test_the_schema_is_published(url):
    schema = httpx.get(f"{url}/openapi.json").json()
    assert {"/v1/compare", "/v1/rank", "/v1/score", "/v1/chat/completions", "/health", "/metrics"} <= schema[
        "paths"
    ].keys()
