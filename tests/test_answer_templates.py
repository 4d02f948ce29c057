"""Chat templates that write a part of the answer, and tokenizers that hide its tags: in every stage and backend."""

import json
import re

import pytest
from transformers import AutoProcessor
from trl import ModelConfig, SFTConfig
from trl.chat_template_utils import add_response_schema
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from helpers.judging import inputs_of
from helpers.servers import prompt, reply, serving
from helpers.stages import data_arguments, train_grpo
from helpers.thinking import hide_tags, template, with_template, write_always
from helpers.vllm_cpu import JUDGE, SERVABLE, asked, held_out
from unifiedreward_think.backends import Completion
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.data.rows import to_dataset
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.prepare import open_items
from unifiedreward_think.models import tiny
from unifiedreward_think.models.chat_template import answer_alone, show_tags, thinking_of
from unifiedreward_think.models.loading import load_model, load_processor
from unifiedreward_think.training import grpo, run, sft
from unifiedreward_think.training.arguments import TrainingExtras
from unifiedreward_think.training.trainers.prefetch import Reader
from unifiedreward_think.training.trainers.shared_prefix_sft import PackingCollator

SAID = "<think>ok</think><answer>Image 2 is better</answer>"
QWEN = ["qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8", "open", "closed"]
CASES = [("qwen3_5", name) for name in QWEN] + [
    (family, name) for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") for name in ("qwen3_5_think", "closed")
]
CASES += [("llava_onevision", "open"), ("llava_onevision", "closed")]


def trained_processor(model, toy_data, tmp_path):
    """The processor of a training run, saved and loaded again as with its checkpoint."""
    data = data_arguments(toy_data, "cold_start")
    args = SFTConfig(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    model_args = ModelConfig(model_name_or_path=str(model), dtype="float32")
    processor = run.load(model_args, data, TrainingExtras(), args, {})[1]
    processor.save_pretrained(tmp_path / "checkpoint")
    return processor


@pytest.mark.parametrize(("family", "name"), CASES)
def test_training_learns_the_whole_answer_after_the_prompt_of_inference(family, name, models, toy_data, tmp_path):
    model = with_template(models[family], tmp_path / "model", template(name, family))
    processor = trained_processor(model, toy_data, tmp_path)
    rows = sft.load_rows(data_arguments(toy_data, "cold_start"))[0]
    # The published direct form, and blanks that a template might trim.
    rows[1]["completion"][0]["content"][0]["text"] = "<answer>Image 1 is better</answer>"
    rows[2]["completion"][0]["content"][0]["text"] = " <think>a\n\n</think> <answer>Image 1 is better</answer>\n"
    loaded = list(to_dataset(rows))
    at_inference = TransformersBackend(
        str(model), device="cpu", loaded=(load_model(str(model)), load_processor(tmp_path / "checkpoint"))
    )
    for row in loaded:
        text = row["completion"][0]["content"][0]["text"]
        shown = inputs_of(at_inference, [{"prompt": row["prompt"], "images": row["images"]}])["input_ids"][0].tolist()
        padded = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)([dict(row)])
        labels, ids = padded["labels"][0], padded["input_ids"][0]
        assert ids[labels == -100].tolist() == shown
        assert processor.tokenizer.decode(labels[labels != -100]) == f"{text}<|im_end|>\n"
        ((fields, (answer,)),) = PackingCollator(processor)([row])["groups"]
        assert fields["input_ids"][0].tolist() == shown and answer.tolist() == labels[labels != -100].tolist()
        assert Reader(processor).read(row).fields["input_ids"][0].tolist() == shown
    assert "<think>" not in processor.tokenizer.decode(shown[-8:])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_template_that_writes_no_answer_is_left_alone(family, models):
    processor = load_processor(models[family])
    before = processor.chat_template
    answer_alone(processor, "model")
    assert processor.chat_template == before and thinking_of(processor, True) == ({}, "", {})


