"""Which completions become training traces: one rule for a teacher's, for sampled ones and for those of files."""

from __future__ import annotations

from unifiedreward_think.forms import FORMS
from unifiedreward_think.records import Judgment


def rejections(
    judgment: Judgment, *, require_correct: bool = True, require_strict: bool = True, require_arithmetic: bool = True
) -> list[str]:
    """Return why a completion is no training trace; empty for one that is.

    >>> from unifiedreward_think.verdict import parse
    >>> completion = "<answer>Image 1 is better</answer>"
    >>> row = Judgment(record_id="a", order="ab", completion=completion, preferred=2, task="image_generation",
    ...                verdict=parse(completion, "Image"))
    >>> rejections(row)
    ['wrong winner', 'not strictly formed', 'sums do not add up']
    """
    if judgment.error:
        return [f"no answer: {judgment.error}"]
    if not judgment.readable:
        return ["cut at the token limit" if judgment.finish_reason == "length" else "no readable answer"]
    form = FORMS[judgment.form]
    rules = {
        form.contradiction: require_correct and form.contradicts(judgment),
        "not strictly formed": require_strict and not judgment.verdict.strict,
        "sums do not add up": require_arithmetic and not judgment.verdict.arithmetic_ok,
    }
    return [reason for reason, broken in rules.items() if broken]


def counted_as(reason: str) -> str:
    """Return the name that a reason is counted under: every failure names its own file, record or limit.

    >>> counted_as("no answer: a.png: no such file"), counted_as("wrong winner")
    ('no answer', 'wrong winner')
    """
    return reason.partition(":")[0]
