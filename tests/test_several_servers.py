"""Several servers of one model: requests are spread over them, and one that is gone costs nothing but its time."""

import json
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress

import httpx
import pytest
import yaml
from PIL import Image

from helpers.judging import make_records, protocol, told
from helpers.processes import PATIENCE, checked, free_port, started
from helpers.servers import FakeServer, caption, prompt, reply, serving
from unifiedreward_think.backends import BackendError, Completion, Failure, addresses
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.training import parsing, rejection_sampling
from unifiedreward_think.verdict import render

EVENTS = {"Content-Type": "text/event-stream"}


def backend(*servers, **changes):
    urls = [getattr(server, "url", server) for server in servers]
    return ServerBackend("judge", server=urls, **{"max_retries": 0, "timeout": 20, **changes})


@pytest.fixture
def records(tmp_path):
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    return make_records(tmp_path, 12)


def by_seed(body, nth):
    """An answer that the seed decides, whichever server gives it."""
    time.sleep(0.01)
    return 200, {}, reply(render(1 + body["seed"] % 2, [("Aesthetics", 9, body["seed"] % 9)], noun="Image"))


def test_requests_are_spread_and_all_samples_of_a_prompt_go_to_one_server():
    with serving(by_seed) as a, serving(by_seed) as b:
        prompts, seeds = [prompt(f"r{i}") for i in range(16)], [[4 * i + k for k in range(4)] for i in range(16)]
        answers = backend(a, b, concurrency=4).complete(prompts, sampling=Sampling(temperature=1.0), seeds=seeds)
        asked = [Counter(caption(body) for body in server.bodies) for server in (a, b)]
        assert max(a.most, b.most) <= 8 <= a.most + b.most  # requests in flight, 4 for each server
    assert all(isinstance(answer, Completion) for mine in answers for answer in mine)
    assert not asked[0].keys() & asked[1].keys() and set((asked[0] + asked[1]).values()) == {4}
    assert min(len(one) for one in asked) >= 4


def test_a_slow_server_gets_fewer_requests():
    def slow(body, nth):
        time.sleep(0.3)
        return 200, {}, reply()

    with serving(slow) as a, serving(by_seed) as b:
        asked = backend(a, b, concurrency=2)
        asked.complete([prompt(f"r{i}") for i in range(24)], sampling=Sampling(), seeds=[[0]] * 24)
        assert 0 < len(a.bodies) < len(b.bodies) / 2 and len(a.bodies) + len(b.bodies) == 24


def test_a_server_that_dies_in_the_middle_leaves_its_requests_to_the_others(records, tmp_path, capsys):
    config = protocol(samples=2, orders="both")
    with serving(by_seed) as alone:
        whole = told(judge(records, backend(alone), config, tmp_path / "whole.jsonl"))
    dying = FakeServer()

    def last_words(body, nth):
        """Nobody listens any more when the third request breaks off in the middle of its answer."""
        if nth >= 3:
            dying.http.socket.close()
            return 200, {"Content-Length": "999"}, b"{"
        return by_seed(body, nth)

    dying.respond = last_words
    with serving(by_seed) as other:
        asked = backend(dying, other, concurrency=2, batch_size=4)
        assert told(judge(records, asked, config, tmp_path / "spread.jsonl")) == whole
        assert len(whole) == 48 and len(dying.bodies) < 8 and len(other.bodies) >= 42
    (line,) = capsys.readouterr().err.replace("\r", "\n").split("; the other servers answer meanwhile")[:-1]
    assert f"{dying.url}: no server answers" in line


def test_a_server_that_is_back_is_asked_again(monkeypatch):
    monkeypatch.setattr(addresses, "LEFT_OUT", 0.2)
    servers = addresses.Addresses(["a", "b"])
    servers.leave_out("a", "gone")

    def two():
        with servers.nearest() as first, servers.nearest() as second:
            return {first, second}

    assert two() == {"b"}
    time.sleep(0.25)
    assert two() == {"a", "b"}
    servers.leave_out("a", "gone")
    servers.leave_out("b", "gone")
    assert two() == {"a", "b"}  # someone must be asked


def test_a_refusal_is_no_reason_to_ask_another_server(capsys):
    with serving(lambda body, nth: (400, {}, b"too long")) as a, serving() as b:
        ((answer,),) = backend(a, b).complete([prompt()], sampling=Sampling(), seeds=[[0]])
        assert len(a.bodies) == 1 and not b.bodies
    assert answer == Failure("the server answered 400: too long") and "meanwhile" not in capsys.readouterr().err


