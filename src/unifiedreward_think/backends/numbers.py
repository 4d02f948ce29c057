"""How probable each allowed number was where a completion says one: by a model's own scores, or a server's top tokens.

A server tells, for each token that it wrote, the most probable tokens in its place. What follows a token that it did
not write is not told: "1" may have been a 1 or the beginning of 10. Such mass is left out, and so is what no top token
has; where it is more than a little, there is no expectation (`expectation.MOST_LEFT_OUT`).

>>> place = Place("Light", "Light: 8/10", 7, 8, 11, ("1", "8", "9", "10"))
>>> spoken = [Spoken("Light: ", {}), Spoken("8", {"8": 0.6, "9": 0.3, "1": 0.06}), Spoken("/", {"/": 0.9, ".": 0.1}),
...           Spoken("10", {})]
>>> masses_from_top(place, spoken)
Masses(of_allowed=(0.0, 0.54, 0.3, 0.0), left_out=0.1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unifiedreward_think.expectation import Masses, Place


class Spoken(NamedTuple):
    """A token that a server wrote, as text, and the probabilities of the top tokens in its place."""

    text: str
    top: Mapping[str, float]


def masses_of(place: Place, opening: str, tokenizer: Any, alternatives: Any) -> Masses:
    """Return how probable each allowed number is at a place, each scored exactly, up to the token that ends it.

    Args:
        place: where the number stands in a completion.
        opening: of the completion, which the prompt ends with.
        tokenizer: of the model.
        alternatives: `engine.alternatives.Alternatives` of the prompt.
    """
    continuations = []
    for number in place.allowed:
        encoded = tokenizer(
            place.alternative(number).removeprefix(opening), add_special_tokens=False, return_offsets_mapping=True
        )
        ending = place.start - len(opening) + len(number)
        tokens = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        continuations.append([token for token, (start, _) in tokens if start <= ending])
    return Masses(tuple(map(math.exp, alternatives.log_probabilities(continuations))))


def masses_from_top(place: Place, spoken: Sequence[Spoken]) -> Masses:
    """Return how probable each allowed number is at a place, by the top tokens of what a server wrote.

    The probability of a number that was not written is that of its token, if no other allowed number begins with it:
    how it would have ended is not told.
    """
    known = dict.fromkeys(place.allowed, 0.0)
    if not "".join(token.text for token in spoken).startswith(place.text[: place.close]):
        return Masses(*_rounded(known, 1.0))  # the server tells no tokens, or not those of this text
    left_out, path, before, at = 0.0, 1.0, "", 0
    for token in spoken:
        start, at = at, at + len(token.text)
        if at <= place.start:
            continue
        lead = place.text[start : place.start] if start < place.start else ""
        left_out += path * max(0.0, 1 - math.fsum(token.top.values()))
        for text, chance in token.top.items():
            if text == token.text or not text.startswith(lead):
                continue
            number, sure = _number(before + text.removeprefix(lead), place)
            if number and sure:
                known[number] += path * chance
            elif number or _begins(before + text.removeprefix(lead), place):
                left_out += path * chance
        path *= token.top.get(token.text, 0.0)
        before += token.text.removeprefix(lead)
        if start + len(token.text) > place.end:  # the number has ended
            number, _ = _number(before, place)
            if number:
                known[number] += path
            return Masses(*_rounded(known, left_out))
    return Masses(*_rounded(known, left_out + path))


def _number(text: str, place: Place) -> tuple[str, bool]:
    """Return the allowed number that a text is, alone or ended; and whether it can be no other one. "" for none."""
    ending = place.text[place.end : place.close]
    for number in place.allowed:
        rest = text.removeprefix(number) if text.startswith(number) else None
        if rest == "":
            return number, not any(other != number and other.startswith(number) for other in place.allowed)
        if rest and (ending.startswith(rest) or rest.startswith(ending)):
            return number, True
    return "", False


def _begins(text: str, place: Place) -> bool:
    return any(number.startswith(text) for number in place.allowed)


def _rounded(known: Mapping[str, float], left_out: float) -> tuple[tuple[float, ...], float]:
    return tuple(round(mass, 12) for mass in known.values()), round(left_out, 12)