def test_a_template_that_cannot_be_told_from_the_answer_is_refused_with_the_fix(models):
    processor = load_processor(models["qwen3_vl"])
    processor.chat_template = "{{ range(100000) | random }}" + template("open")
    with pytest.raises(InputError, match=r"model: its chat template changes answers.*qwen_vl\.jinja"):
        answer_alone(processor, "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["open", "qwen3_5_think", "qwen3_5_nothink"])
def test_what_the_template_opened_is_the_start_of_the_completion(name, toy_world, tmp_path):
    pairs, protocol = held_out(toy_world, 1), asked("one_line", toy_world, orders="one")
    models = {"plain": JUDGE, name: with_template(JUDGE, tmp_path / "model", template(name))}
    backends = {key: TransformersBackend(str(folder), dtype="float32", device="cpu") for key, folder in models.items()}
    rows = {key: judge(pairs, backend, protocol, tmp_path / f"{key}.jsonl") for key, backend in backends.items()}
    assert all(row.verdict.strict and row.verdict.dimensions for row in rows["plain"])
    assert [row.completion for row in rows[name]] == [row.completion for row in rows["plain"]]
    assert [row.verdict for row in rows[name]] == [row.verdict for row in rows["plain"]]
    pieces, (_, row) = [], open_items([(pairs[0], rows["plain"][0].order)], protocol, {})[0]
    said = backends[name].stream(row, sampling=protocol.sampling, seed=0, on_text=pieces.append)
    assert "".join(pieces).startswith(said.text) and said.text == rows["plain"][0].completion


def test_a_direct_answer_is_asked_for_with_the_switch_off(models, tmp_path):
    processor = load_processor(with_template(models["qwen3_5"], tmp_path / "m", template("qwen3_5_think")))
    assert thinking_of(processor, True) == ({"enable_thinking": True}, "<think>\n", {"thinking": True})
    assert thinking_of(processor, False) == ({"enable_thinking": False}, "", {"thinking": False})


# --- tags that are special tokens ---


@pytest.fixture(scope="module")
def hiding(tmp_path_factory):
    """A model that writes SAID, with tags that are special tokens."""
    folder = tmp_path_factory.mktemp("hiding") / "model"
    tiny.build("qwen2_5_vl", folder, corpus=[SAID] * 1000, size=SERVABLE)
    hide_tags(folder)
    write_always(folder, f"{SAID}<|im_end|>")
    return folder


def test_tags_that_are_special_tokens_are_read(hiding, toy_world, tmp_path):
    stock = AutoProcessor.from_pretrained(hiding).tokenizer
    assert stock.decode(stock(SAID)["input_ids"], skip_special_tokens=True) == "okImage 2 is better"
    backend = TransformersBackend(str(hiding), dtype="float32", device="cpu")
    rows = judge(held_out(toy_world, 1)[:1], backend, asked("one_line", toy_world), tmp_path / "judgments.jsonl")
    assert {(row.completion, row.finish_reason, row.verdict.strict) for row in rows} == {(SAID, "stop", True)}
    load_processor(hiding).save_pretrained(tmp_path / "saved")
    saved = AutoProcessor.from_pretrained(tmp_path / "saved").tokenizer
    ids = saved(f"{SAID}<|im_end|>")["input_ids"]
    assert ids == stock(f"{SAID}<|im_end|>")["input_ids"] and saved.decode(ids, skip_special_tokens=True) == SAID


def test_a_tag_that_ends_texts_is_refused(models):
    processor = load_processor(models["qwen3_vl"])
    processor.tokenizer.add_special_tokens({"eos_token": "</answer>"})
    with pytest.raises(InputError, match=r"model: </answer> has another meaning"):
        show_tags(processor, "model")


@pytest.mark.slow
@pytest.mark.parametrize(("shared_prefix", "parses"), [(True, False), (False, True)])
def test_grpo_rewards_the_form_whatever_template_and_tokenizer_do(shared_prefix, parses, hiding, toy_data, tmp_path):
    model = with_template(hiding, tmp_path / "model", template("qwen3_5_nothink"))
    if parses:  # TRL would take the think block out of what rewards read
        add_response_schema(processor := AutoProcessor.from_pretrained(model)).save_pretrained(model)
        assert processor.tokenizer.response_template
    rows = [row for row in grpo.load_rows(data_arguments(toy_data, "train"))[0] if row["task"] == "image_generation"]
    options = {"rows": rows * 4, "shared_prefix": shared_prefix, "max_steps": 1, "max_completion_length": 24}
    log = train_grpo(model, toy_data, tmp_path / "out", **options)
    assert log[0]["rewards/format_reward/mean"] == 1.0


# --- servers ---


def tokens_of(write, special=()):
    """Answers of /tokenize with names of tokens, those in `special` whole; `write` gives the end of a prompt."""

    def answer(parts, chat_template_kwargs):
        text = "".join(part.get("text", "<picture>") for part in parts) + write(chat_template_kwargs)
        names = re.findall("|".join([*map(re.escape, special), "."]), text, re.DOTALL)
        numbers = [special.index(name) if name in special else ord(name) + 9 for name in names]
        shown = [{"\n": "\u010a", " ": "\u0120"}.get(name, name) for name in names]
        return 200, {}, json.dumps({"tokens": numbers, "token_strs": shown}).encode()

    return answer


def published(options):
    """What the template of a Qwen3.5 without thinking writes after the question."""
    return "<think>\n" if options.get("enable_thinking") else "<think>\n\n</think>\n\n"


def ask(asked):
    return asked.complete([prompt()], sampling=Sampling(), seeds=[[0]])[0][0]


@pytest.mark.parametrize(
    ("write", "thinking", "sent", "opening"),
    [
        (published, True, {"enable_thinking": True}, "<think>\n"),
        (published, False, {"enable_thinking": False}, ""),
        (lambda options: "<think>\n", True, None, "<think>\n"),
        (lambda options: "<think> </think>", True, None, ""),
    ],
)
def test_what_the_template_of_a_server_opened_is_the_start_of_the_completion(write, thinking, sent, opening):
    rest = SAID.removeprefix("<think>")
    with serving(lambda body, nth: (200, {}, reply(rest)), tokenize=tokens_of(write)) as server:
        asked = ServerBackend("judge", server=server.url, max_retries=0, thinking=thinking)
        assert ask(asked) == Completion(opening + rest, "stop") and len(server.bodies) == 1
        assert server.bodies[0].get("chat_template_kwargs") == sent
    assert asked.settings.get("thinking") == (thinking if sent or opening else None)


def test_a_server_that_hides_tags_is_asked_to_show_them():
    tags = ["<think>", "</think>", "<answer>", "</answer>"]

    def respond(body, nth):
        shows = body.get("skip_special_tokens") is False
        text = tags[body["allowed_token_ids"][0]] if "allowed_token_ids" in body else f"{SAID}<|im_end|>"
        return 200, {}, reply(text if shows else re.sub(r"<[^>]+>", "", text))

    with serving(respond, tokenize=tokens_of(published, tags)) as server:
        assert ask(ServerBackend("judge", server=server.url, max_retries=0)).text == f"<think>\n{SAID}"


def test_a_server_that_refuses_the_switch_is_used_with_one_warning(capsys):
    def answer(parts, chat_template_kwargs):
        return (400, {}, b"no such field") if chat_template_kwargs else tokens_of(published)(parts, {})

    with serving(tokenize=answer) as server:
        assert ask(ServerBackend("judge", server=server.url, max_retries=0)).finish_reason == "stop"
    (warning,) = capsys.readouterr().err.splitlines()
    assert server.url in warning and "what its chat template writes of answers" in warning
