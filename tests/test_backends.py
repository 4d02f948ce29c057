"""Choosing a backend, replaying stored judgments, and what vLLM is told."""

import ast
import inspect
import json
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from helpers.judging import LooksForRed, make_records, protocol, told
from unifiedreward_think.backends import BackendError, Failure
from unifiedreward_think.backends.choose import BACKENDS, BackendArguments, make_backend
from unifiedreward_think.backends.launch import alone
from unifiedreward_think.backends.replay import ReplayBackend
from unifiedreward_think.backends.vllm import VllmBackend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import RecordError
from unifiedreward_think.flags import Parser, read
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.models.loading import load_processor
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.strict_json import json_lines

REPO = Path(__file__).parents[1]
SOURCES = sorted((REPO / "src").rglob("*.py"))


@pytest.fixture
def records(tmp_path):
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    return make_records(tmp_path, 10)


@pytest.fixture
def stored(records, tmp_path):
    """A run of 10 pairs in both orders, 2 samples each."""
    path = tmp_path / "stored" / "judgments.jsonl"
    judge(records, LooksForRed(settings={"weights": "5eed"}), protocol(orders="both"), path)
    return path


# --- replay ---


def test_a_replayed_run_is_byte_for_byte_the_stored_one(records, stored, tmp_path):
    whole = stored.read_bytes()
    for name in ("first", "second"):
        judge(records, ReplayBackend(stored), protocol(orders="both"), tmp_path / name)
        assert (tmp_path / name).read_bytes() == whole
    for size in (1, 3, 4, 100):
        output = tmp_path / f"size-{size}"
        judge(records[:4], ReplayBackend(stored, batch_size=size), protocol(orders="both"), output)
        assert output.read_bytes() == b"".join(whole.splitlines(keepends=True)[:16])  # --limit 4
        output.write_bytes(output.read_bytes()[: 700 * size % 2000])  # killed
        judge(records, ReplayBackend(stored, batch_size=size), protocol(orders="both"), output)
        assert output.read_bytes() == whole


def test_a_replay_needs_neither_the_settings_of_the_stored_run_nor_its_order(records, stored, tmp_path):
    other = protocol(orders="both", sampling=Sampling(temperature=0.2, seed=3), prompts=load_prompts("direct"))
    rows = judge(records[::-1], ReplayBackend(stored), other, tmp_path / "j.jsonl")
    assert sorted(map(str, rows)) == sorted(map(str, load_judgments(stored).values()))


def test_what_is_not_stored_is_an_error_of_its_item(records, stored, tmp_path):
    lines = stored.read_text().splitlines()
    stored.write_text("\n".join(lines[:5] + lines[6:]) + "\n")
    rows = judge(records, ReplayBackend(stored), protocol(orders="both", samples=3), tmp_path / "j.jsonl")
    failed = {(row.record_id, row.order, row.sample) for row in rows if row.error}
    assert failed == {(r.id, order, 2) for r in records for order in ("ab", "ba")} | {("r1", "ab", 1)}
    assert "holds no completion of order 'ab', sample 1" in next(r.error for r in rows if r.sample == 1 and r.error)


def test_a_file_that_is_no_single_run_is_not_replayed(stored, tmp_path):
    with pytest.raises(BackendError, match=r"gone\.jsonl: no such file"):
        ReplayBackend(tmp_path / "gone.jsonl")
    text, rows = stored.read_text(), load_judgments(stored).values()
    stored.write_text(text + json_lines(replace(row, model="blue") for row in rows))
    with pytest.raises(BackendError, match="2 settings"):
        ReplayBackend(stored)
    stored.write_text(text + "{}\n")
    with pytest.raises(RecordError, match=r"judgments\.jsonl:41: .*not a judgment"):
        ReplayBackend(stored)
    stored.write_text("")
    with pytest.raises(BackendError, match="no settings"):
        ReplayBackend(stored)


def test_failed_items_of_the_stored_run_are_errors_again(records, stored, tmp_path):
    rows = list(load_judgments(stored).values())
    rows[0] = replace(rows[0], completion=None, error="server gone")
    stored.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    again = judge(records, ReplayBackend(stored), protocol(orders="both"), tmp_path / "j.jsonl")
    assert [bool(row.error) for row in again] == [True] + [False] * 39 and told(again[1:]) == told(rows[1:])


