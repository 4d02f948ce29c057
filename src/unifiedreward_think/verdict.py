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

from unifiedreward_think.blocks import Style, form_problems, last_answer, thinking
from unifiedreward_think.scores import (
    NUMBER,
    Dimension,
    Score,
    read_dimension,
    read_score,
    score_problems,
    sums_of,
    winner_problems,
)

Layout = Literal["one_line", "three_line"]
Winner = int | Literal["tie"]
NOUNS = ("Image", "Video", "Answer")
_CANDIDATE = r"(Image|Video|Answer) {1,3}([12])"
# "Image 1 (9/10)", "Image 1: 9/10", "**Image 1** (9/10)", "**Image 1:** 9/10"
_SCORE = re.compile(rf"{_CANDIDATE}\*{{0,2}} ?[(:]\*{{0,2}} ?{NUMBER} ?/ ?10(?!\d)")
# "Image 1: 9+8+8=25", "Image 1: 25", "**Image 1**: 9 + 8 = 17/20", but not the unfinished "Image 1: 9+8"
_TOTAL = re.compile(
    rf"[\s*-]{{0,8}}{_CANDIDATE}\*{{0,2}} ?: ?\*{{0,2}} ?(?:[\d.+/ ]{{1,200}}= ?\*{{0,2}})?{NUMBER}"
    r"(?:/\d{2,3})?(?! ?[\d/+]|\.\d)"
)
_TOTALS = re.compile(r"totals?(?: (?:raw )?(?:score|point)s?\b.*)?", re.IGNORECASE)
_AROUND_NOTE = " \t*)(:;,-\u2013\u2014"  # brackets of the score, and what parts it from its reason
_BULLET = re.compile(r"^[\s*#-]{0,8}(?:\d{1,2}[.)])?[\s*]{0,4}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a completion says.

    Attributes:
        winner: the place of the winner in the order shown, from 1; "tie" where a judge that may call ties does
            (`reply_formats`); None when no answer can be read (`problems` says why).
        strict: the whole completion is one think block and one answer block ('direct': one answer block),
            and the answer is letter for letter one of the allowed strings.
        dimensions: those that score all candidates, in the order written.
        totals: the sum of each candidate as stated by the model, None unless all are stated.
        problems: why `strict` or `arithmetic_ok` is False, or nothing can be read; empty for a perfect chain of
            thought.
        score: of the one candidate that was shown, where a score was asked for and can be read (`points.py`).
        words: of the caption, each with how badly it is shown, where a judge states that (`reply_formats`).
    """

    winner: Winner | None
    strict: bool
    dimensions: tuple[Dimension, ...] = ()
    totals: tuple[float, ...] | None = None
    problems: tuple[str, ...] = ()
    score: Score | None = None
    words: tuple[Dimension, ...] = ()

    @property
    def arithmetic_ok(self) -> bool:
        """Whether each stated total is the sum of its scores and the answer follows from the totals."""
        if self.score is not None:
            return not score_problems(self.score, self.dimensions, self.totals)
        return self.winner is not None and not winner_problems(self.winner, self.dimensions, self.totals)

    @property
    def sums(self) -> tuple[float, ...]:
        """The sum of each candidate's scores, in the order shown; empty without scores."""
        return sums_of(self.dimensions)

    @property
    def margin(self) -> float | None:
        """Sum of the first candidate's scores minus the second's; None where there are no scores of two candidates."""
        return self.sums[0] - self.sums[1] if len(self.sums) == 2 else None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: a dimension is a list of its name and the scores, a score one of value and scale."""
        row = {
            "winner": self.winner,
            "strict": self.strict,
            "scores": [[dimension.name, *dimension.scores] for dimension in self.dimensions],
            "totals": self.totals,
            "problems": self.problems,
        }
        said = {} if self.score is None else {"score": list(self.score)}
        return {**row, **said, **({"words": [[word, *scores] for word, scores in self.words]} if self.words else {})}

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
            dimensions=tuple(map(read_dimension, row["scores"])),
            totals=None if row["totals"] is None else tuple(row["totals"]),
            problems=tuple(row["problems"]),
            score=read_score(row["score"]) if "score" in row else None,
            words=tuple(map(read_dimension, row.get("words", ()))),
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


def parse(text: str, noun: str, *, style: Style = "cot") -> Verdict:
    """Parse a completion; never raises, whatever the text.

    The winner is what the last answer block after the thinking says. An answer inside a think block, or after one
    that was never closed, is not an answer.

    Args:
        text: the completion, without the prompt.
        noun: "Image", "Video" or "Answer": what the candidates are called in this task.
        style: "cot" asks for a think block, "direct" for the answer block alone; it only affects `strict`.

    >>> parse("<answer>Image 1 is better</answer>", "Image").problems[0]
    'no think block'
    """
    winner, problems = _read_winner(text, noun)
    strict_problems = form_problems(text, style, {answer_text(k, noun) for k in (1, 2)}.__contains__)
    scores, totals, found = _read_scores(thinking(text), noun)
    if style == "cot" and winner is not None:
        found += winner_problems(winner, scores, totals)
    return Verdict(
        winner=winner,
        strict=not strict_problems,
        dimensions=scores,
        totals=totals,
        problems=tuple(dict.fromkeys([*strict_problems, *problems, *found])),
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
        sides = [
            f"{noun} {k} ({value:g}/10)" + (f" - {why}" if why else "")
            for k, (value, why) in enumerate(zip(values, reasons, strict=True), start=1)
        ]
        if layout == "one_line":
            lines.append(f"{i + 1}. {name}: " + "; ".join(sides))
        else:
            lines += [f"{i + 1}. {name}:", *(f"   {line}" for line in sides)]
    if scores:
        lines.append("Total score:")
        _, *columns = zip(*scores, strict=True)
        for k, column in enumerate(columns, start=1):
            lines.append(f"{noun} {k}: " + "+".join(f"{v:g}" for v in column) + f"={sum(column):g}")
    body = "\n".join(lines)
    return f"<think>\n{body}\n</think>\n<answer>{answer_text(winner, noun)}</answer>"


def _read_winner(text: str, noun: str) -> tuple[int | None, list[str]]:
    block, problem = last_answer(text)
    if block is None:
        return None, [problem]
    winner = read_answer(block, noun)
    if winner is None:
        allowed = " or ".join(repr(answer_text(k, noun)) for k in (1, 2))
        return None, [f"answer is not {allowed}"]
    return winner, []


def read_notes(text: str, noun: str) -> list[tuple[str, ...]]:
    r"""Return the reason of each score, for the dimensions that `parse` reads; "" where none is given.

    >>> read_notes("<think>\n1. Light: Image 1 (9/10) - even; Image 2 (4/10)\n</think>", "Image")
    [('even', '')]
    """
    rows, _ = _read_lines(thinking(text), noun)
    return [(row[1].note, row[2].note) for _, row in rows if len(row) == 2]


class _Mention(NamedTuple):
    """A score of a candidate, and the text between it and the next one on its line."""

    score: float
    note: str


def _read_scores(think: str, noun: str) -> tuple[tuple[Dimension, ...], tuple[float, ...] | None, list[str]]:
    rows, totals = _read_lines(think, noun)
    whole = tuple(Dimension(name, (row[1].score, row[2].score)) for name, row in rows if len(row) == 2)
    problems = [f"{name!r} scores one candidate only" for name, row in rows if len(row) == 1]
    problems += [f"score over 10 in {s.name!r}" for s in whole if max(s.scores) > 10]
    return whole, (totals[1], totals[2]) if len(totals) == 2 else None, problems


def _read_lines(think: str, noun: str) -> tuple[list[tuple[str, dict[int, _Mention]]], dict[int, float]]:
    """Return each heading with what its lines say of each candidate, and the totals."""
    rows: list[tuple[str, dict[int, _Mention]]] = []
    totals: dict[int, float] = {}
    in_totals = False
    for line in think.splitlines():
        mentions = [m for m in _SCORE.finditer(line) if m.group(1) == noun]
        if head := _heading(line[: mentions[0].start()] if mentions else line):
            in_totals = _TOTALS.fullmatch(head) is not None
            if not in_totals:
                rows.append((head, {}))
        if in_totals:
            if (total := _TOTAL.match(line)) and total.group(1) == noun:
                totals.setdefault(int(total.group(2)), float(total.group(3)))
        elif rows:
            ends = [*(mention.start() for mention in mentions[1:]), len(line)]
            for mention, end in zip(mentions, ends, strict=False):
                note = line[mention.end() : end].strip(_AROUND_NOTE)
                rows[-1][1].setdefault(int(mention.group(2)), _Mention(float(mention.group(3)), note))
    return rows, totals


def _heading(text: str) -> str:
    """Return the dimension named by '1. **Aesthetics**:', or '' when the text is no heading."""
    stripped = text.rstrip(" *")
    if not stripped.endswith(":") or len(stripped) > 120:
        return ""
    name = _BULLET.sub("", stripped[:-1], count=1).strip(" *")
    return "" if re.fullmatch(_CANDIDATE, name) else name
