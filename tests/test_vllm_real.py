"""A real vLLM gives the judgments of the transformers backend: the same prompt tokens, the same text, word for word."""

import json
from collections import Counter

import pytest

from helpers.vllm_cpu import (
    JUDGE,
    LAYOUTS,
    NAME,
    NEW_TOKENS,
    asked,
    compared,
    held_out,
    in_no_order,
    judge_offline,
    prompt_rows,
    prompt_tokens,
    vllm_serving,
)
from unifiedreward_think.backends import BackendError
from unifiedreward_think.backends import server as server_module
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.models.loading import load_processor
from unifiedreward_think.tasks import TASKS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
COUNT = 40  # held-out pairs of each task, each in both orders
EACH_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="module")
def local(needs_vllm, toy_world, tmp_path_factory):
    """Layout -> judgments and prompt tokens of the transformers backend, in the order of the records."""
    backend = TransformersBackend(str(JUDGE), dtype="float32", device="cpu", batch_size=32)
    processor, pairs = load_processor(str(JUDGE)), held_out(toy_world, COUNT)
    found = {}
    for layout in LAYOUTS:
        protocol = asked(layout, toy_world)
        rows = judge(pairs, backend, protocol, tmp_path_factory.mktemp("local") / "judgments.jsonl")
        assert len({row.completion for row in rows}) > len(rows) / 4  # else equality would say little
        found[layout] = rows, [prompt_tokens(processor, row) for _, row in prompt_rows(pairs, protocol)]
    return found


@pytest.fixture(scope="module")
def offline(needs_vllm, toy_world, tmp_path_factory):
    """Folder of what vLLM answers inside a process of its own."""
    job = {"model": str(JUDGE), "world": str(toy_world), "count": COUNT, "layouts": LAYOUTS, "misfits": True}
    folder = judge_offline({"judge": {**job, "new_tokens": NEW_TOKENS}}, tmp_path_factory.mktemp("offline"))["judge"]
    assert not (folder / "error.txt").exists(), (folder / "error.txt").read_text()
    return folder


@EACH_LAYOUT
def test_completions_and_prompt_tokens_of_a_server_are_those_of_transformers(
    layout, local, vllm_judge, toy_world, tmp_path, monkeypatch
):
    rows, tokens = local[layout]
    bodies, read = [], server_module.read_reply
    monkeypatch.setattr(
        server_module, "read_reply", lambda body, *more: bodies.append(json.loads(body)) or read(body, *more)
    )
    backend = ServerBackend(NAME, server=vllm_judge.url, max_retries=0, stop=True)
    backend._extra["return_token_ids"] = True
    served = judge(held_out(toy_world, COUNT), backend, asked(layout, toy_world), tmp_path / "judgments.jsonl")
    assert backend.settings == {"backend": "server"}  # vLLM was asked: pictures stand in place
    assert Counter(row.task for row in served) == dict.fromkeys(TASKS, 2 * COUNT)
    assert compared(served) == compared(rows)
    sent = [(body["prompt_token_ids"], body["choices"][0]["message"]["content"]) for body in bodies]
    assert in_no_order(*zip(*sent, strict=True)) == in_no_order(tokens, [row.completion for row in rows])


@EACH_LAYOUT
def test_completions_and_prompt_tokens_of_the_engine_are_those_of_transformers(layout, local, offline):
    rows, tokens = local[layout]
    assert compared(load_judgments(offline / f"{layout}.jsonl").values()) == compared(rows)
    seen = json.loads((offline / "tokens.json").read_text())[layout]
    assert in_no_order(*zip(*seen, strict=True)) == in_no_order(tokens, [row.completion for row in rows])


def test_prompts_that_do_not_fit_fail_alone_with_the_reason_of_the_engine(offline):
    rows = load_judgments(offline / "misfits.jsonl").values()
    errors = {row.record_id: row.error for row in rows if row.error}
    assert len(rows) == 12 and sorted(errors) == ["too long", "too many pictures"]
    assert "vLLM refuses the prompt" in errors["too long"] and "At most 16 image" in errors["too many pictures"]


def test_a_server_that_moves_pictures_is_refused_with_the_fix(needs_vllm, tmp_path):
    flags = ("--chat-template-content-format", "string")
    refusal = pytest.raises(BackendError, match="--chat-template-content-format openai")
    with vllm_serving(JUDGE, tmp_path / "log.txt", *flags) as server, refusal:
        ServerBackend(NAME, server=server.url)