# --- vLLM, by a stand-in: it needs a GPU and versions of its own. The signatures are those of vLLM 0.31. ---


class StandInParams:
    def __init__(
        self,
        *,
        n,
        temperature,
        top_p,
        top_k,
        repetition_penalty,
        max_tokens,
        seed,
        stop,
        include_stop_str_in_output,
        skip_special_tokens,
    ):
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})


class StandInRefusal(Exception):
    """What vLLM 0.30 raises for a prompt that it does not take: no ValueError."""


class StandInLLM:
    """Records what it is told; each answer names its seed."""

    def __init__(
        self,
        model,
        *,
        tensor_parallel_size=1,
        dtype="auto",
        seed=0,
        mm_processor_kwargs=None,
        limit_mm_per_prompt=None,
        max_model_len=None,
        generation_config="auto",
    ):
        self.told = {name: value for name, value in locals().items() if name != "self"}
        self.calls, self._tokenizer = [], load_processor(model).tokenizer

    def chat(
        self,
        messages,
        sampling_params=None,
        use_tqdm=True,
        lora_request=None,
        chat_template=None,
        chat_template_content_format="auto",
        add_generation_prompt=True,
        continue_final_message=False,
        tools=None,
        chat_template_kwargs=None,
        tokenization_kwargs=None,
        mm_processor_kwargs=None,
    ):
        assert len(messages) == len(sampling_params) and chat_template_content_format == "openai" and not use_tqdm
        if any("long" in turn["content"][-1]["text"] for conversation in messages for turn in conversation):
            raise ValueError("The decoder prompt (length 9000) is longer than the maximum model length of 8192")
        if any("many" in turn["content"][-1]["text"] for conversation in messages for turn in conversation):
            raise StandInRefusal("At most 16 image(s) may be provided in one prompt.")
        self.calls.append((messages, sampling_params))
        said = [self._tokenizer(f"{p.seed}</answer><|im_end|>")["input_ids"] for p in sampling_params]
        return [
            SimpleNamespace(prompt_token_ids=[0] * 7, outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop")])
            for ids in said
        ]


@pytest.fixture
def vllm(monkeypatch, models):
    """The name of a model, for which a stand-in answers."""
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = StandInLLM, StandInParams
    module.exceptions = ModuleType("vllm.exceptions")
    module.exceptions.VLLMClientError = StandInRefusal
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.exceptions", module.exceptions)
    return str(models["qwen2_5_vl"])


def prompt(text="which?"):
    pictures = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(2)]
    content = [{"type": "image", "text": None}, {"type": "image", "text": None}, {"type": "text", "text": text}]
    return {"id": text, "order": "ab", "prompt": [{"role": "user", "content": content}], "images": pictures}


def test_vllm_gets_opened_pictures_and_a_request_with_its_own_seed_for_each_sample(vllm):
    backend = VllmBackend(vllm, max_pixels=999, max_images=2, tensor_parallel_size=2)
    assert backend._llm.told == {
        "model": vllm,
        "dtype": "auto",
        "tensor_parallel_size": 2,
        "seed": 0,
        "mm_processor_kwargs": {"max_pixels": 999},
        "limit_mm_per_prompt": {"image": 2},
        "max_model_len": None,
        "generation_config": "vllm",
    }
    asked = [prompt("a"), prompt("b")]
    sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=5)
    answers = backend.complete(asked, sampling=sampling, seeds=[[1, 2**64 - 1], [3, 4]])
    said = [["1", str(2**63 - 1)], ["3", "4"]]
    assert [[one[:2] for one in row] for row in answers] == [[(f"{seed}</answer>", "stop") for seed in r] for r in said]
    assert all(one.tokens.prompt == 7 and one.tokens.completion > 2 for row in answers for one in row)
    ((messages, params),) = backend._llm.calls
    assert [turns[0]["content"][2]["text"] for turns in messages] == ["a", "a", "b", "b"]
    assert messages[2][0]["content"][:2] == [
        {"type": "image_pil", "image_pil": picture} for picture in asked[1]["images"]
    ]
    assert {(p.n, p.temperature, p.top_p, p.max_tokens, p.top_k, p.repetition_penalty) for p in params} == {
        (1, 0.7, 0.9, 5, -1, 1.0)
    }
    assert all(p.stop == ["</answer>"] and not p.skip_special_tokens and p.include_stop_str_in_output for p in params)


