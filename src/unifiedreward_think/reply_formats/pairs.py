r"""Which of two candidates is better, in words and numbers: a sentence, shares of 1, or two signed scores.

>>> read_sentence("Both images are equally good.", "Image").winner
'tie'
>>> read_shares("Style:\n Image 1: 0.4357\n Image 2: 0.5643", "Image", ("Style",)).winner
2
>>> read_two_scores("1.5 -0.5", "Image").dimensions
(Dimension(name='Score', scores=(1.5, -0.5)),)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from unifiedreward_think.reply_formats.numbers import MINUS, NUMBER, number_after, outside, value_of
from unifiedreward_think.reply_formats.points import unread
from unifiedreward_think.scores import Dimension, sums_of
from unifiedreward_think.verdict import Verdict, Winner

SHARES = (0.0, 1.0)
ROUNDING = 0.01  # of two shares that should add up to 1
_OVERALL = re.compile(r"overall judg(?:e)?ment\*{0,2} ?:", re.IGNORECASE)
_NEGATED = re.compile(r"\b(?:not|never|neither|nor|no|cannot|if|whether|doubt)\b|n't", re.IGNORECASE)
_ENDS_OF_SENTENCES = re.compile(r"[.!?:;\n]")
_REACH = 300  # characters of a sentence before what it says
_NUMBERS = re.compile(rf"(?<![\w.,{MINUS}-]){NUMBER}(?![\w%]|[.,]\d)")


def read_sentence(text: str, noun: str) -> Verdict:
    """Read "Image 1 is better than Image 2." or "Both images are equally good.", in a text of any length.

    What stands after the last "Overall Judgment:" decides; without one, sentences that name different winners decide
    nothing. A sentence that goes on ("better in style"), asks or denies is none; one that gives its reason is.
    """
    overall = list(_OVERALL.finditer(text))
    found = _winners(text[overall[-1].end() :] if overall else text, noun)
    names = list(dict.fromkeys(found))
    if not names:
        allowed = f"'{noun} 1 is better', '{noun} 2 is better' or 'Both {noun.lower()}s are equally good'"
        return unread(f"no sentence {allowed}")
    if len(names) > 1:
        first, second = (f"{noun} {name}" if name != "tie" else "a tie" for name in names[:2])
        return unread(f"sentences name {first} and {second}")
    strict = _exact(noun).fullmatch(text.strip()) is not None
    return Verdict(winner=names[0], strict=strict, problems=() if strict else ("more than the published sentence",))


def read_shares(text: str, noun: str, axes: Sequence[str]) -> Verdict:
    """Read two numbers that add up to 1 on each axis; the larger sum wins, equal sums are a tie."""
    rows = _by_axis(text, noun, axes)
    dimensions = []
    for axis in axes:
        values = []
        for place in (1, 2):
            stated = rows[axis][place]
            if not stated:
                return unread(f"no score of {noun} {place} in {axis!r}")
            if other := [value for value in stated if value != stated[0]]:
                return unread(f"{axis!r} of {noun} {place} is stated as {stated[0]:g} and {other[0]:g}")
            if problem := outside(axis, stated[0], SHARES):
                return unread(problem)
            values.append(stated[0])
        if abs(sum(values) - 1) > ROUNDING + 1e-9:
            return unread(f"scores of {axis!r} add up to {sum(values):g}, not to 1")
        dimensions.append(Dimension(axis, tuple(values)))
    return Verdict(winner=larger(dimensions), strict=True, dimensions=tuple(dimensions))


def read_two_scores(text: str, noun: str) -> Verdict:
    """Read two numbers, with their signs and with or without names; the larger one wins, equal ones are a tie."""
    named = [_named(text, noun, place) for place in (1, 2)]
    numbers = [value_of(match[0]) for match in _NUMBERS.finditer(text)]
    if all(len(values) == 1 for values in named):
        scores = (named[0][0], named[1][0])
    elif len(numbers) == 2 and f"{noun} " not in text:
        scores = (numbers[0], numbers[1])
    else:
        return unread(f"no two numbers, one for each candidate, in {text.strip()[:40]!r}")
    dimensions = (Dimension("Score", scores),)
    return Verdict(winner=larger(dimensions), strict=True, dimensions=dimensions)


def larger(dimensions: Sequence[Dimension]) -> Winner:
    """Return the candidate of two with the larger sum; decimals that differ in their last bits are equal."""
    first, second = sums_of(dimensions)
    difference = round(first - second, 6)
    return "tie" if not difference else 1 if difference > 0 else 2


def _winners(text: str, noun: str) -> list[Winner]:
    """Return whom the sentences of a text name, in their order."""
    found: list[Winner] = []
    for match in _statement(noun).finditer(text):
        before = _ENDS_OF_SENTENCES.split(text[max(0, match.start() - _REACH) : match.start()])[-1]
        if _NEGATED.search(before) or (match["other"] and match["other"] == match["better"]):
            continue
        found.append("tie" if match["better"] is None else 1 if match["better"] == "1" else 2)
    return found


def _statement(noun: str) -> re.Pattern[str]:
    names = _names(noun)
    return re.compile(
        rf"\b(?:(?:{names}) (?P<better>[12]) is better(?: than (?:{names}) (?P<other>[12]))?"
        rf"|both (?:{names})s are equally good)\*{{0,2}} ?(?=[.!\n]|,? ?(?:because|since|due to)\b|\Z)",
        re.IGNORECASE,
    )


def _exact(noun: str) -> re.Pattern[str]:
    pairs = rf"{noun} (?:1 is better(?: than {noun} 2)?|2 is better(?: than {noun} 1)?)"
    return re.compile(rf"(?:Overall Judgment: )?(?:{pairs}|Both {noun.lower()}s are equally good)\.?")


def _names(noun: str) -> str:
    """Return what the candidates are called; training data of v1 says "response" for "answer"."""
    return "answer|response" if noun == "Answer" else noun


def _by_axis(text: str, noun: str, axes: Sequence[str]) -> dict[str, dict[int, list[float]]]:
    """Return the numbers of each candidate on each axis: those between its heading and the next one."""
    heading = re.compile(rf"(?<![A-Za-z])({'|'.join(axes)})\b[^\n:]{{0,40}}(?::|$)", re.IGNORECASE | re.MULTILINE)
    rows: dict[str, dict[int, list[float]]] = {axis: {1: [], 2: []} for axis in axes}
    heads = list(heading.finditer(text))
    for head, after in zip(heads, [*(each.start() for each in heads[1:]), len(text)], strict=False):
        for place in (1, 2):
            rows[head[1].capitalize()][place] += _named(text[head.end() : after], noun, place)
    return rows


def _named(text: str, noun: str, place: int) -> list[float]:
    """Return the numbers that stand behind the name of a candidate."""
    name = re.compile(rf"\b{noun} {place} ?(?:score)? ?\*{{0,2}} ?:", re.IGNORECASE)
    said = (number_after(text, match.end())[0] for match in name.finditer(text))
    return [value for value in said if value is not None]
