"""Our chat templates: what they write, and that vLLM takes them for what they are."""

from pathlib import Path

import pytest
from jinja2 import nodes
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from unifiedreward_think.models.tiny import TEMPLATES
from unifiedreward_think.toy import base

IMAGE = {"qwen_vl": "<|vision_start|><|image_pad|><|vision_end|>", "llava_onevision": "<image>"}
VIDEO = {"qwen_vl": "<|vision_start|><|video_pad|><|vision_end|>", "llava_onevision": "<video>"}
PARTS = [
    {"type": "text", "text": "Image 1: "},
    {"type": "image", "text": None},  # as Arrow hands it over
    {"type": "text", "text": " Image 2: "},
    {"type": "image"},
    {"type": "video", "text": None},
]
CHAT = [
    {"role": "system", "content": "Judge."},
    {"role": "user", "content": PARTS},
    {"role": "assistant", "content": [{"type": "text", "text": "<think>a</think>"}]},
    {"role": "user", "content": "Again?"},
    {"role": "assistant", "content": "No."},
]


def template(name):
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", IMAGE)
def test_a_chat_is_written_in_order_with_its_media_where_they_stand(name):
    ((text,), spans) = render_jinja_template(
        [CHAT], chat_template=template(name), add_generation_prompt=True, return_assistant_tokens_mask=True
    )
    assert text == (
        "<|im_start|>system\nJudge.<|im_end|>\n"
        f"<|im_start|>user\nImage 1: {IMAGE[name]} Image 2: {IMAGE[name]}{VIDEO[name]}<|im_end|>\n"
        "<|im_start|>assistant\n<think>a</think><|im_end|>\n"
        "<|im_start|>user\nAgain?<|im_end|>\n"
        "<|im_start|>assistant\nNo.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [text[a:b] for a, b in spans[0]] == ["<think>a</think><|im_end|>\n", "No.<|im_end|>\n"]


def loops_over_content(source):
    """vLLM 0.30's rule for 'openai' content (chat_utils): a loop over `message['content']`, `message` from `messages`.

    Where there is none it hands the template one string, with all images in front of the text.
    """
    tree = _compile_jinja_template(source).environment.parse(source)
    loops = list(tree.find_all(nodes.For))
    turns = {loop.target.name for loop in loops if getattr(loop.iter, "name", "") == "messages"}
    contents = [loop.iter for loop in loops if isinstance(loop.iter, nodes.Getitem)]
    return any(each.node.name in turns and each.arg.value == "content" for each in contents)


@pytest.mark.parametrize("name", IMAGE)
def test_vllm_sees_that_the_content_is_a_list_of_parts(name):
    assert loops_over_content(template(name))
    copied = (
        "{% for m in messages %}{% set parts = m['content'] %}{% for p in parts %}{{ p.text }}{% endfor %}{% endfor %}"
    )
    assert not loops_over_content(copied)


def test_the_shipped_base_has_the_template_of_its_family():
    folder = Path(base.__file__).with_name("base")
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == template("qwen_vl")
