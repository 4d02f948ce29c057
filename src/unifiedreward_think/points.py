"""Read a completion that scores one candidate: its score, the dimensions behind it, and whether the sum adds up.

The form is ours: a score for each dimension and their sum in a think block, then the sum over what it could be at most.
The lowest score of a dimension is 1, so three dimensions go from 3 to 30.

>>> text = render_points([("Aesthetics", 8), ("Authenticity", 5)], notes=["sharp", ""])
>>> print(text)
<think>
1. Aesthetics: 8/10 - sharp
2. Authenticity: 5/10
Total score: 8+5=13
</think>
<answer>13/20</answer>
>>> verdict = parse_points(text, "Image")
>>> verdict.score, verdict.strict, verdict.arithmetic_ok
(Score(value=13.0, lowest=2.0, highest=20.0), True, True)
>>> parse_points("<answer>35/30</answer>", "Image", style="direct").problems
('score 35 lies outside of 3 to 30', 'answer string is not exact')
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from unifiedreward_think.blocks import Style, form_problems, last_answer, thinking
from unifiedreward_think.expectation import Place
from unifiedreward_think.scores import HIGHEST, NUMBER, Dimension, Score, score_problems
from unifiedreward_think.verdict import Layout, Verdict

_ANSWER = re.compile(r"([+-]?\d{1,4}(?:\.\d{1,4})?)\s*/\s*(\d{1,4})(?:\s*\.)?")
_EXACT = re.compile(r"\d{1,4}(?:\.\d{1,2})?/\d{1,4}")
# "8/10", "(8/10)", "**8/10**" at the start of what follows the name of a dimension
_SCORE = re.compile(rf"[\s*(-]{{0,8}}{NUMBER} ?/ ?10(?!\d)")
# "1. **Aesthetics**: 8/10 - why", "Aesthetics:"
_LINE = re.compile(r"[\s*#-]{0,8}(?:\d{1,2}[.)])?[\s*]{0,4}([^:\n]{1,120}?)\*{0,2} ?:\*{0,2}(.*)")
_TOTALS = re.compile(r"totals?(?: (?:raw )?(?:score|point)s?)?", re.IGNORECASE)
# "8+5=13", "13", "8 + 5 = 13/20", but not the unfinished "8+5"
_TOTAL = re.compile(rf"[\s*]{{0,8}}(?:[\d.+/ ]{{1,200}}= ?\*{{0,2}})?{NUMBER}(?:/\d{{2,3}})?(?! ?[\d/+]|\.\d)")


def parse_points(text: str, noun: str, *, style: Style = "cot") -> Verdict:
    """Parse a completion that scores one candidate; never raises, whatever the text.

    Args:
        text: the completion, without the prompt.
        noun: what the candidate is called; its answers do not name it.
        style: "cot" asks for a think block, "direct" for the answer block alone; it only affects `strict`.
    """
    score, problem = _read_score(text)
    dimensions, totals, found = _read_dimensions(thinking(text))
    if style == "cot" and score is not None:
        found += score_problems(score, dimensions, totals)
    strict_problems = form_problems(text, style, lambda answer: score is not None and bool(_EXACT.fullmatch(answer)))
    return Verdict(
        winner=None,
        strict=not strict_problems,
        dimensions=dimensions,
        totals=totals,
        problems=tuple(dict.fromkeys([*([problem] if problem else []), *strict_problems, *found])),
        score=score,
    )


def render_points(
    scores: Sequence[tuple[str, float]],
    *,
    layout: Layout = "one_line",
    notes: Sequence[str] = (),
    preamble: str = "",
) -> str:
    """Write a perfect completion, the inverse of `parse_points`.

    Args:
        scores: (dimension, score out of 10).
        layout: "one_line" writes a dimension and its score on one line, "three_line" the score on a line of its own.
        notes: the reason of each score.
        preamble: observations written before the first dimension.
    """
    lines = [preamble] if preamble else []
    for i, (name, value) in enumerate(scores):
        why = f" - {notes[i]}" if notes and notes[i] else ""
        between = " " if layout == "one_line" else "\n   "
        lines.append(f"{i + 1}. {name}:{between}{value:g}/{HIGHEST}{why}")
    values = [value for _, value in scores]
    lines.append("Total score: " + "+".join(f"{value:g}" for value in values) + f"={sum(values):g}")
    body = "\n".join(lines)
    return f"<think>\n{body}\n</think>\n<answer>{_scored(sum(values), HIGHEST * len(values))}</answer>"


def _scored(value: float, highest: float) -> Score:
    """Return a score out of so much; each ten stand for one dimension, whose lowest score is 1."""
    return Score(value, highest / HIGHEST, highest)


def _read_score(text: str) -> tuple[Score | None, str]:
    block, problem = last_answer(text)
    if block is None:
        return None, problem
    match = _ANSWER.fullmatch(block.strip())
    if match is None:
        return None, "answer is not a score like '24/30'"
    score = _scored(float(match[1]), float(match[2]))
    if score.highest < HIGHEST or score.highest % HIGHEST:
        return None, f"a score out of {score.highest:g} is none out of {HIGHEST} for each dimension"
    if not score.lowest <= score.value <= score.highest:
        return None, f"score {score.value:g} lies outside of {score.lowest:g} to {score.highest:g}"
    return score, ""


class _Line(NamedTuple):
    """What a line scores: a dimension or the total, and where its number and the scale behind it stand."""

    name: str
    is_total: bool
    value: float
    start: int
    end: int
    close: int


def _read_lines(think: str) -> Iterator[_Line]:
    """Yield the lines that score something, with places in `think`."""
    heading, start = "", 0  # a heading's number is not on its own line
    for whole in think.splitlines(keepends=True):
        (line,), begin = whole.splitlines() or [""], start
        start += len(whole)
        pattern = _TOTAL if _TOTALS.fullmatch(heading) else _SCORE
        if heading and pattern.match(line):
            name, rest = heading, line
        elif named := _LINE.fullmatch(line):
            name, rest = named[1].strip(" *"), named[2]
            begin += named.start(2)
        else:
            continue
        is_total = _TOTALS.fullmatch(name) is not None
        match = (_TOTAL if is_total else _SCORE).match(rest)
        heading = "" if match else name
        if match:
            yield _Line(name, is_total, float(match[1]), *(begin + at for at in (*match.span(1), match.end())))


def _read_dimensions(think: str) -> tuple[tuple[Dimension, ...], tuple[float, ...] | None, list[str]]:
    """Return the scored dimensions, the stated total and what is wrong with them."""
    lines = list(_read_lines(think))
    dimensions = [Dimension(line.name, (line.value,)) for line in lines if not line.is_total]
    totals = tuple(line.value for line in lines if line.is_total)[:1]
    problems = [f"score outside of 1 to {HIGHEST} in {d.name!r}" for d in dimensions if not 1 <= d.scores[0] <= HIGHEST]
    return tuple(dimensions), totals or None, problems


def number_places(text: str, *, style: Style = "cot") -> list[Place]:
    """Return where a strict completion says its numbers: each dimension's score ("direct": that of the answer).

    Nothing for a completion that is not strict. The total and the answer of a chain of thought are sums that are
    copied: how probable their own tokens are says nothing.

    >>> [(each.name, each.alternative("9")) for each in number_places("<answer>24/30</answer>", style="direct")]
    [('', '<answer>9/30')]
    """
    if not parse_points(text, "", style=style).strict:
        return []
    if style == "direct":
        match = _ANSWER.search(text)
        if match is None:
            return []
        score = _scored(0, float(match[2]))
        values = range(round(score.lowest), round(score.highest) + 1)
        return [Place("", text, match.start(1), match.end(1), match.end(2), tuple(map(str, values)))]
    begin = text.index("<think>") + len("<think>")
    allowed = tuple(map(str, range(1, HIGHEST + 1)))
    return [
        Place(line.name, text, begin + line.start, begin + line.end, begin + line.close, allowed)
        for line in _read_lines(thinking(text))
        if not line.is_total
    ]
