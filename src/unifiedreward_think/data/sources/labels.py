"""Who is preferred, by the rule of a source: the larger number, a marked candidate, a word, the first; or scores.

>>> rule = label_rule({"rule": "larger", "first": "v1", "second": "v2", "votes": True},
...                   Finder("demo", ["v1", "v2"], {}))
>>> rule({"v1": 19, "v2": 7})
Label(preferred=1, margin=0.46153846153846156, votes=26, scores=(), scale=None)
>>> rule({"v1": 3, "v2": 3}).preferred
'tie'
>>> label_rule({"rule": "scores", "columns": ["v1"], "scale": [1, 5]}, Finder("demo", ["v1"], {}))({"v1": [4, 5]})
Label(preferred=None, margin=None, votes=None, scores=(4.5,), scale=(1.0, 5.0))
>>> rule({"v1": float("nan"), "v2": 3})
Traceback (most recent call last):
    ...
unifiedreward_think.errors.RecordError: label.first is nan; expected a finite number
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from unifiedreward_think.data.formats.files import DataError, LeftOut
from unifiedreward_think.data.sources.columns import Column, Finder
from unifiedreward_think.errors import RecordError
from unifiedreward_think.records import Preferred


class Label(NamedTuple):
    """Which candidate of a row is preferred, by how much (a share, or the source's unit), and by how many votes.

    Where each candidate has a score, `scores` and their `scale` stand in place of it: the preference follows.
    """

    preferred: Preferred | None
    margin: float | None = None
    votes: int | None = None
    scores: tuple[float, ...] = ()
    scale: tuple[float, float] | None = None


Rule = Callable[[Mapping[str, Any]], Label]
# Rule -> its keys in a declaration, besides "rule".
RULE_KEYS = {
    "larger": {"first", "second", "votes", "smaller_wins", "margin", "min_margin", "min_votes"},
    "first": set(),
    "marked": {"column"},
    "words": {"column", "first", "second", "tie"},
    "scores": {"columns", "scale", "meaningless", "unscored"},
}


def label_rule(declared: Mapping[str, Any], finder: Finder) -> Rule:
    """Return the function from a row to its label.

    Rules: `larger` compares two numbers (equal is a tie; `votes` says that they are counts, `margin: difference` keeps
    the plain difference where the default is its share of the sum); `first` always prefers the first candidate;
    `marked` reads a list with a single 1; `words` looks a text up; `scores` reads a score of each candidate on `scale`
    (a list of annotators, or several columns, count by their mean), leaves rows out that most call `meaningless`, and
    with `unscored: leave_out` those whose score is not there. `ties: leave_out` leaves ties out; they are kept
    otherwise.

    Raises:
        DataError: the rule or one of its keys is unknown, or a column does not exist.
    """
    name = declared.get("rule")
    if name not in RULE_KEYS:
        raise DataError(f"label: rule {name!r} is unknown; known: {', '.join(RULE_KEYS)}")
    if unknown := set(declared) - RULE_KEYS[name] - {"rule", "ties"}:
        known = ", ".join(sorted(RULE_KEYS[name]))
        raise DataError(f"label: unknown key {min(unknown)!r}; rule {name!r} takes {known or 'none'}")
    for key in ("votes", "smaller_wins"):
        if not isinstance(declared.get(key, False), bool):
            raise DataError(f"label: {key} is {declared[key]!r}; write true or false")
    if declared.get("unscored", "error") not in ("error", "leave_out"):
        raise DataError(f"label: unscored is {declared['unscored']!r}; choose 'error' or 'leave_out'")
    for key in ("min_margin", "min_votes"):
        if not isinstance(declared.get(key, 0), int | float):
            raise DataError(f"label: {key} is {declared[key]!r}; write a number")
    if declared.get("margin", "share") not in ("share", "difference"):
        raise DataError(f"label: margin is {declared['margin']!r}; choose 'share' or 'difference'")
    rule = _rule(name, declared, finder)
    ties = declared.get("ties", "keep")
    if ties not in ("keep", "leave_out"):
        raise DataError(f"label: ties is {ties!r}; choose 'keep' or 'leave_out'")
    return rule if ties == "keep" else _without_ties(rule)


def _rule(name: str, declared: Mapping[str, Any], finder: Finder) -> Rule:
    if name == "larger":
        columns = [finder.column(declared[side], where=f"label.{side}") for side in ("first", "second")]
        return _larger(columns, declared)
    if name == "first":
        return lambda row: Label(1)
    if name == "scores":
        return _scores(declared, finder)
    column = finder.column(declared["column"], where="label.column")
    return _marked(column) if name == "marked" else _words(column, declared)


def _without_ties(rule: Rule) -> Rule:
    def decided(row: Mapping[str, Any]) -> Label:
        label = rule(row)
        if label.preferred == "tie":
            raise LeftOut("a tie")
        return label

    return decided


def _larger(columns: list[Column], declared: Mapping[str, Any]) -> Rule:
    counts = bool(declared.get("votes"))
    sign = -1 if declared.get("smaller_wins") else 1
    share = declared.get("margin", "share") == "share"
    min_margin, min_votes = declared.get("min_margin", 0.0), declared.get("min_votes", 0)

    def rule(row: Mapping[str, Any]) -> Label:
        a, b = (_number(c.get(row), f"label.{side}") for c, side in zip(columns, ("first", "second"), strict=True))
        if counts and (a < 0 or b < 0 or a != int(a) or b != int(b)):
            raise RecordError(f"votes are {a:g} and {b:g}; expected whole numbers from 0 on")
        if counts and a + b < min_votes:
            raise LeftOut(f"fewer than {min_votes} votes")
        difference = sign * (a - b)
        total = abs(a) + abs(b)
        margin = abs(difference) / total if share and total else abs(difference)
        if difference and margin < min_margin:
            raise LeftOut(f"a margin under {min_margin:g}")
        preferred: Preferred = "tie" if not difference else 1 if difference > 0 else 2
        return Label(preferred, margin, int(a + b) if counts else None)

    return rule


def _marked(column: Column) -> Rule:
    def rule(row: Mapping[str, Any]) -> Label:
        marks = column.get(row)
        if not isinstance(marks, list) or sorted(map(str, marks)) != ["0", "1"]:
            raise RecordError(f"{column.name} is {str(marks)[:60]}; expected [1, 0] or [0, 1]")
        return Label(1 if str(marks[0]) == "1" else 2)

    return rule


def _words(column: Column, declared: Mapping[str, Any]) -> Rule:
    sides: dict[str, Preferred] = {"first": 1, "second": 2, "tie": "tie"}
    meaning: dict[str, Preferred] = {}
    for side, preferred in sides.items():
        for word in map(_word, declared.get(side, [])):
            if meaning.setdefault(word, preferred) != preferred:
                raise DataError(f"label: the word {word!r} stands for two of first, second and tie; keep one")

    def rule(row: Mapping[str, Any]) -> Label:
        word = column.get(row)
        if word is None or word != word:  # null, and what pandas makes of it
            raise RecordError(f"{column.name} is empty; expected one of {', '.join(meaning)}")
        known = meaning.get(_word(word))
        if known is None:
            raise RecordError(f"{column.name} says {str(word)[:60]!r}; expected one of {', '.join(meaning)}")
        return Label(known)

    return rule


def _scores(declared: Mapping[str, Any], finder: Finder) -> Rule:
    columns, (lowest, highest) = scored_columns(declared), scale_of(declared)
    found = [[finder.column(spec, where="label.columns") for spec in specs] for specs in columns]
    flag = finder.column(declared["meaningless"], where="label.meaningless") if "meaningless" in declared else None
    leave_out = declared.get("unscored", "error") == "leave_out"

    def stated(row: Mapping[str, Any], column: Column) -> Any:
        try:
            value = column.get(row)
        except RecordError as error:  # the text of this row states none
            if leave_out:
                raise LeftOut("no score is stated") from error
            raise
        if leave_out and value in (None, "", []):
            raise LeftOut("no score is stated")
        return value

    def rule(row: Mapping[str, Any]) -> Label:
        if flag is not None and _mean_of(flag.get(row), flag.name) > 0.5:
            raise LeftOut("most annotators call the prompt meaningless")
        scores = [fmean(_mean_of(stated(row, column), column.name) for column in specs) for specs in found]
        for score in scores:
            if not lowest <= score <= highest:
                raise RecordError(f"score {score:g} lies outside of the declared scale {lowest:g} to {highest:g}")
        return Label(None, scores=tuple(scores), scale=(lowest, highest))

    return rule


def scored_columns(declared: Mapping[str, Any]) -> list[list[Any]]:
    """Return the columns whose mean is the score, for each candidate.

    Raises:
        DataError: there are none.
    """
    columns = declared.get("columns")
    if not isinstance(columns, list) or not columns or [] in columns:
        raise DataError(
            f"label: columns is {columns!r}; write a list, one column (or a list of some) for each candidate"
        )
    return [specs if isinstance(specs, list) else [specs] for specs in columns]


def scale_of(declared: Mapping[str, Any]) -> tuple[float, float]:
    """Return the ends of the scale of scores.

    Raises:
        DataError: they are not two numbers, the lower one first.
    """
    scale = declared.get("scale")
    if not isinstance(scale, list) or len(scale) != 2:
        raise DataError(f"label: scale is {scale!r}; write [lowest, highest]")
    try:
        lowest, highest = (_number(end, "label.scale") for end in scale)
    except RecordError as error:
        raise DataError(str(error)) from error
    if lowest >= highest:
        raise DataError(f"label: scale is {scale!r}; write [lowest, highest]")
    return lowest, highest


def _mean_of(value: Any, name: str) -> float:
    """Return the mean of what annotators say, or the one number that is there."""
    numbers = value if isinstance(value, list) else [value]
    if not numbers:
        raise RecordError(f"{name} is an empty list; expected a number, or those of the annotators")
    return fmean(_number(number, name) for number in numbers)


def _word(value: Any) -> str:
    return str(value).strip().lower()


def _number(value: Any, name: str) -> float:
    """Return a finite number; text is taken as the number it spells, as in CSV."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise RecordError(f"{name} is {str(value)[:60]!r} ({type(value).__name__}); expected a number") from error
    if not math.isfinite(number):
        raise RecordError(f"{name} is {number}; expected a finite number")
    return number
