"""Every option of the reward server does what its help says, in a server that was started with it, by its parser."""

import contextlib
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest

from helpers.processes import free_port
from helpers.reward_server import LiveServer, pair, scripted
from unifiedreward_think.backends import Completion
from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.serving.__main__ import _parser, make_app

ROOT = Path(__file__).parents[1]
PAIR = pair(1, 2)
VIDEO = [scripted.picture(n) for n in range(12)]
VIDEOS = {"task": "video_generation", "prompt": "?", "candidates": [{"frames": VIDEO}, {"frames": VIDEO[::-1]}]}
REMOTE = {**PAIR, "candidates": [{"image": "https://else.example/a.png"}] * 2}
TWO_MEDIA = {"task": "image_understanding", "prompt": "x", "media": [{"image": VIDEO[0]}, {"image": VIDEO[1]}]}
TWO_MEDIA |= {"candidates": [{"text": "a"}, {"text": "b"}]}
CHAT = {"model": "UnifiedReward", "messages": [{"role": "user", "content": "x"}], "n": 2, "max_tokens": 9, "seed": 1}


class Records(scripted.ScriptedBackend):
    """A judge that keeps what it was asked, and does `before` it answers."""

    def __init__(self):
        super().__init__(batch_size=4)
        self.before, self.rows, self.sampling, self.seeds = (lambda: None), [], None, []

    def complete(self, prompts, *, sampling, seeds):
        self.before()
        self.rows += prompts
        self.sampling = sampling
        self.seeds += seeds
        return [[Completion("<think>x</think><answer>Image 1 is better</answer>", "stop")] for _ in prompts]

    @property
    def text(self):
        return "".join(part["text"] or "" for part in self.rows[-1]["prompt"][0]["content"])


@contextlib.contextmanager
def started(monkeypatch, *words):
    """A client of a server that is started with some words, its judge, and what it was asked to make of a judge."""
    backend, made = Records(), []
    monkeypatch.setattr(
        "unifiedreward_think.judging.settings.make_backend", lambda args, **_: made.append(args) or backend
    )
    app = make_app(_parser().parse_args(["--model", "m", *map(str, words)]))
    with LiveServer(app=app) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield http, backend, made[0]


def refused(http, body=PAIR, path="/v1/compare"):
    reply = http.post(path, json=body)
    return reply.status_code, reply.json()["error"]["message"]


