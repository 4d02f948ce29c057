"""Read a completion into a `Verdict`: who won, the scores behind it, and whether the sums add up.

The one parser of the project: training rewards, rejection sampling, evaluation and the demo all call `parse`.

>>> text = render(2, [("Aesthetics", 4, 9)], noun="Image")
>>> print(text)
<think>
1. Aesthetics: Image 1 (4/10); Image 2 (9/10)
Total score:
Image 1: 4=4
Image 2: 9=9
</think>
<answer>Image 2 is better</answer>
>>> verdict = parse(text, noun="Image")
>>> verdict.winner, verdict.strict, verdict.arithmetic_ok
(2, True, True)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Style = Literal["cot", "direct"]
Layout = Literal["one_line", "three_line"]
NOUNS = ("Image", "Video", "Answer")
STOP_STRING = "</answer>"

_STRICT = {
    "cot": re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL),
    "direct": re.compile(r"\s*()<answer>(.*?)</answer>\s*", re.DOTALL),
}
_TAGS = {"cot": ("<think>", "</think>", "<answer>", "</answer>"), "direct": ("<answer>", "</answer>")}
_NUMBER = r"(\d{1,4}(?:\.\d{1,2})?)"
_CANDIDATE = r"(Image|Video|Answer) {1,3}([12])"
# "Image 1 (9/10)", "Image 1: 9/10", "**Image 1** (9/10)", "**Image 1:** 9/10"
_SCORE = re.compile(rf"{_CANDIDATE}\*{{0,2}} ?[(:]\*{{0,2}} ?{_NUMBER} ?/ ?10(?!\d)")
# "Image 1: 9+8+8=25", "Image 1: 25", "**Image 1**: 9 + 8 = 17/20", but not the unfinished "Image 1: 9+8"
_TOTAL = re.compile(
    rf"[\s*-]{{0,8}}{_CANDIDATE}\*{{0,2}} ?: ?\*{{0,2}} ?(?:[\d.+/ ]{{1,200}}= ?\*{{0,2}})?{_NUMBER}"
    r"(?:/\d{2,3})?(?! ?[\d/+]|\.\d)"
)
_TOTALS = re.compile(r"totals?(?: (?:raw )?(?:score|point)s?\b.*)?", re.IGNORECASE)
_BULLET = re.compile(r"^[\s*#-]{0,8}(?:\d{1,2}[.)])?[\s*]{0,4}")


class Dimension(NamedTuple):
    """A named dimension and the score (out of 10) of each candidate, in the order shown."""

    name: str
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a completion says.

    Attributes:
        winner: the place of the winner in the order shown, from 1; None when no answer can be read (`problems` says
            why).
        strict: the whole completion is one think block and one answer block ('direct': one answer block),
            and the answer is letter for letter one of the two allowed strings.
        dimensions: those that score all candidates, in the order written.
        totals: the sum of each candidate as stated by the model, None unless all are stated.
        problems: why `strict` or `arithmetic_ok` is False, or `winner` is None; empty for a perfect chain of thought.
    """

    winner: int | None
    strict: bool
    dimensions: tuple[Dimension, ...] = ()
    totals: tuple[float, ...] | None = None
    problems: tuple[str, ...] = ()

    @property
    def arithmetic_ok(self) -> bool:
        """Whether each stated total is the sum of its scores and the larger total belongs to the winner."""
        return self.winner is not None and not _arithmetic_problems(self.winner, self.dimensions, self.totals)

    @property
    def sums(self) -> tuple[float, ...]:
        """The sum of each candidate's scores, in the order shown; empty without scores."""
        return _sums(self.dimensions)

    @property
    def margin(self) -> float | None:
        """Sum of the first candidate's scores minus the second's; None where there are no scores of two candidates."""
        return self.sums[0] - self.sums[1] if len(self.sums) == 2 else None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: a dimension is a list of its name and the scores."""
        return {
            "winner": self.winner,
            "strict": self.strict,
            "scores": [[dimension.name, *dimension.scores] for dimension in self.dimensions],
            "totals": self.totals,
            "problems": self.problems,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Verdict:
        """Build a verdict from its JSON form; a KeyError, TypeError or ValueError where it is none.

        >>> verdict = parse(render(1, [("Light", 9, 4)], noun="Image"), "Image")
        >>> Verdict.from_json(verdict.to_json()) == verdict
        True
        """
        return cls(
            winner=row["winner"],
            strict=row["strict"],
            dimensions=tuple(map(_read_dimension, row["scores"])),
            totals=None if row["totals"] is None else tuple(row["totals"]),
            problems=tuple(row["problems"]),
        )


def answer_text(winner: int, noun: str) -> str:
    """Return the answer string of the method, also the `solution` column of the released GRPO files.

    >>> answer_text(1, "Video")
    'Video 1 is better'
    """
    return f"{noun} {winner} is better"


def read_answer(text: str, noun: str | None = None) -> int | None:
    """Read the content of an answer block or a `solution`; case, spacing and a final period are forgiven.

    >>> read_answer(" image 2 is better. ", "Image"), read_answer("Image 2 is better than Image 1")
    (2, None)
    """
    nouns = "|".join(NOUNS) if noun is None else re.escape(noun)
    match = re.fullmatch(rf"(?:{nouns})\s+([12])\s+is\s+better(?:\s*\.)?", text.strip(), re.IGNORECASE)
    return int(match.group(1)) if match else None


def parse(text: str, noun: str, *, style: Style = "cot", lenient: bool = False) -> Verdict:
    """Parse a completion; never raises, whatever the text.

    The winner is what the last answer block after the thinking says. An answer inside a think block, or after one
    that was never closed, is not an answer.

    Args:
        text: the completion, without the prompt.
        noun: "Image", "Video" or "Answer": what the candidates are called in this task.
        style: "cot" asks for a think block, "direct" for the answer block alone; it only affects `strict`.
        lenient: when no answer block can be read, accept a text that calls exactly one candidate better, as the
            published evaluation scripts did (they searched the whole output for the sentence).

    >>> parse("<answer>Image 1 is better</answer>", "Image").problems[0]
    'no think block'
    >>> parse("so Image 1 is better", "Image").winner, parse("so Image 1 is better", "Image", lenient=True).winner
    (None, 1)
    """
    winner, problems = _read_winner(text, noun)
    if winner is None and lenient:
        named = [k for k in (1, 2) if answer_text(k, noun) in text]
        winner = named[0] if len(named) == 1 else None
    strict_problems = _strict_problems(text, noun, style)
    think = "\n".join(piece.partition("<think>")[2] for piece in text.split("</think>"))
    scores, totals, score_problems = _read_scores(think, noun)
    if style == "cot" and winner is not None:
        score_problems += _arithmetic_problems(winner, scores, totals)
    return Verdict(
        winner=winner,
        strict=not strict_problems,
        dimensions=scores,
        totals=totals,
        problems=tuple(dict.fromkeys([*strict_problems, *problems, *score_problems])),
    )


def render(
    winner: int,
    scores: Sequence[tuple[Any, ...]],
    *,
    noun: str,
    layout: Layout = "one_line",
    notes: Sequence[Sequence[str]] = (),
    preamble: str = "",
) -> str:
    """Write a perfect completion, the inverse of `parse`.

    Args:
        winner: the better one, from 1.
        scores: (dimension, score of each candidate), out of 10.
        noun: what the candidates are called.
        layout: "one_line" writes a dimension on one line, "three_line" gives each candidate its own line; both are
            found in released data.
        notes: for each dimension the reason of each score.
        preamble: observations written before the first dimension.
    """
    lines = [preamble] if preamble else []
    for i, (name, *values) in enumerate(scores):
        reasons = notes[i] if notes else [""] * len(values)
        said = [
            f"{noun} {k} ({value:g}/10)" + (f" - {why}" if why else "")
            for k, (value, why) in enumerate(zip(values, reasons, strict=True), start=1)
        ]
        if layout == "one_line":
            lines.append(f"{i + 1}. {name}: " + "; ".join(said))
        else:
            lines += [f"{i + 1}. {name}:", *(f"   {line}" for line in said)]
    if scores:
        lines.append("Total score:")
        _, *columns = zip(*scores, strict=True)
        for k, column in enumerate(columns, start=1):
            lines.append(f"{noun} {k}: " + "+".join(f"{v:g}" for v in column) + f"={sum(column):g}")
    body = "\n".join(lines)
    return f"<think>\n{body}\n</think>\n<answer>{answer_text(winner, noun)}</answer>"


def _read_winner(text: str, noun: str) -> tuple[int | None, list[str]]:
    tail = text.rpartition("</think>")[2]
    if "<think>" in tail:
        return None, ["think block not closed"]
    head, closed, _ = tail.rpartition("</answer>")
    _, opened, block = head.rpartition("<answer>")
    if not (opened and closed):
        return None, ["no answer block"]
    winner = read_answer(block.partition("</answer>")[0], noun)
    if winner is None:
        allowed = " or ".join(repr(answer_text(k, noun)) for k in (1, 2))
        return None, [f"answer is not {allowed}"]
    return winner, []


def _strict_problems(text: str, noun: str, style: Style) -> list[str]:
    problems = []
    for tag in _TAGS[style]:
        if (count := text.count(tag)) != 1 and tag.startswith("</") is False:
            block = tag.strip("<>")
            problems.append(f"no {block} block" if count == 0 else f"{count} {block} blocks")
    if problems:
        return problems
    match = _STRICT[style].fullmatch(text)
    if match is None or any(text.count(tag) != 1 for tag in _TAGS[style]):
        return ["text outside the blocks, or blocks not closed or out of order"]
    if style == "cot" and not match.group(1).strip():
        problems.append("empty think block")
    if match.group(2).strip() not in {answer_text(k, noun) for k in (1, 2)}:
        problems.append("answer string is not exact")
    return problems


def _read_scores(think: str, noun: str) -> tuple[tuple[Dimension, ...], tuple[float, ...] | None, list[str]]:
    found: list[tuple[str, dict[int, float]]] = []
    totals: dict[int, float] = {}
    in_totals = False
    for line in think.splitlines():
        mentions = [m for m in _SCORE.finditer(line) if m.group(1) == noun]
        if head := _heading(line[: mentions[0].start()] if mentions else line):
            in_totals = _TOTALS.fullmatch(head) is not None
            if not in_totals:
                found.append((head, {}))
        if in_totals:
            if (total := _TOTAL.match(line)) and total.group(1) == noun:
                totals.setdefault(int(total.group(2)), float(total.group(3)))
        elif found:
            for mention in mentions:
                found[-1][1].setdefault(int(mention.group(2)), float(mention.group(3)))
    whole = tuple(Dimension(name, (s[1], s[2])) for name, s in found if len(s) == 2)
    problems = [f"{name!r} scores one candidate only" for name, s in found if len(s) == 1]
    problems += [f"score over 10 in {s.name!r}" for s in whole if max(s.scores) > 10]
    return whole, (totals[1], totals[2]) if len(totals) == 2 else None, problems


def _heading(text: str) -> str:
    """Return the dimension named by '1. **Aesthetics**:', or '' when the text is no heading."""
    stripped = text.rstrip(" *")
    if not stripped.endswith(":") or len(stripped) > 120:
        return ""
    name = _BULLET.sub("", stripped[:-1], count=1).strip(" *")
    return "" if re.fullmatch(_CANDIDATE, name) else name


def _read_dimension(row: Any) -> Dimension:
    if not isinstance(row, list | tuple):
        raise TypeError(f"a dimension is a list of its name and the scores, found {row!r}")
    name, *scores = row
    if not isinstance(name, str) or not all(isinstance(score, int | float) for score in scores):
        raise TypeError(f"a dimension is a list of its name and the scores, found {row!r}")
    return Dimension(name, tuple(scores))


def _sums(dimensions: Sequence[Dimension]) -> tuple[float, ...]:
    return tuple(map(sum, zip(*(dimension.scores for dimension in dimensions), strict=True)))


def _arithmetic_problems(winner: int, dimensions: Sequence[Dimension], totals: tuple[float, ...] | None) -> list[str]:
    if not dimensions:
        return ["no dimension scores both candidates"]
    if totals is None:
        return ["totals are not stated"]
    problems = []
    for k, (stated, actual) in enumerate(zip(totals, _sums(dimensions), strict=True), start=1):
        if abs(stated - actual) > 1e-6:
            problems.append(f"total of candidate {k} is stated as {stated:g}, its scores add up to {actual:g}")
    if totals.count(max(totals)) > 1:
        problems.append("totals are equal, so the answer does not follow from them")
    elif totals[winner - 1] != max(totals):
        problems.append("the winner has the smaller total")
    return problems
