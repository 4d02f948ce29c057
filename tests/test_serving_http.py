"""What clients of a reward server rely on: keys, HEAD, text, parameters of chats, usage, what replies and logs say."""

import json
import logging

import httpx
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from helpers.reward_server import LiveServer, Says, pair, run, scripted
from unifiedreward_think.backends import Completion, Failure, Tokens
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError
from unifiedreward_think.serving.__main__ import main
from unifiedreward_think.serving.chat_schemas import ChatRequest
from unifiedreward_think.serving.client import RewardClient

SAID = Completion("<answer>Image 1 is better</answer>", "stop", tokens=Tokens(7, 3))
CHAT = {"model": "UnifiedReward", "messages": [{"role": "user", "content": "Which?"}]}
LONE = "a\ud800b"  # half of a surrogate pair


async def send(http, path, body):
    """Post what httpx itself would not: it writes JSON as UTF-8, which has no halves."""
    return await http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})


def chats(bodies, backend=None):
    """The replies to chats, one after the other."""

    async def work(http):
        return [await send(http, "/v1/chat/completions", body) for body in bodies]

    return run(work, backend or Says(lambda row: SAID), max_wait=0)


# Keys, HEAD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer sesame", 200),
        ("bearer sesame", 200),
        ("BEARER  sesame", 200),
        ("Bearer Sesame", 401),
        ("Bearer sesame2", 401),
        ("Basic sesame", 401),
        ("sesame", 401),
        ("Bearer", 401),
    ],
)
def test_the_scheme_of_a_key_has_no_case_and_the_key_has(header, status):
    async def work(http):
        return await http.get("/v1/models", headers={"Authorization": header})

    assert run(work, api_key="sesame").status_code == status


@pytest.mark.parametrize("key", ["sesame\n", " sesame", "ses ame", "ses\tame", "sésame", "\n"])
def test_a_key_that_no_header_carries_is_refused_at_the_start(key, monkeypatch):
    monkeypatch.setenv("UNIFIEDREWARD_API_KEY", key)
    for start in (lambda: main(["--model", "m"]), RewardClient, lambda: RewardClient(api_key=key)):
        with pytest.raises(InputError, match=r"holds a blank, a line break or what is not ASCII.*tr -d") as refused:
            start()
        assert "ame" not in str(refused.value)  # a key is no secret any more once it is in a log


def test_head_is_get_without_the_body():
    with LiveServer(Says(lambda row: SAID), api_key="sesame") as url:
        headers = {"Authorization": "Bearer sesame"}
        for path in ("/health", "/metrics", "/v1/models", "/openapi.json"):
            head, get = (httpx.request(method, url + path, headers=headers) for method in ("HEAD", "GET"))
            assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
            assert head.headers["content-type"] == get.headers["content-type"] and get.content
        assert httpx.head(f"{url}/v1/models").status_code == 401
        assert httpx.head(f"{url}/v1/rank", headers=headers).status_code == 405

    async def bare(http):  # without a server that would drop the body itself
        return await http.head("/v1/models")

    assert run(bare).content == b""


# Text ----------------------------------------------------------------------------------------------------------------


def chat_of(content, **more):
    return {**CHAT, "messages": [{"role": "user", "content": content}], **more}


