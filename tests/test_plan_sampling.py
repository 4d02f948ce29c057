"""The plan of a whole sampling run: sums worked out by hand, and what a judgment takes on disk."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.judging import LooksForRed, make_records, protocol
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.training import plan as command
from unifiedreward_think.training.memory.architecture import Architecture, Tower
from unifiedreward_think.training.memory.estimate import plan
from unifiedreward_think.training.memory.job import GIB, make_job
from unifiedreward_think.training.memory.sampling import BYTES_PER_TOKEN, ROW_BYTES, at_a_time, room, volume

ROOT = Path(__file__).parents[1]
# A token of the KV cache: keys and values of 10 layers, 512 wide, in 2 bytes: 20,480 bytes.
TOWER = Tower(
    parameters=10**8,
    depth=4,
    hidden=100,
    intermediate=200,
    gated=False,
    rms_norm=False,
    patch_values=588,
    merge=2,
    patch=14,
    linears={},
)
SHAPE = Architecture(
    family="qwen2_5_vl",
    layers=10,
    hidden=1000,
    intermediate=2000,
    vocabulary=100_000,
    queries=1024,
    keys=512,
    head_norm=False,
    text=9 * 10**8,
    head=10**8,
    connector=0,
    tower=TOWER,
)
# 16 pictures of 256 tokens and 1,024 of text: a prompt of 5,120 tokens; with 1,024 of completion a row of 6,144.
KEYS = {"samples": 4, "frames": 8, "max_pixels": 256 * 28 * 28, "max_new_tokens": 1024, "dtype": "bfloat16"}
VLLM = {**KEYS, "backend": "vllm", "max_model_len": 8192}


def test_tokens_bytes_and_hours_of_a_run_are_those_worked_out_by_hand():
    job = make_job(VLLM, 8)
    found = volume(SHAPE, job, 100_000)
    assert found.completions == 400_000
    assert found.text_tokens == 100_000 * 1024 and found.picture_tokens == 100_000 * 16 * 256
    assert found.completion_tokens == 400_000 * 1024 == 409_600_000
    assert found.judgment_bytes == 400_000 * 1000 + 409_600_000 * 9 // 2 == 2_243_200_000
    # 8 engines of 1,000 tokens a second: 51,200 s
    assert found.hours(job, 1000) == pytest.approx(51_200 / 3600)
    both = volume(SHAPE, make_job({**VLLM, "orders": "both"}, 8, completion_tokens=512), 100_000)
    assert (both.completions, both.completion_tokens) == (800_000, 409_600_000)
    assert both.picture_tokens == 2 * found.picture_tokens
    fours = make_job({**VLLM, "tensor_parallel_size": 4}, 8)
    assert volume(SHAPE, fours, 100_000).hours(fours, 1000) == pytest.approx(4 * 51_200 / 3600)


def test_an_engine_of_vllm_is_counted_by_hand():
    job = make_job(VLLM, 8)
    found = plan(SHAPE, job)
    assert found.always == {
        "weights": 2 * 10**9,
        "left by vLLM": 80 * GIB - int(0.92 * 80 * GIB),
        "reserve": 3 * GIB,
    }
    # A block keeps 2 norms x 2 x 2 x 100 + 2 x 6 x 100 + 2 x 2 x 200 = 2,800 bytes of each of 16,384 x 4 patches.
    assert found.phases["generation"] == {
        "KV cache": 8192 * 20_480,
        "vision": 16_384 * 4 * 2_800,
        "largest moment": 1024 * 100_000 * 12,  # more than 16,384 x (3 x 2,000 + 2 x 1,000) x 2
    }
    left = int(0.92 * 80 * GIB) - 3 * GIB - 2 * 10**9 - 16_384 * 4 * 2_800 - 1024 * 100_000 * 12
    assert room(SHAPE, job) == left == 72_393_871_974
    assert at_a_time(SHAPE, job) == left // (6144 * 20_480) == 575
    assert at_a_time(SHAPE, job, shared=4) == left // ((5120 + 4 * 1024) * 20_480) * 4 == 383 * 4


def test_an_engine_on_two_gpus_halves_what_it_splits_and_more_engines_change_nothing():
    one, two = (plan(SHAPE, make_job({**VLLM, "tensor_parallel_size": size}, 8)) for size in (1, 2))
    assert two.always["weights"] == one.always["weights"] // 2 and two.always["reserve"] == one.always["reserve"]
    assert {name: 2 * size for name, size in two.phases["generation"].items()} == one.phases["generation"]
    job = make_job(VLLM, 8)
    assert plan(SHAPE, replace(job, gpus=64)) == plan(SHAPE, job) and replace(job, gpus=64).engines == 64


@pytest.mark.parametrize(
    ("changes", "gpus", "message"),
    [
        ({"max_model_len": None}, 8, "max_model_len is None: a row has up to 6144 tokens"),
        ({"max_model_len": 6143}, 8, "set it to 6144 or more"),
        ({"tensor_parallel_size": 3}, 8, "8 GPUs are no multiple of tensor_parallel_size: 3"),
        ({"backend": "server"}, 8, "backend: server takes no GPU here"),
    ],
)
def test_an_engine_that_cannot_be_planned_is_refused(changes, gpus, message):
    with pytest.raises(InputError, match=message):
        plan(SHAPE, make_job({**VLLM, **changes}, gpus))


def test_an_engine_that_does_not_fit_says_what_to_change():
    job = make_job({**VLLM, "max_model_len": 10**6}, 8, 10)
    said = command.report(SHAPE, job)
    assert "8 vLLM engines, a GPU each" in said and "does not fit" in said and "--max_model_len 6144" in said
    assert at_a_time(SHAPE, make_job(VLLM, 8, 4)) == 0
    small = make_job(VLLM, 8, 6.5)
    steps = command.ladder(SHAPE, small)
    assert [change for change, _ in steps][-1].keys() == {"tensor_parallel_size"}
    assert plan(SHAPE, steps[-1][1]).total <= small.gpu_memory


@pytest.fixture
def told(monkeypatch, capsys, tmp_path):
    """Run the command on a config of the repository with an architecture of the test."""

    def run(config, *words):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(command, "load_architecture", lambda _: SHAPE)
        monkeypatch.setattr("sys.argv", ["plan", config, "--gpus", "8", *map(str, words)])
        command.main()
        return capsys.readouterr().out

    return run


def test_the_command_plans_a_run_of_a_config(told):
    config = "configs/qwen2_5_vl_7b/rejection_sampling.yaml"
    assert "a run:" not in told(config)
    said = told(config, "--pairs", 100_000, "--completion-tokens", 500)
    assert "100,000 pairs, 400,000 completions" in said and "200,000,000 tokens, 500 each" in said
    assert "say how many tokens an engine writes: --tokens-per-second RATE" in said
    # 200,000,000 tokens by 8 engines of 2,000 a second
    said = told(config, "--pairs", 100_000, "--completion-tokens", 500, "--tokens-per-second", 2000)
    assert "3.5, at 2000 completion tokens a second from each of 8" in said
    assert "GB on each GPU: " in said and "where 4 share a prompt" in said
    said = told(config, "--pairs", 10, "--backend", "transformers", "--tokens-per-second", 2000, "--batch_size", 8)
    assert "a step: 256 completions" in said and "GB on each GPU: " not in said


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("rejection_sampling", ("--pairs", 0), "must be above 0"),
        ("rejection_sampling", ("--tokens-per-second", 9), "--tokens-per-second needs --pairs"),
        ("cold_start", ("--pairs", 9), "--pairs is for rejection sampling"),
    ],
)
def test_a_run_that_cannot_be_planned_is_refused(stage, words, message, told):
    with pytest.raises(InputError, match=message):
        told(f"configs/qwen2_5_vl_7b/{stage}.yaml", *words)


def test_a_judgment_besides_its_completion_is_no_longer_than_planned(tmp_path):
    from PIL import Image

    for name, colour in {"red": "red", "blue": "blue"}.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    settings = {"backend": "vllm", "dtype": "bfloat16", "min_pixels": None, "max_pixels": 262144}
    records = [replace(r, id=f"imagegen-{i:07d}", source="a data set") for i, r in enumerate(make_records(tmp_path, 9))]
    backend = LooksForRed(settings=settings, model="outputs/qwen2_5_vl_7b/cold_start")
    judge(records, backend, protocol(), tmp_path / "judgments.jsonl")
    lines = (tmp_path / "judgments.jsonl").read_text().splitlines()
    rest = [len(line) - len(json.dumps(json.loads(line)["completion"])) for line in lines]
    assert 0.5 * ROW_BYTES < sum(rest) / len(rest) < ROW_BYTES


def test_a_token_of_real_prose_takes_the_planned_bytes(test_data):
    from tokenizers import ByteLevelBPETokenizer

    common = test_data / "qwen_processors" / "common"
    tokenizer = ByteLevelBPETokenizer(str(common / "vocab.json"), str(common / "merges.txt"))
    with gzip.open(test_data / "genai_bench_judgments" / "image_generation_gpt4o.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["response"] for line in file]
    tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
    assert sum(len(json.dumps(text)) for text in texts) / tokens == pytest.approx(BYTES_PER_TOKEN, rel=0.01)
