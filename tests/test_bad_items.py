"""One bad item never ends a run of many: it fails with its reason, and the others are answered as without it."""

import asyncio
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from unifiedreward_think.backends import Completion, Failure
from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.evaluation.__main__ import main as evaluate
from unifiedreward_think.judging.command import main as judge_file
from unifiedreward_think.judging.store import load_judgments
from unifiedreward_think.models import tiny
from unifiedreward_think.training import rejection_sampling

REPO = Path(__file__).parents[1]
TOY_PROMPTS = REPO / "configs" / "toy" / "prompts"
GREEDY = Sampling(max_new_tokens=4)
MOST = 2048  # positions of the model below: enough for what the toy world asks
LONG = "a kite " * MOST


def with_positions(model, folder, most=MOST):
    """Copy a model, made for so many positions."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = most
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def short(models, tmp_path_factory):
    """A model of few positions."""
    return with_positions(models["qwen2_5_vl"], tmp_path_factory.mktemp("short") / "model")


@pytest.fixture(scope="module")
def backends(models, short):
    def make(family, cache_mib=8):
        folder = short if family == "short" else models[family]
        return TransformersBackend(str(folder), dtype="float32", device="cpu", batch_size=4, cache_mib=cache_mib)

    return cache(make)


def shows(text="Which?", colour="red"):
    """A prompt as a backend takes it, with a picture."""
    content = [{"type": "image", "text": None}, {"type": "text", "text": text}]
    images = [Image.new("RGB", (32, 32), colour)]
    return {"id": text[:9], "order": "ab", "prompt": [{"role": "user", "content": content}], "images": images}


def asked(backend, prompts, **options):
    said = backend.complete(
        prompts, sampling=Sampling(**{"max_new_tokens": 4, **options}), seeds=[[0, 1]] * len(prompts)
    )
    return [list(map(tuple, mine)) for mine in said]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("cache_mib", [0, 8])
def test_a_prompt_with_a_place_too_many_fails_alone_for_every_family(family, cache_mib, backends):
    backend = backends(family, cache_mib)
    good = [shows(), shows("Why?", "blue"), shows("Where?", "white")]
    sly = shows(f"Who? {backend._processor.image_token}")
    said = asked(backend, [good[0], sly, *good[1:]], temperature=1.0)
    (reason,) = {answer[0] for answer in said.pop(1)}
    assert "the chat template writes 2 places" in reason and "for 1 images" in reason
    assert said == asked(backend, good, temperature=1.0)


@pytest.mark.parametrize("cache_mib", [0, 8])
def test_a_prompt_without_room_in_the_model_fails_alone(cache_mib, backends):
    backend = backends("short", cache_mib)
    good = [shows(), shows("Why?", "blue")]
    said = asked(backend, [good[0], shows(LONG), good[1]])
    assert f"more than the {MOST} that the model was made for" in said.pop(1)[0][0]
    assert said == asked(backend, good)
    ((alone, _),) = asked(backend, [shows(LONG)])
    assert f"more than the {MOST}" in alone[0]
    (cut,) = backend.complete([good[0]], sampling=Sampling(max_new_tokens=MOST), seeds=[[0]])
    assert isinstance(cut[0], Failure)  # the prompt has room, and what it asks for has none
    streamed = backend.stream(shows(LONG), sampling=GREEDY, seed=0, on_text=lambda text: None)
    assert isinstance(streamed, Failure)


def answers(model, mib, *words):
    command = [sys.executable, REPO / "tests" / "helpers" / "out_of_memory.py", model, mib, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_where_memory_runs_out_fewer_prompts_are_tried_and_one_too_large_alone_is_named(models):
    model = models["qwen2_5_vl"]
    crowd, said = answers(model, 16, *[600] * 8)
    assert "out of memory with 8 prompts at a time; going on with 4" in said
    assert crowd == answers(model, 4000, *[600] * 8)[0]
    small = answers(model, 4000, *[5] * 7)[0]
    one, said = answers(model, 16, 4000, *[5] * 7)
    assert one[0].startswith("out of memory even when it is judged alone") and one[1:] == small


BAD = {"long": f"more than the {MOST}", "narrow": "narrow.png: 2001x10 is too narrow"}
CONTROL = "a kite<|image_pad|><|im_end|><image>"


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """Five pairs; the captions of two hold control tokens, and too many words, and a picture of one is too narrow."""
    monkeypatch.chdir(tmp_path)
    for name in ("red", "blue"):
        Image.new("RGB", (32, 32), name).save(f"{name}.png")
    Image.new("RGB", (2001, 10)).save("narrow.png")
    captions = {"first": "a kite", "sly": CONTROL, "long": LONG, "narrow": "a kite", "last": "a red kite"}
    rows = [
        {"id": name, "task": "image_generation", "prompt": text, "media": ["red.png", "blue.png"], "preferred": 1}
        for name, text in captions.items()
    ]
    rows[3]["media"] = ["red.png", "narrow.png"]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["id"] not in BAD))
    return tmp_path


FLAGS = ["--max-new-tokens", "4", "--prompts", str(TOY_PROMPTS), "--dtype", "float32", "--batch-size", "4"]


def completions(file):
    rows = load_judgments(Path(file)).values()
    errors = {row.record_id for row in rows if row.error}
    assert all(BAD[row.record_id] in row.error for row in rows if row.error)
    return {(row.record_id, row.order, row.sample): row.completion for row in rows if not row.error}, errors


def test_the_inference_script_judges_all_but_the_bad_pair(pairs, short, capsys):
    words = [*FLAGS, "--model", str(short), "--device", "cpu"]
    found = {}
    for name in ("pairs", "good"):
        arguments = ["--input", f"{name}.jsonl", "--output", f"{name}/judgments.jsonl", *words]
        assert judge_file("image_generation", about="", arguments=arguments) == (name == "pairs")
        found[name] = completions(f"{name}/judgments.jsonl")
    assert found["pairs"] == (found["good"][0], set(BAD)) and len(found["good"][0]) == 3
    assert "2 pairs failed" in capsys.readouterr().err
    results = [json.loads(line) for line in Path("pairs/judgments.results.jsonl").read_text().splitlines()]
    assert len(results) == 5 and f"more than the {MOST}" in results[2]["error"]


def test_the_evaluation_reports_all_but_the_bad_pair(pairs, short, monkeypatch, capsys):
    found = {}
    for name in ("pairs", "good"):
        monkeypatch.setattr(
            "sys.argv", ["e", "--model", str(short), "--input", f"{name}.jsonl", "--output", name, *FLAGS, "--skip-bad"]
        )
        evaluate()
        found[name] = completions(f"{name}/judgments.jsonl")
    assert found["pairs"] == (found["good"][0], {"long"}) and len(found["good"][0]) == 6  # both orders
    assert json.loads(Path("pairs/results.json").read_text())["judgments"] == 8


def test_rejection_sampling_keeps_what_the_good_pairs_give(pairs, short, monkeypatch, capsys):
    found = {}
    for name in ("pairs", "good"):
        words = ["--train_files", f"{name}.jsonl", "--output_dir", name, "--model_name_or_path", str(short)]
        monkeypatch.setattr("sys.argv", ["rs", *words, *FLAGS, "--samples", "2", "--skip_bad"])
        rejection_sampling.main()
        found[name] = completions(f"{name}/judgments.jsonl")
    assert found["pairs"] == (found["good"][0], {"long"}) and len(found["good"][0]) == 6
    counts = json.loads(Path("pairs/manifest.json").read_text())["counts"]
    assert counts["pairs by correct samples"] == {"0/2": 3, "not judged": 1}
    assert Path("pairs/hard.jsonl").read_bytes() == Path("good/hard.jsonl").read_bytes()


def test_the_server_answers_all_but_the_bad_question(pairs, backends):
    from unifiedreward_think.serving.batching import Batcher
    from unifiedreward_think.serving.jobs import Question
    from unifiedreward_think.serving.telemetry import Telemetry

    rows = [shows(), shows(LONG), shows("Who? <|image_pad|>"), shows("Why?")]
    questions = [Question(key=number, row=row, sampling=GREEDY, seed=0) for number, row in enumerate(rows)]

    async def work():
        batcher = Batcher(backends("short"), telemetry=Telemetry(), max_wait=1.0)
        async with batcher.running():
            return await batcher.ask(questions, seconds=300)

    first, long, sly, last = asyncio.run(work())
    assert isinstance(first, Completion) and isinstance(last, Completion)
    assert f"more than the {MOST}" in long.reason and "2 places" in sly.reason


def test_rows_of_other_formats_with_control_tokens_are_judged(pairs, short):
    """One's own conversations, instructions and prompt templates are text like any other."""
    ask = "<image>\n<image>\nWhich is a kite? <|image_pad|><|vision_start|>"
    talk = [{"from": "human", "value": ask}, {"from": "gpt", "value": "<answer>Image 1 is better</answer>"}]
    Path("talk.json").write_text(json.dumps([{"conversations": talk, "images": ["red.png", "blue.png"]}]))
    Path("prompts").mkdir()
    Path("prompts/image_generation.txt").write_text("<|image_pad|> {media_1}{media_2} {prompt} <|im_end|>")
    for name, flags in {"talk.json": FLAGS, "good.jsonl": [*FLAGS, "--prompts", "prompts"]}.items():
        words = ["--input", name, "--output", f"{name}.out/j.jsonl", *flags, "--model", str(short), "--device", "cpu"]
        assert judge_file("image_generation", about="", arguments=words) == 0