ANSWERS = {"task": "image_understanding", "media": [{"image": scripted.picture(1)}], "prompt": "?"}


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("compare", pair(1, 2, prompt=LONE), "prompt"),
        ("rank", pair(1, 2, prompt=LONE), "prompt"),
        ("compare", pair(1, 2) | {"task": LONE}, "task"),
        ("rank", ANSWERS | {"candidates": [{"text": "red"}, {"text": LONE}]}, "candidates[1].text"),
        ("compare", pair(1, 2) | {"candidates": [{"image": LONE}] * 2}, "candidates[0].image"),
        ("compare", pair(1, 2) | {"candidates": [{"frames": [LONE]}] * 2}, "candidates[0].frames[0]"),
        ("compare", pair(1, 2) | {LONE: 1}, "a key of the body"),
        ("chat/completions", chat_of(LONE), "messages[0].content"),
        ("chat/completions", chat_of([{"type": "text", "text": LONE}]), "messages[0].content[0].text"),
        ("chat/completions", chat_of([{"type": LONE, "text": ""}]), "messages[0].content[0].type"),
        ("chat/completions", chat_of("x", model=LONE), "model"),
        ("chat/completions", chat_of("x", user=LONE), "user"),
        ("chat/completions", chat_of("x", metadata={"a": [LONE]}), "metadata.a[0]"),
        ("chat/completions", chat_of("x", **{LONE: 1}), "a key of the body"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(path, body, where):
    backend = Says(lambda row: SAID)
    reply = run(lambda http: send(http, f"/v1/{path}", body), backend)
    assert reply.status_code == 422 and backend.calls == []
    assert reply.json()["error"]["message"] == f"body: {where}: half of a surrogate pair is no text"


def test_a_whole_surrogate_pair_is_text():
    rows = []
    backend = Says(lambda row: rows.append(row) or SAID)
    assert chats([chat_of("a kite \U0001fa81")], backend)[0].status_code == 200
    assert rows[0]["prompt"][0]["content"][0]["text"] == "a kite \U0001fa81"


# Parameters of chats -------------------------------------------------------------------------------------------------

HARMLESS = [
    ("response_format", {"type": "text"}), ("tool_choice", "none"), ("tool_choice", "auto"), ("tools", []),
    ("service_tier", "auto"), ("parallel_tool_calls", True), ("frequency_penalty", 0), ("presence_penalty", 0.0),
    ("logprobs", False), ("top_logprobs", 0), ("logit_bias", {}), ("modalities", ["text"]), ("stop", []),
    ("store", True), ("user", "me"), ("metadata", {"run": "7"}), ("skip_special_tokens", True),
    ("add_generation_prompt", True), ("top_k", -1), ("min_p", 0), ("repetition_penalty", 1.0), ("best_of", 1),
    ("tools", None), ("anything", None), ("do_sample", False), ("stream_options", {"include_usage": True}),
]  # fmt: skip
HARMFUL = [
    ("skip_special_tokens", False), ("add_generation_prompt", False), ("spaces_between_special_tokens", False),
    ("min_tokens", 5), ("top_k", 1), ("min_p", 0.1), ("logprobs", True), ("logprobs", 0), ("top_logprobs", 2),
    ("prompt_logprobs", 0), ("echo", True), ("ignore_eos", True), ("stop", ["."]), ("stop", ""),
    ("response_format", {"type": "json_object"}), ("tool_choice", "required"), ("tools", [{}]), ("bad_words", ["a"]),
    ("frequency_penalty", 0.5), ("frequency_penalty", False), ("reasoning_effort", "low"), ("modalities", ["audio"]),
    ("truncate_prompt_tokens", 0), ("chat_template", ""), ("chat_template_kwargs", {"enable_thinking": False}),
    ("guided_json", {}), ("anything", False), ("anything", 0), ("anything", ""), ("x" * 500, []), ("do_sample", True),
    ("stream_options", {"continuous_usage_stats": True}),
]  # fmt: skip


def test_what_changes_nothing_is_taken_and_what_would_change_the_answer_is_refused_by_name():
    replies = chats([{**CHAT, name: value} for name, value in HARMLESS])
    assert [reply.status_code for reply in replies] == [200] * len(HARMLESS)
    for (name, value), reply in zip(HARMFUL, chats([{**CHAT, name: v} for name, v in HARMFUL]), strict=True):
        message = reply.json()["error"]["message"]
        assert reply.status_code == 400 and message.startswith(name[:100]) and len(message) < 200, (name, value)


def test_every_parameter_of_openai_is_honoured_or_refused():
    whatever = {"metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"}
    whatever |= {"store", "user"}
    names = sorted(CompletionCreateParamsBase.__annotations__.keys() - set(ChatRequest.model_fields) - whatever)
    assert len(names) > 15
    for odd in ("odd", 17, ["odd"], {"odd": 1}):
        replies = chats([{**CHAT, name: odd} for name in names])
        assert {reply.status_code for reply in replies} == {400}
    assert {reply.status_code for reply in chats([{**CHAT, name: None} for name in [*names, *whatever]])} == {200}


@pytest.mark.parametrize(
    ("part", "status"),
    [
        ({"name": "me"}, 400),
        ({"name": None, "tool_calls": []}, 200),
        ({"tool_calls": [{}]}, 400),
        ({"content": [{"type": "text", "text": "x", "weight": 2}]}, 400),
        ({"content": [{"type": "image_url", "image_url": {"url": scripted.picture(1), "detail": "low"}}]}, 400),
        ({"content": [{"type": "image_url", "image_url": {"url": scripted.picture(1), "detail": "high"}}]}, 200),
    ],
)
def test_a_message_holds_nothing_that_would_be_passed_over(part, status):
    (reply,) = chats([{**CHAT, "messages": [{**CHAT["messages"][0], **part}]}])
    assert reply.status_code == status
    assert status == 200 or reply.json()["error"]["message"].startswith("messages[0].")


def test_usage_is_what_the_backend_counts_and_null_where_it_does_not():
    known, several = chats([CHAT, {**CHAT, "n": 2}])
    assert known.json()["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert several.json()["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}
    (unknown,) = chats([CHAT], Says(lambda row: Completion("x", "stop")))
    assert unknown.json()["usage"] is None


def test_a_stream_tells_the_usage_where_it_is_asked_for():
    def chunks(reply):
        return [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]

    plain, told = chats(
        [{**CHAT, "stream": True, **more} for more in ({}, {"stream_options": {"include_usage": True}})]
    )
    assert not any("usage" in chunk for chunk in chunks(plain))
    assert chunks(told)[-1]["choices"] == [] and chunks(told)[-1]["usage"]["total_tokens"] == 10
    assert told.text.endswith("data: [DONE]\n\n")


def test_tokens_pass_from_a_server_through_another():
    content = [{"type": "text", "text": "Which?"}]
    row = {"id": "x", "order": "ab", "prompt": [{"role": "user", "content": content}], "images": []}
    with LiveServer(Says(lambda row: SAID)) as url:
        judge = ServerBackend("UnifiedReward", server=f"{url}/v1")
        ((answer,),) = judge.complete([row], sampling=Sampling(), seeds=[[0]])
    assert answer == SAID


# What replies and logs say -------------------------------------------------------------------------------------------


class Stored(Says):
    """A judge in a folder of this machine."""

    model = "/srv/models/judge-7b"


def raises(row):
    raise OSError(2, "No such file or directory", "/srv/models/judge-7b/vocab.json")


@pytest.mark.parametrize(
    "answer",
    [lambda row: SAID, raises, lambda row: Failure("404: The model `/srv/models/judge-7b` does not exist")],
    ids=["fine", "raises", "fails"],
)
def test_no_reply_names_a_folder_of_the_server(answer):
    async def work(http):
        paths = {"/v1/compare": pair(1, 2), "/v1/rank": pair(1, 2, 3), "/v1/chat/completions": CHAT}
        posted = [await http.post(path, json=body) for path, body in paths.items()]
        return [*posted, *[await http.get(path) for path in ("/health", "/v1/models", "/metrics", "/openapi.json")]]

    replies = run(work, Stored(answer))
    assert not [reply.text for reply in replies if "/srv" in reply.text or "models/judge" in reply.text]
    assert [reply.json()["model"] for reply in (*replies[:2], replies[3])] == ["judge-7b"] * 3


def test_a_failure_is_one_short_line_of_the_log(caplog):
    def answer(row):
        if any(scripted.seen(image) == scripted.colour_of(5) for image in row["images"]):
            raise ValueError("features and tokens do not match\n" * 900)
        return SAID

    with caplog.at_level(logging.INFO):
        rows = run(lambda http: http.post("/v1/rank", json=pair(*range(8))), Says(answer)).json()["judgments"]
    failed = [row for row in rows if row["status"] == "error"]
    told = [record for record in caplog.records if record.name.startswith("unifiedreward_think")]
    assert len(failed) == len(told) == 7
    for record in told:
        text = record.getMessage()
        assert text.startswith("the backend failed on ") and "ValueError: features and tokens do not match" in text
        assert "test_serving_http.py:" in text and len(text) < 400 and "\n" not in text and not record.exc_info