def judged(http, body=PAIR):
    reply = http.post("/v1/compare", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def names(http, backend):
    chat = {"messages": [{"role": "user", "content": "Which?"}]}
    served = [row["id"] for row in http.get("/v1/models").json()["data"]]
    answered = [http.post("/v1/chat/completions", json={**chat, "model": name}) for name in ("judge", "UnifiedReward")]
    assert served == ["judge", "other"] and [reply.status_code for reply in answered] == [200, 404]


def allow_hosts(http, backend):
    replies = [http.post("/v1/compare", json=PAIR, headers={"Host": host}) for host in ("a.example", "b.example")]
    assert [reply.status_code for reply in replies] == [200, 421]


def fetch_hosts(http, backend):
    assert refused(http, REMOTE) == (422, "pictures are fetched by https from the hosts of the allow-list only")


def max_wait(http, backend):
    began = time.perf_counter()
    judged(http)
    assert time.perf_counter() - began >= 0.4


def max_queue(http, backend):
    asked, go = threading.Event(), threading.Event()
    backend.before = lambda: asked.set() or go.wait(60)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(http.post, "/v1/rank", json=pair(*range(5)))  # 10 questions, 4 of them in a batch
        assert asked.wait(60)
        assert http.post("/v1/compare", json=pair(8, 9)).status_code == 429
        go.set()
        assert first.result().status_code == 200


def parallel(http, backend):
    both = threading.Barrier(2, timeout=60)
    backend.before = lambda: both.wait()
    assert http.post("/v1/rank", json=pair(*range(5), schedule="k_opponents", opponents=2)).status_code == 200  # 4 + 1


def canary_deadline(http, backend):
    backend.before = lambda: time.sleep(0.5)
    reply = http.get("/health")
    assert reply.status_code == 503 and "deadline of 0.1 s" in reply.json()["reason"]


def limit_deadline(http, backend):
    backend.before = lambda: time.sleep(0.6)
    assert "no answer within the deadline of 0." in judged(http)["reason"]
    assert "no answer within the deadline of 0." in judged(http, {**pair(3, 4), "deadline": 50})["reason"]


def frames(http, backend):
    judged(http, VIDEOS)
    seen = [scripted.seen(image) for image in backend.rows[0]["images"]]
    assert len(seen) == 6 and {seen[0], seen[2]} == {scripted.colour_of(0), scripted.colour_of(11)}


def shows(style, layout):
    def probe(http, backend):
        judged(http)
        template = load_prompts(style, layout=layout)["image_generation"]
        assert all(piece in backend.text for piece in re.split(r"\{\w+\}", template))

    return probe


def prompts(http, backend):
    judged(http)
    assert backend.text.startswith("Mine: one colour")


def samples(**changes):
    def probe(http, backend):
        judged(http)
        assert backend.sampling == Sampling(**changes)

    return probe


def over(status, said, body=PAIR, path="/v1/compare"):
    def probe(http, backend):
        found, message = refused(http, body, path)
        assert found == status and said in message

    return probe


def asks(prompts, said=None):
    """A request of Flow-Factory is answered, or the error says so much."""

    def probe(http, backend):
        bare = [scripted.picture(n).partition(",")[2] for n in range(len(prompts))]
        reply = http.post("/compute", json={"prompt": prompts, "image": bare}).json()
        assert (said in reply["error"]) if said else len(reply["rewards"]) == len(prompts)

    return probe


def once(http, backend):
    asks(["a", "a"])(http, backend)
    assert len(backend.rows) == 1


OWN = "Mine: {prompt} {media_1} {media_2} Say <answer>Image 1 is better</answer> or <answer>Image 2 is better</answer>."
PROBES = {
    "--allow-hosts": (["a.example"], allow_hosts),
    "--names": (["judge", "other"], names),
    "--fetch-hosts": (["pictures.example"], fetch_hosts),
    "--max-wait": ([0.4], max_wait),
    "--max-queue": ([6], max_queue),
    "--parallel": ([2], parallel),
    "--canary-deadline": ([0.1], canary_deadline),
    "--compute-by": (
        ["points"],
        asks(["a", "b"], "2 of 2 candidates have no reward; the first: answer is not a score"),
    ),
    "--compute-orders": (["one"], once),
    "--compute-group": ([3], asks(["a", "a"], "2 candidates, where a group has 3")),
    "--limit-deadline": ([0.3], limit_deadline),
    "--limit-candidates": ([2], over(422, "3 of them; the limit is 2", pair(1, 2, 3), "/v1/rank")),
    "--limit-scores": ([2], over(422, "candidates x samples: 3; the limit is 2", pair(1, 2, 3), "/v1/score")),
    "--limit-media": ([1], over(413, "2 of them; the limit is 1", TWO_MEDIA)),
    "--limit-chat-tokens": ([17], over(400, "n x max_tokens: 18", CHAT, "/v1/chat/completions")),
    "--limit-frames": ([11], over(422, "12 frames; the limit is 11", VIDEOS)),
    "--limit-body-bytes": ([99], over(413, "99 bytes")),
    "--limit-medium-bytes": ([20], over(413, "20 bytes")),
    "--limit-pixels": ([63], over(413, "the limit is 63")),
    "--limit-request-pixels": ([127], over(413, "more than 127 pixels")),
    "--limit-prompt-chars": ([9], over(413, "over 9 characters")),
    "--limit-json-depth": ([2], over(400, "deeper than 2")),
    "--limit-json-skeleton": ([9], over(400, "more than 9 bytes")),
    "--style": (["direct"], shows("direct", "one_line")),
    "--layout": (["three_line"], shows("cot", "three_line")),
    "--frames": ([3], frames),
    "--temperature": ([0.5], samples(temperature=0.5)),
    "--top-p": ([0.5], samples(top_p=0.5)),
    "--max-new-tokens": ([5], samples(max_new_tokens=5)),
}


@pytest.mark.parametrize("option", PROBES)
def test_an_option_does_what_its_help_says(option, monkeypatch):
    words, probe = PROBES[option]
    with started(monkeypatch, option, *words) as (http, backend, _):
        probe(http, backend)
        backend.before = lambda: None  # a canary at the end waits for nobody


def test_prompts_of_ones_own_are_shown(monkeypatch, tmp_path):
    (tmp_path / "image_generation.txt").write_text(OWN)
    with started(monkeypatch, "--prompts", tmp_path) as (http, backend, _):
        prompts(http, backend)


def drawn(monkeypatch, option, number):
    """The candidates shown first and the seeds of some pairs."""
    with started(monkeypatch, option, number) as (http, backend, _):
        firsts = [judged(http, pair(n, n + 1))["judgments"][0]["shown_first"] for n in range(8)]
        return firsts, backend.seeds


def test_a_seed_decides_the_draws_and_an_order_seed_who_is_shown_first(monkeypatch):
    (firsts, seeds), (same, others) = (drawn(monkeypatch, "--seed", n) for n in (0, 1))
    assert firsts == same and not {s for (s,) in seeds} & {s for (s,) in others}
    (firsts, _), (others, _) = (drawn(monkeypatch, "--order-seed", n) for n in (0, 1))
    assert firsts != others and 0 < sum(firsts) < 8


BACKEND = {
    "--backend": ("server", "server"), "--model": ("n", "n"), "--batch-size": ("3", 3),
    "--batch-tokens": ("99", 99),
    "--dtype": ("float32", "float32"),
    "--attn-implementation": ("eager", "eager"), "--device": ("cpu", "cpu"), "--min-pixels": ("9", 9),
    "--max-pixels": ("99", 99), "--cache-mib": ("0", 0), "--server": ("http://a/v1", ["http://a/v1"]),
    "--concurrency": ("2", 2), "--timeout": ("0.5", 0.5), "--max-retries": ("0", 0), "--stop": ("true", True),
    "--max-images": ("5", 5), "--tensor-parallel-size": ("2", 2), "--max-model-len": ("77", 77),
}  # fmt: skip


def test_the_options_of_the_backend_reach_it(monkeypatch):
    words = [word for option, (text, _) in BACKEND.items() for word in (option, text)]
    with started(monkeypatch, *words) as (http, _, asked):
        assert judged(http)["status"] == "ok"
    assert asdict(asked) == {option[2:].replace("-", "_"): value for option, (_, value) in BACKEND.items()}
    with started(monkeypatch) as (_, _, asked):
        assert asked == BackendArguments(model="m")


PROCESS = """
import sys
from unifiedreward_think.backends import Completion
from unifiedreward_think.judging import settings
from unifiedreward_think.serving import __main__ as command

class First:
    model, batch_size, settings = "first", 4, {}

    def complete(self, prompts, **options):
        return [[Completion("<think>x</think><answer>Image 1 is better</answer>", "stop")] for _ in prompts]

settings.make_backend = lambda args, **_: First()
command.main(sys.argv[1:])
"""


def start(port, log, *words):
    told = ["--model", "m", "--host", "127.0.0.2", "--port", str(port), "--drain-seconds", "5", *words]
    return subprocess.Popen([sys.executable, "-c", PROCESS, *told], stdout=log, stderr=log, cwd=ROOT)


def test_a_command_listens_where_it_is_told_and_is_quiet_if_asked(tmp_path):
    ports = {"loud": free_port(), "quiet": free_port()}
    with contextlib.ExitStack() as stack:
        logs = {name: stack.enter_context((tmp_path / name).open("w")) for name in ports}
        words = {"loud": [], "quiet": ["--quiet"]}
        children = [start(port, logs[name], *words[name]) for name, port in ports.items()]
        try:
            for port, child in zip(ports.values(), children, strict=True):
                while not answers(f"http://127.0.0.2:{port}"):
                    assert child.poll() is None
                    time.sleep(0.1)
                assert not answers(f"http://127.0.0.1:{port}")
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait(30)
    assert {name: "GET /health" in (tmp_path / name).read_text() for name in ports} == {"loud": True, "quiet": False}


def answers(url):
    try:
        return httpx.get(f"{url}/health").json()["status"] == "ok"
    except httpx.ConnectError:
        return False


# Held elsewhere: --drain-seconds by tests/test_serving.py, which lets a backend hang.
ELSEWHERE = {"--host", "--port", "--quiet", "--drain-seconds", "--prompts", "--seed", "--order-seed", "--help"}


def test_no_option_is_left_out_and_the_documents_name_none_that_is_not_there():
    options = {flag for action in _parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert options == {*PROBES, *BACKEND, *ELSEWHERE}
    text = (ROOT / "docs" / "reward_server.md").read_text()
    named = set(re.findall(r"`(--[a-z-]+[a-z])[ `]", re.sub(r"^\|.*", "", text, flags=re.M)))
    assert named <= options, named - options