def test_vllm_is_asked_once_for_a_greedy_completion(vllm):
    backend = VllmBackend(vllm)
    assert len(backend.complete([prompt()], sampling=Sampling(), seeds=[[1, 2, 3]])[0]) == 3
    assert len(backend._llm.calls[0][0]) == 1


@pytest.mark.parametrize(
    ("text", "reason"), [("long", "longer than the maximum model length"), ("many", "At most 16 image")]
)
def test_a_prompt_that_vllm_refuses_fails_alone(text, reason, vllm):
    asked = [prompt("a"), prompt(text), prompt("b")]
    sampling = Sampling(temperature=1.0)
    good, bad, other = VllmBackend(vllm).complete(asked, sampling=sampling, seeds=[[1, 2], [3, 4], [5, 6]])
    assert [row.text for row in good + other] == ["1</answer>", "2</answer>", "5</answer>", "6</answer>"]
    assert len(bad) == 2 and isinstance(bad[0], Failure) and reason in bad[0].reason


def test_without_vllm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(BackendError, match=r"pip install -e '\.\[vllm\]'"):
        VllmBackend("model")


# --- choosing ---


def parse(*words):
    parser = Parser("")
    parser.add(BackendArguments)
    return read(parser.parse_args(words), BackendArguments)


@pytest.mark.parametrize("name", BACKENDS)
def test_what_a_backend_takes_is_a_flag(name):
    signature = inspect.signature(getattr(import_module(f"unifiedreward_think.backends.{name}"), BACKENDS[name]))
    given = {key for key, value in signature.parameters.items() if value.kind is value.KEYWORD_ONLY}
    follows = {"loaded", "thinking", "numbers"}  # a model in memory, and what follows from how is judged
    assert given - follows <= set(vars(parse()))


def test_every_command_and_stage_makes_its_backend_in_one_place():
    names, users = {"make_backend", "Teacher", *BACKENDS.values()}, {}
    for path in (*SOURCES, *(REPO / "inference").glob("*.py"), *(REPO / "gradio").glob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Name) and call.func.id in names:
                users.setdefault(call.func.id, []).append(path.name)
    assert users == {"make_backend": ["settings.py"]}


def test_only_what_is_given_reaches_the_backend(vllm):
    backend = make_backend(parse("--backend", "vllm", "--model", vllm, "--dtype", "float16", "--max-model-len", "99"))
    assert isinstance(backend, VllmBackend) and backend.batch_size == 256
    assert (backend._llm.told["dtype"], backend._llm.told["max_model_len"]) == ("float16", 99)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a --model"),
        (["--model", "m", "--server", "http://x/v1"], "--server means nothing to --backend transformers"),
        (
            ["--backend", "server", "--model", "m", "--max-pixels", "9"],
            "--max-pixels means nothing to --backend server",
        ),
        (["--backend", "replay", "--model", "m", "--stop"], "--stop means nothing to --backend replay"),
        (["--backend", "replay", "--model", str(Path("gone.jsonl"))], "no such file"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(words, message):
    with pytest.raises(BackendError, match=message):
        make_backend(parse(*words))


# --- one of several processes ---


@pytest.mark.parametrize(
    ("rank", "gpus", "visible", "own"),
    [(0, 1, None, "0"), (1, 2, None, "2,3"), (1, 2, "4,5,6,7", "6,7"), (3, 2, None, "6,7")],
)
def test_a_process_of_a_launch_has_gpus_of_its_own_and_the_launcher_is_hidden(rank, gpus, visible, own, monkeypatch):
    count = 4 if visible is None else 2
    launched = {"RANK": "7", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count), "MASTER_PORT": "29500"}
    launched["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8 if visible is None else 4)
    with alone(gpus):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == own and not launched.keys() & os.environ.keys()
    assert launched.items() <= os.environ.items()
    with pytest.raises(
        BackendError, match=r"need 16 GPUs, and 8 are visible: set NPROC=2,|need 8 GPUs, and 4 .*NPROC=1,"
    ):
        alone(4).__enter__()
    assert launched.items() <= os.environ.items()


def test_a_process_alone_keeps_all_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    before = dict(os.environ)
    with alone(2):
        assert dict(os.environ) == before
