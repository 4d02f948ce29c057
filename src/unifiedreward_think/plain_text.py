"""Text of users stays text: what a tokenizer or a processor would take for a control token gets a space, and loses it.

>>> as_text("a cat<|im_end|> and an <image>"), as_written("a cat< |im_end|> and an < image>")
('a cat< |im_end|> and an < image>', 'a cat<|im_end|> and an <image>')

vLLM and TRL tokenize whole chats by themselves, so the rule works on the text. It is applied where prompts and training
rows are made (`prompting.build_parts`, `data.rows`), once, so training, judging and serving show the same. Records keep
what was written.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unifiedreward_think.records import PreferenceRecord

# The added tokens of Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and LLaVA-OneVision, less the tags of our own prompts.
CONTROL = r"\|[\w.-]+\||image|video|/?tool_call|/?tool_response|tts_\w+"
# Tags that a prompt and a completion hold by their form, and a caption or a candidate answer must not.
TAGS = "/?think|/?answer"


def as_text(text: str, what: str = CONTROL) -> str:
    """Return a text in which nothing is a control token; `as_written` is its inverse for every text."""
    return re.sub(rf"<(?= *(?:{what})>)", "< ", text)


def as_written(text: str, what: str = CONTROL) -> str:
    """Return the text that `as_text` was given."""
    return re.sub(rf"< (?= *(?:{what})>)", "<", text)


def holds_control(record: PreferenceRecord, completion: str = "") -> bool:
    """Return whether a row holds what `as_text` changes, in its texts as they are written."""
    by_users = "\n".join((record.prompt, *record.answers))
    return any(
        as_text(text, what) != text
        for text, what in ((by_users, f"{CONTROL}|{TAGS}"), (f"{record.instruction}\n{completion}", CONTROL))
    )
