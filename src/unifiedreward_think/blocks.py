r"""The blocks of a completion, <think> and <answer>: where the answer is, and whether the whole is strictly formed.

>>> text = "<think>It is red.</think><answer>Image 2 is better</answer>"
>>> last_answer(text), thinking(text), form_problems(text, "cot", str.isupper)
(('Image 2 is better', ''), 'It is red.\n', ['answer string is not exact'])
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

Style = Literal["cot", "direct"]
STOP_STRING = "</answer>"
TAGS: dict[Style, tuple[str, ...]] = {
    "cot": ("<think>", "</think>", "<answer>", "</answer>"),
    "direct": ("<answer>", "</answer>"),
}
_STRICT = {
    "cot": re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL),
    "direct": re.compile(r"\s*()<answer>(.*?)</answer>\s*", re.DOTALL),
}


def last_answer(text: str) -> tuple[str | None, str]:
    """Return the content of the last answer block after the thinking, or None and the reason.

    An answer inside a think block, or after one that was never closed, is not an answer.
    """
    tail = text.rpartition("</think>")[2]
    if "<think>" in tail:
        return None, "think block not closed"
    head, closed, _ = tail.rpartition("</answer>")
    _, opened, block = head.rpartition("<answer>")
    if not (opened and closed):
        return None, "no answer block"
    return block.partition("</answer>")[0], ""


def thinking(text: str) -> str:
    """Return what stands in think blocks, closed or not."""
    return "\n".join(piece.partition("<think>")[2] for piece in text.split("</think>"))


def form_problems(text: str, style: Style, exact: Callable[[str], bool]) -> list[str]:
    """Return why a completion is not strictly one think block and one answer block ("direct": one answer block).

    Args:
        text: the completion.
        style: what was asked for.
        exact: whether the content of the answer block is letter for letter what is allowed.
    """
    problems = []
    for opened in TAGS[style][::2]:
        if (count := text.count(opened)) != 1:
            block = opened.strip("<>")
            problems.append(f"no {block} block" if count == 0 else f"{count} {block} blocks")
    if problems:
        return problems
    match = _STRICT[style].fullmatch(text)
    if match is None or any(text.count(tag) != 1 for tag in TAGS[style]):
        return ["text outside the blocks, or blocks not closed or out of order"]
    if style == "cot" and not match.group(1).strip():
        problems.append("empty think block")
    if not exact(match.group(2).strip()):
        problems.append("answer string is not exact")
    return problems
