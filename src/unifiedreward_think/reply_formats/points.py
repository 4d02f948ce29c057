r"""Scores of one candidate in words and lines: a final score, and scores on named axes.

>>> verdict = read_final_score("kite (object): 1\nFinal Score: 4.7", (1, 5))
>>> verdict.score, verdict.dimensions
(Score(value=4.7, lowest=1, highest=5), (Dimension(name='kite (object)', scores=(1.0,)),))
>>> read_axes("Alignment Score (1-5): 2\nStyle Score (1-5): 4.5", ("Alignment", "Style"), (1, 5)).score.value
3.25
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from statistics import fmean

from unifiedreward_think.reply_formats.numbers import ENDS, NUMBER, no_constant, number_after, outside, value_of
from unifiedreward_think.scores import Dimension, Score
from unifiedreward_think.verdict import Verdict

Scale = tuple[float, float]
_FINAL = re.compile(r"\bfinal score ?\*{0,2} ?:", re.IGNORECASE)
# "kite (object): 1", "2. **dynamic degree**: 3"
_LINE = re.compile(
    rf"^[\s*#-]{{0,8}}(?:\d{{1,2}}[.)])?[\s*]{{0,4}}([A-Za-z][^:\n]{{0,80}}?)\*{{0,2}} ?:[ *]{{0,4}}({NUMBER}){ENDS}"
    r"[ *]{0,4}\.?[ \t]*$",
    re.MULTILINE,
)
_WORDS = re.compile(r"word-wise scores\*{0,2} ?:\s*", re.IGNORECASE)


def read_final_score(
    text: str, scale: Scale, *, named: Sequence[str] = (), named_scale: Scale = (-math.inf, math.inf)
) -> Verdict:
    """Read what stands after the last "Final Score:", and the scored lines before it.

    Args:
        text: the reply.
        scale: of the final score.
        named: dimensions that the lines should name; any, where it is empty.
        named_scale: theirs.
    """
    finals = list(_FINAL.finditer(text))
    if not finals:
        return unread("no 'Final Score:'")
    value, out_of = number_after(text, finals[-1].end())
    if value is None:
        return unread(f"no number after 'Final Score:', found {text[finals[-1].end() :].strip()[:20]!r}")
    lowest, highest = scale
    if out_of not in (None, highest):
        return unread(f"{value:g} is stated out of {out_of:g}, the scale ends at {highest:g}")
    if not lowest <= value <= highest:
        return unread(f"score {value:g} lies outside of {lowest:g} to {highest:g}")
    lines = _LINE.findall(text[: finals[0].start()])
    dimensions = tuple(Dimension(name.strip(), (value_of(number),)) for name, number in lines)
    found = {each.name.lower() for each in dimensions}
    problems = [f"no {name!r}" for name in named if name not in found]
    problems += filter(None, (outside(each.name, each.scores[0], named_scale) for each in dimensions))
    return Verdict(
        winner=None,
        strict=not problems,
        dimensions=dimensions,
        problems=tuple(problems),
        score=Score(value, lowest, highest),
    )


def read_axes(text: str, axes: Sequence[str], scale: Scale, *, words: bool = False) -> Verdict:
    """Read a score on each axis, "Style Score (1-5): 2.69"; the score is their mean.

    Args:
        text: the reply.
        axes: all must be there.
        scale: of each.
        words: whether scores of the words of the caption should stand there, too; they do not count.
    """
    dimensions = []
    for axis in axes:
        value, problem = _axis(text, axis, scale)
        if value is None:
            return unread(problem)
        dimensions.append(Dimension(axis, (value,)))
    said, problem = _word_scores(text) if words else ((), "")
    return Verdict(
        winner=None,
        strict=not problem,
        dimensions=tuple(dimensions),
        problems=(problem,) if problem else (),
        score=Score(fmean(each.scores[0] for each in dimensions), *scale),
        words=said,
    )


def unread(problem: str) -> Verdict:
    """Return the verdict of a reply that cannot be read."""
    return Verdict(winner=None, strict=False, problems=(problem,))


def _axis(text: str, axis: str, scale: Scale) -> tuple[float | None, str]:
    """Return the one score of an axis, or why there is none."""
    pattern = rf"(?<![A-Za-z]){axis}(?: score)? ?\*{{0,2}} ?(?:\((\d+) ?- ?(\d+)\))? ?\*{{0,2}} ?:"
    values = []
    for match in re.finditer(pattern, text, re.IGNORECASE):
        value, out_of = number_after(text, match.end())
        if value is None:
            continue
        stated = (float(match[1]), float(match[2])) if match[1] else scale
        if stated != scale or out_of not in (None, scale[1]):
            lowest, highest = stated if stated != scale else (scale[0], out_of or 0)
            return None, f"{axis!r} is stated on {lowest:g} to {highest:g}, expected {scale[0]:g} to {scale[1]:g}"
        values.append(value)
    if not values:
        return None, f"no number for {axis!r}"
    if other := [value for value in values if value != values[0]]:
        return None, f"{axis!r} is stated as {values[0]:g} and {other[0]:g}"
    problem = outside(axis, values[0], scale)
    return (None, problem) if problem else (values[0], "")


def _word_scores(text: str) -> tuple[tuple[Dimension, ...], str]:
    """Return the words of a caption with how badly each is shown, or what is wrong with them."""
    match = _WORDS.search(text)
    if match is None:
        return (), "no 'Word-wise Scores:'"
    try:
        rows, _ = json.JSONDecoder(parse_constant=no_constant).raw_decode(text, match.end())
    except (ValueError, RecursionError):
        return (), "word-wise scores are no JSON"
    if not isinstance(rows, list) or not all(isinstance(row, list) and _is_word(*row) for row in rows):
        return (), "word-wise scores are no list of words and numbers"
    return tuple(Dimension(word, (value,)) for word, value in rows), ""


def _is_word(*row: object) -> bool:
    match row:
        case (str(), value):
            return is_number(value)
    return False


def is_number(value: object) -> bool:
    """Return whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
