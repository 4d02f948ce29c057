"""A server is asked at its start whether pictures stand where prompts put them."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from helpers.judging import make_records, protocol
from helpers.servers import serving
from unifiedreward_think.backends import BackendError
from unifiedreward_think.backends.replay import ReplayBackend
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.errors import RecordError
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.strict_json import json_lines

PICTURE = "<picture>"


@pytest.fixture
def records(tmp_path):
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    return make_records(tmp_path, 12)


def backend(server):
    return ServerBackend("judge", server=server.url, max_retries=0, timeout=20)


def texts(parts):
    return [part["text"] if part["type"] == "text" else PICTURE for part in parts]


def pictures_first(shown):
    return sorted(shown, key=lambda text: text != PICTURE)


FORMATS = {
    "openai": lambda shown: "".join(shown),
    "string": lambda shown: "\n".join(pictures_first(shown)),
    "a template that moves pictures": lambda shown: "".join(pictures_first(shown)),
}


def tokenizing(write):
    """Answers of /tokenize, a token a byte."""
    return lambda parts, **_: (200, {}, json.dumps({"count": 1, "tokens": list(write(texts(parts)).encode())}).encode())


def test_a_server_that_keeps_pictures_in_place_is_used_and_nothing_is_said(capsys):
    with serving(tokenize=tokenizing(FORMATS["openai"])) as server:
        asked = backend(server)
    assert len(server.tokenized) == 2 + 2 and not server.bodies  # two for what the template writes of answers
    assert asked.settings == {"backend": "server"} and capsys.readouterr().err == ""


def test_a_server_that_moves_pictures_to_the_front_is_refused_with_the_fix():
    refusal = pytest.raises(BackendError, match=r"127.0.0.1:\d+/v1/: .* --chat-template-content-format openai")
    with serving(tokenize=tokenizing(FORMATS["string"])) as server, refusal:
        backend(server)


def test_a_template_that_moves_pictures_itself_is_as_the_model_was_trained():
    with serving(tokenize=tokenizing(FORMATS["a template that moves pictures"])) as server:
        assert backend(server).settings == {"backend": "server"} and len(server.tokenized) == 3 + 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, {}, b"no such route"), "404"),
        ((405, {}, b"no such method"), "405"),
        ((400, {}, b'{"error": "messages is not known"}'), "messages is not known"),
        ((500, {}, b"broken"), "500"),
        ((200, {}, b"<html>"), "no tokens in its reply"),
        ((200, {}, b'{"count": 3}'), "no tokens in its reply"),
        ((200, {}, b'{"tokens": []}'), "no tokens in its reply"),
        ((200, {}, b'{"tokens": "abc"}'), "no tokens in its reply"),
        ((200, {"Content-Length": "99"}, b"{"), "Connection error"),
    ],
)
def test_a_server_that_cannot_be_asked_is_used_with_one_warning(answer, reason, records, tmp_path, capsys):
    with serving(tokenize=lambda parts, **_: answer) as server:
        rows = judge(records, backend(server), protocol(samples=1), tmp_path / "judgments.jsonl")
    assert {row.settings["placement"] for row in rows} == {"unverified"} and not any(row.error for row in rows)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "tokenize" in line]
    assert server.url in warning and reason in warning


@pytest.mark.parametrize("prefix", ["", "/judges/a"])
def test_the_route_is_beside_v1_and_gets_the_headers_of_all_requests(prefix, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(tokenize=tokenizing(FORMATS["openai"])) as server:
        address = server.url.replace("/v1", f"{prefix}/v1")
        ServerBackend("judge", server=address, max_retries=0)
        ServerBackend("judge", server=f"{address}/", max_retries=0)
        ServerBackend("judge", server=address.removesuffix("/v1"), max_retries=0)
    assert {path for path, _ in server.tokenized} == {f"{prefix}/tokenize"} and len(server.tokenized) == 3 * 4
    assert all(headers["Authorization"] == "Bearer secret" for _, headers in server.tokenized)


def test_files_go_on_whether_or_not_the_server_could_be_asked(records, tmp_path):
    output = tmp_path / "judgments.jsonl"
    with serving(tokenize=tokenizing(FORMATS["openai"])) as server:
        judge(records[:4], backend(server), protocol(samples=1), output)
    with serving() as server:
        judge(records[:8], backend(server), protocol(samples=1), output)
        assert len(server.bodies) == 4
    with serving(tokenize=tokenizing(FORMATS["openai"])) as server:
        rows = judge(records, backend(server), protocol(samples=1), output)
        assert len(server.bodies) == 4
    assert [row.settings.get("placement", "") for row in rows] == [""] * 4 + ["unverified"] * 4 + [""] * 4
    stored = judge(records, ReplayBackend(output), protocol(samples=1), tmp_path / "replayed.jsonl")
    assert [row.completion for row in stored] == [row.completion for row in rows]


def test_any_other_setting_still_keeps_files_apart(records, tmp_path):
    output = tmp_path / "judgments.jsonl"
    with serving() as server:
        judge(records, backend(server), protocol(samples=1), output)
        rows = [replace(row, settings={**row.settings, "seed": 7}) for row in load_judgments(output).values()]
        output.write_text(json_lines(rows))
        with pytest.raises(RecordError, match="seed = 7"):
            judge(records, backend(server), protocol(samples=1), output)