def test_servers_that_are_all_gone_end_the_run_and_others_go_on(records, tmp_path):
    output, config = tmp_path / "judgments.jsonl", protocol(samples=2)
    a, b = FakeServer(by_seed), FakeServer(by_seed)
    asked = backend(a, b, batch_size=4)
    complete, calls = asked.complete, []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            a.stop()
            b.stop()
        return complete(*arguments, **options)

    asked.complete = dying
    with pytest.raises(BackendError, match=rf"{a.url}: no server answers.*{b.url}: no server answers"):
        judge(records, asked, config, output)
    before = load_judgments(output)
    assert len(before) == 8 and not any(row.error for row in before.values())
    with serving(by_seed) as c, serving(by_seed) as d, serving(by_seed) as e:
        rows = judge(records, backend(c, d, e), config, output)
        assert len(c.bodies) + len(d.bodies) + len(e.bodies) == 16
        whole = judge(records, backend(e), config, tmp_path / "whole.jsonl")
    assert told(rows) == told(whole)


def piece(text, finish=None):
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "judge"}
    chunk["choices"] = [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]
    return f"data: {json.dumps(chunk)}\n\n".encode()


@pytest.mark.parametrize("heard_before", [False, True])
def test_a_stream_goes_to_another_server_before_its_first_piece_alone(heard_before):
    dying, heard = FakeServer(), []

    def leave(body, nth):
        dying.http.socket.close()
        return 200, {**EVENTS, "Content-Length": "9999"}, piece("x") if heard_before else b""

    dying.respond = leave
    with serving(lambda body, nth: (200, EVENTS, piece("y</answer>", "stop") + b"data: [DONE]\n\n")) as other:
        asked = backend(dying, other)
        found = asked.stream(prompt(), sampling=Sampling(), seed=0, on_text=heard.append)
        assert len(dying.bodies) == 1 and len(other.bodies) == (not heard_before)
    if heard_before:
        assert heard == ["x"] and "connection to the server was lost" in found.reason
    else:
        assert heard == ["y</answer>"] and found == Completion("y</answer>", "stop")


# --- before anything is judged ---


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ({"id": "judge", "root": "outputs/a"}, {"id": "judge", "root": "outputs/b"}, r"outputs/a, .* outputs/b;"),
        ({"id": "judge", "root": "outputs/a"}, {"id": "other", "root": "outputs/a"}, r"outputs/a, .* none;"),
        ({"id": "judge", "root": "outputs/a"}, {"id": "judge", "root": "outputs/a"}, ""),
        ({"id": "judge"}, {"id": "judge"}, ""),
    ],
)
def test_servers_of_different_models_are_refused(first, second, found):
    with serving(cards=[first]) as a, serving(cards=[second, {"id": "more"}]) as b:
        if found:
            with pytest.raises(BackendError, match=f"do not serve one model as 'judge'.*{found}"):
                backend(a, b)
        else:
            assert backend(a, b).settings["backend"] == "server"


def test_every_server_must_be_there_and_is_asked_where_it_puts_pictures(capsys):
    gone = f"http://127.0.0.1:{free_port()}/v1"
    with serving() as a, serving() as b:
        with pytest.raises(BackendError, match=f"{gone}: no server answers"):
            backend(a, gone)
        assert backend(a, b).settings == {"backend": "server", "placement": "unverified"}
        said = capsys.readouterr().err
        assert a.url in said and b.url in said

    def tokens(text):
        return 200, {}, json.dumps({"tokens": list(text.encode())}).encode()

    def texts(parts):
        return [part["text"] if part["type"] == "text" else "" for part in parts]

    def in_place(parts, **_):
        return tokens("|".join(texts(parts)))

    def moved(parts, **_):
        return tokens("\n".join(sorted(texts(parts), key=bool)))

    with serving(tokenize=in_place) as good, serving(tokenize=moved) as bad:
        with pytest.raises(BackendError, match=f"{bad.url}.*--chat-template-content-format openai"):
            backend(good, bad)
        assert backend(good, good.url.replace("127.0.0.1", "localhost")).settings == {"backend": "server"}


@pytest.mark.parametrize("urls", [[], ["http://a/v1", "http://a/v1/"]])
def test_no_address_and_one_named_twice_are_refused(urls):
    with pytest.raises(BackendError, match="name one address, or several different ones"):
        ServerBackend("judge", server=urls)


