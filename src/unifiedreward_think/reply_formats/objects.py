"""Replies that are a JSON object: scores of an edit, and categories of dimensions with a winner.

>>> read_edit('Here: {"reasoning": "the hat is there", "score": [20, 17.5]}', ("Success", "Over-editing")).score
Score(value=37.5, lowest=0.0, highest=50.0)
>>> read_edit('{"reasoning": "the hat is', ("Success", "Over-editing")).problems[0][:11]
'broken JSON'
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unifiedreward_think.reply_formats.numbers import no_constant, outside
from unifiedreward_think.reply_formats.pairs import ROUNDING, larger
from unifiedreward_think.reply_formats.points import is_number, unread
from unifiedreward_think.scores import HIGHEST, Dimension, Score
from unifiedreward_think.strict_json import once_each
from unifiedreward_think.verdict import Verdict, Winner

EDIT_SCALE = (0.0, 25.0)
_START = re.compile(r'\{\s*"')


def read_edit(text: str, names: Sequence[str]) -> Verdict:
    """Read {"reasoning": "..", "score": [a, b]}, each from 0 to 25; the score is their sum.

    Args:
        text: the reply.
        names: what the two numbers are of.
    """
    reply, problems = json_object(text, "score")
    if reply is None:
        return unread(problems)
    said = reply["score"]
    if not isinstance(said, list) or len(said) != len(names) or not all(map(is_number, said)):
        return unread(f"score is {str(said)[:40]}; expected two numbers")
    if wrong := next(filter(None, (outside(*each, EDIT_SCALE) for each in zip(names, said, strict=True))), ""):
        return unread(wrong)
    found = [] if isinstance(reply.get("reasoning"), str) else ["no 'reasoning'"]
    found += [problems] if problems else []
    lowest, highest = EDIT_SCALE
    return Verdict(
        winner=None,
        strict=not found,
        dimensions=tuple(Dimension(name, (float(value),)) for name, value in zip(names, said, strict=True)),
        problems=tuple(found),
        score=Score(float(sum(said)), lowest * len(said), highest * len(said)),
    )


def read_categories(text: str, noun: str) -> Verdict:
    """Read {"categories": [{"dims": [{"name", "score_1", "score_2"}], ..}], "reason", "winner": "Image 1"}.

    Scores of a dimension add up to 10. The winner is what the reply says; scores that are broken or say otherwise are
    problems beside it.
    """
    reply, around = json_object(text, "winner")
    if reply is None:
        return unread(around)
    winner = _winner(reply["winner"], noun)
    if winner is None:
        return unread(f"winner is {reply['winner']!r:.40}; expected '{noun} 1' or '{noun} 2'")
    dimensions, problems = _dimensions(reply.get("categories"))
    problems += [around] if around else []
    problems += [f"no {key!r}" for key in ("reason",) if not isinstance(reply.get(key), str)]
    strict = not problems
    if dimensions and larger(dimensions) not in (winner, "tie"):
        problems.append("the winner has the smaller total")
    return Verdict(winner=winner, strict=strict, dimensions=tuple(dimensions), problems=tuple(problems))


def json_object(text: str, key: str) -> tuple[dict[str, Any] | None, str]:
    """Return the one JSON object of a reply, which must hold a key, and what is wrong; words may stand around it.

    Only a whole outermost object counts: what is left of a broken one is not looked for another inside.
    """
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=once_each, parse_constant=no_constant)
    found: list[dict[str, Any]] = []
    at = 0
    while start := _START.search(text, at):
        try:
            value, at = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError) as error:
            return None, f"broken JSON ({str(error)[:80]})"
        found.append(value)
    if not found:
        return None, "no JSON object"
    if any(other != found[0] for other in found[1:]):
        return None, f"{len(found)} JSON objects that differ"
    if key not in found[0]:
        return None, f"no {key!r}"
    alone = len(found) == 1 and text.strip().startswith("{") and not text[at:].strip()
    return found[0], "" if alone else "text around the JSON"


def _winner(said: object, noun: str) -> Winner | None:
    names = {f"{noun} {place}".lower(): place for place in (1, 2)}
    return names.get(said.strip().lower()) if isinstance(said, str) else None


def _dimensions(categories: object) -> tuple[list[Dimension], list[str]]:
    """Return the dimensions of all categories that have two scores, and what is wrong with the others."""
    if not isinstance(categories, list) or not categories:
        return [], ["no categories"]
    dimensions: list[Dimension] = []
    problems: list[str] = []
    for number, category in enumerate(categories, start=1):
        dims = category.get("dims") if isinstance(category, Mapping) else None
        if not isinstance(dims, list) or not dims:
            problems.append(f"no dims in category {number}")
            continue
        for place, said in enumerate(dims, start=1):
            dimension = _dimension(said)
            if dimension is None:
                problems.append(f"no two scores in dimension {place} of category {number}")
            elif wrong := [p for score in dimension.scores if (p := outside(dimension.name, score, (0, HIGHEST)))]:
                problems.append(wrong[0])
            else:
                dimensions.append(dimension)
                if abs(sum(dimension.scores) - HIGHEST) > ROUNDING:
                    total = sum(dimension.scores)
                    problems.append(f"scores of {dimension.name!r} add up to {total:g}, not to {HIGHEST}")
    return dimensions, problems


def _dimension(said: object) -> Dimension | None:
    match said:
        case {"name": str(name), "score_1": first, "score_2": second} if is_number(first) and is_number(second):
            return Dimension(name, (float(first), float(second)))
    return None
