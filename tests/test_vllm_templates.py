"""A real vLLM, a template that opens the think block and a tokenizer that hides tags: answers as in transformers."""

import pytest

from helpers.thinking import hide_tags, template, write_always
from helpers.vllm_cpu import NAME, SERVABLE, asked, compared, held_out, judge_offline, prompt_rows, vllm_serving
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.models import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
REST = "ok</think><answer>Image 2 is better</answer>"
COUNT, NEW_TOKENS = 2, 24  # pairs of each task, each in both orders


@pytest.fixture(scope="module")
def thinker(needs_vllm, tmp_path_factory):
    """A model that writes REST after a line break; its template ends with one, behind the opened block."""
    folder = tmp_path_factory.mktemp("thinker")
    tiny.build("qwen2_5_vl", folder, corpus=[REST] * 1000, size=SERVABLE)
    (folder / "chat_template.jinja").write_text(template("qwen3_5_nothink"), encoding="utf-8")
    hide_tags(folder)
    write_always(folder, f"{REST}<|im_end|>")
    return str(folder)


@pytest.fixture(scope="module")
def reference(thinker, toy_world, tmp_path_factory):
    """The judgments of transformers."""
    output = tmp_path_factory.mktemp("local") / "judgments.jsonl"
    backend = TransformersBackend(thinker, dtype="float32", device="cpu")
    rows = judge(held_out(toy_world, COUNT), backend, asked("one_line", toy_world), output)
    assert {row.completion for row in rows} == {f"<think>\n{REST}"} and any(row.verdict.strict for row in rows)
    return rows


@pytest.mark.parametrize("stop", [True, False])
def test_a_server_is_read_as_transformers(stop, server, reference, toy_world, tmp_path):
    backend, protocol = ServerBackend(NAME, server=server.url, max_retries=0, stop=stop), asked("one_line", toy_world)
    rows = judge(held_out(toy_world, COUNT), backend, protocol, tmp_path / "judgments.jsonl")
    assert compared(rows) == compared(reference) and rows[0].settings["thinking"] is True
    pieces, (_, row) = [], prompt_rows(held_out(toy_world, 1), protocol)[0]
    said = backend.stream(row, sampling=protocol.sampling, seed=0, on_text=pieces.append)
    assert said.text == "".join(pieces) == f"<think>\n{REST}"


@pytest.fixture(scope="module")
def server(thinker, tmp_path_factory):
    with vllm_serving(thinker, tmp_path_factory.mktemp("vllm") / "log.txt") as running:
        yield running


def test_vllm_in_this_process_is_read_as_transformers(thinker, reference, toy_world, tmp_path):
    job = {"world": str(toy_world), "count": COUNT, "layouts": ["one_line"], "new_tokens": NEW_TOKENS, "misfits": False}
    jobs = {"thinker": {**job, "model": thinker}}
    folder = judge_offline(jobs, tmp_path / "offline", VLLM_ENABLE_V1_MULTIPROCESSING="0")["thinker"]
    assert not (folder / "error.txt").exists(), (folder / "error.txt").read_text()
    assert compared(load_judgments(folder / "one_line.jsonl").values()) == compared(reference)