def test_a_config_and_a_command_line_take_one_address_or_several(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    common = {"model_name_or_path": "judge", "output_dir": "x", "backend": "server"}

    def parsed(server, *words):
        path.write_text(yaml.safe_dump({**common, **({"server": server} if server else {})}))
        monkeypatch.setattr(sys, "argv", ["sampling", "--config", str(path), *words])
        return parsing.parse(*rejection_sampling.ARGUMENTS, without=rejection_sampling.NO_ARGUMENTS)[2].given()

    assert parsed("http://a/v1") == {"server": "http://a/v1"}
    assert parsed(["http://a/v1", "http://b/v1"]) == {"server": ["http://a/v1", "http://b/v1"]}
    assert parsed("http://a/v1", "--server", "http://b/v1", "http://c/v1") == {"server": ["http://b/v1", "http://c/v1"]}
    assert parsed(["http://a/v1"], "--server", "none") == {}
    with pytest.raises(Exception, match="server is 3"):
        parsed(3)


# --- real servers ---


def config(folder, name, world, servers):
    """A config of rejection sampling with servers."""
    keys = {
        "model_name_or_path": name,
        "output_dir": str(folder),
        "train_files": [str(world / "train.jsonl")],
        "prompts": "configs/toy/prompts",
        "frames": 4,
        "decoder": "pyav",
        "frame_cache": str(world / "frames"),
        "backend": "server",
        "server": servers,
        "samples": 2,
        "temperature": 1.0,
        "max_new_tokens": 192,
        "max_retries": 1,
    }
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(keys))
    return ["-m", "unifiedreward_think.training.rejection_sampling", "--config", folder / "config.yaml"]


def same_rows(one, other):
    for name in ("kept.jsonl", "hard.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert (one / "kept.jsonl").read_bytes()
    return told(load_judgments(one / "judgments.jsonl").values()) == told(
        load_judgments(other / "judgments.jsonl").values()
    )


def kill_in_the_middle(command, output, kill):
    """Run a stage and kill a server once it has written something; return what the stage says."""
    judgments = output / "judgments.jsonl"
    with started([sys.executable, *command]) as launch:
        while not (judgments.exists() and judgments.stat().st_size):
            assert launch.poll() is None, launch.communicate()[0][-5000:]
            time.sleep(0.005)
        kill()
        said = launch.communicate(timeout=PATIENCE)[0]
        assert launch.returncode == 0, said[-5000:]
    return said


@contextmanager
def reward_server(*flags):
    """Our own server in a process of its own; yields the process and the address of its OpenAI API."""
    port = free_port()
    words = ["--model", "src/unifiedreward_think/toy/judge", "--dtype", "float32", "--device", "cpu", "--port", port]
    with started([sys.executable, "-m", "unifiedreward_think.serving", *words, "--quiet", *flags]) as process:
        until = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None and time.monotonic() < until, process.communicate()[0][-5000:]
            with suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5)
                break
            time.sleep(0.1)
        yield process, f"http://127.0.0.1:{port}/v1"


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
def test_rejection_sampling_through_two_real_servers_survives_the_death_of_one(toy_world, tmp_path):
    with reward_server() as (_, stays), reward_server() as (dies, address):
        whole, spread = tmp_path / "whole", tmp_path / "spread"
        checked([sys.executable, *config(whole, "UnifiedReward", toy_world, stays), "--limit", "16"])
        command = config(spread, "UnifiedReward", toy_world, [address, stays])
        small = ("--limit", "16", "--batch_size", "2", "--concurrency", "2")
        said = kill_in_the_middle([*command, *small], spread, dies.kill)
    assert said.count(f"{address}: no server answers") == 1 and "the other servers answer meanwhile" in said
    assert same_rows(spread, whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rejection_sampling_through_two_vllm_servers_survives_the_death_of_one(vllm_judge, toy_world, tmp_path):
    from helpers.vllm_cpu import JUDGE, NAME, vllm_serving

    whole, spread = tmp_path / "whole", tmp_path / "spread"
    checked([sys.executable, *config(whole, NAME, toy_world, vllm_judge.url), "--stop"])
    with vllm_serving(JUDGE, tmp_path / "log.txt") as dies:
        command = [*config(spread, NAME, toy_world, [dies.url, vllm_judge.url]), "--stop", "--batch_size", "4"]
        said = kill_in_the_middle(command, spread, lambda: dies.end(signal.SIGKILL))
    assert said.count(f"{dies.url}: no server answers") == 1 and same_rows(spread, whole)
