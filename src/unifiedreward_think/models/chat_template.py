"""What a chat template writes of the answer by itself, and tags of the answer that a tokenizer would hide.

Templates of thinking models end a prompt with `<think>`, or with an empty think block where their switch is off.

- A model is judged as it was trained: with its own template, its switch on for chains of thought and off for direct
  answers. A block that the prompt leaves open is the start of the completion (`opening`, `thinking_of`).
- A model is trained to write all of the answer (`answer_alone`), and saved with the template that it was trained with.
- No tag is special, so that decoding keeps it (`show_tags`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from unifiedreward_think.blocks import TAGS
from unifiedreward_think.errors import InputError
from unifiedreward_think.verdict import answer_text

SWITCH = "enable_thinking"  # variable of the templates of Qwen3 and later, and of others since
USER = {"role": "user", "content": [{"type": "text", "text": "Which is better?"}]}
ANSWER = f"<answer>{answer_text(1, 'Image')}</answer>"
ANSWERS = (f"<think>It is.</think>{ANSWER}", ANSWER)
MARK = "{#- Around a published template"  # the start of AROUND
AROUND = Path(__file__).parent / "templates" / "answer_alone.jinja"


class Thinking(NamedTuple):
    """How a template lets a model think.

    Attributes:
        options: variables for the template.
        opening: what completions begin with: the think block that prompts leave open.
        settings: what judgments say of it, nothing where the template has no part in the answer.
    """

    options: Mapping[str, Any]
    opening: str
    settings: Mapping[str, Any]


def opening(prompt: str) -> str:
    r"""Return the think block that a prompt leaves open at its end, which is where the completion begins.

    >>> opening("Which?<|im_end|>\n<|im_start|>assistant\n<think>\n")
    '<think>\n'
    >>> opening("Which?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    ''
    """
    match = re.search(r"<think>\s*\Z", prompt)
    return match[0] if match else ""


def thinking(on: str, off: str, wanted: bool) -> Thinking:
    """Return how a template lets a model think, from the ends of a prompt with its switch on and off."""
    opened = opening(on if wanted else off)
    options = {SWITCH: wanted} if on != off else {}
    return Thinking(options, opened, {"thinking": wanted} if options or opened else {})


def thinking_of(processor: Any, wanted: bool) -> Thinking:
    """Return how the template of a processor lets its model think."""
    template = _template(processor)
    on, off = ("" if template is None else _prompt(processor, template, on) for on in (True, False))
    return thinking(on, off, wanted)


def answer_alone(processor: Any, path: str | Path) -> None:
    """Take out of a processor's template what it writes of answers, where it does: prompts end before the answer.

    What would parse answers before a reward reads them goes, too.

    Raises:
        InputError: the template cannot be told from the answer; names the file to write.
    """
    tokenizer, published = processor.tokenizer, _template(processor)
    for name in ("response_template", "response_schema"):
        if getattr(tokenizer, name, None) is not None:
            setattr(tokenizer, name, None)
    if published is None or _is_alone(processor, published):
        return
    prompt = _prompt(processor, published, True)
    written = _written(prompt)
    end = _turns(processor, published, ANSWER).rpartition(ANSWER)[2]
    around = AROUND.read_text(encoding="utf-8").removesuffix("\n")
    around = around.replace("@WRITTEN@", str(len(written))).replace("@END@", json.dumps(end))
    alone = around.replace("@PUBLISHED@", published.removesuffix("\n"))
    if not _is_alone(processor, alone) or _prompt(processor, alone, None) + written != prompt:
        raise InputError(
            f"{path}: its chat template changes answers, and it is not clear where; write a chat_template.jinja there "
            f"whose assistant turn holds the answer alone, such as {AROUND.with_name('qwen_vl.jinja')}"
        )
    processor.chat_template = tokenizer.chat_template = alone


def hidden_tags(tokenizer: Any) -> list[str]:
    """Return the tags of an answer that decoding leaves out with the special tokens."""
    vocabulary = tokenizer.get_vocab()
    known = [tag for tag in TAGS["cot"] if tag in vocabulary]
    return [tag for tag in known if not tokenizer.decode([vocabulary[tag]], skip_special_tokens=True)]


def show_tags(processor: Any, path: str | Path) -> None:
    """Make the tags of an answer tokens like others where they are special; their numbers stay.

    Raises:
        InputError: a tag is a special token of another meaning, too.
    """
    from transformers import AddedToken

    tokenizer = processor.tokenizer
    if not (tags := hidden_tags(tokenizer)):
        return
    tokenizer.extra_special_tokens = [one for one in tokenizer.extra_special_tokens if str(one) not in tags]
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    with TemporaryDirectory() as folder:  # a tokenizer in memory goes on to skip them
        tokenizer.save_pretrained(folder)
        processor.tokenizer = type(tokenizer).from_pretrained(folder)
    if tags := hidden_tags(processor.tokenizer):
        raise InputError(f"{path}: {tags[0]} has another meaning in its tokenizer_config.json, too; name another there")


def _template(processor: Any) -> str | None:
    named = processor.chat_template
    return named.get("default") if isinstance(named, dict) else named


def _written(prompt: str) -> str:
    """Return the think block, open or closed, that a prompt ends with."""
    match = re.search(r"<think>\s*(</think>\s*)?\Z", prompt)
    return match[0] if match else ""


def _is_alone(processor: Any, template: str) -> bool:
    """Whether a turn is what a prompt is, then the answer letter for letter, then the same end whatever the answer."""
    prompt = _prompt(processor, template, None)
    turns = [(_turns(processor, template, answer), prompt + answer) for answer in ANSWERS]
    ends = {turn.removeprefix(start) for turn, start in turns}
    return not _written(prompt) and len(ends) == 1 and all(turn.startswith(start) for turn, start in turns)


def _turns(processor: Any, template: str, answer: str) -> str:
    turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    text: str = processor.apply_chat_template([USER, turn], chat_template=template)
    return text


def _prompt(processor: Any, template: str, on: bool | None) -> str:
    """Return a prompt with the switch on or off where there is one; None leaves it as it is."""
    switched = on is not None and SWITCH in template and not template.startswith(MARK)
    options = {SWITCH: on} if switched else {}
    text: str = processor.apply_chat_template([USER], chat_template=template, add_generation_prompt=True, **options)
    return text
