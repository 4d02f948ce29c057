"""What the page shows of judgments, as HTML: verdict, bars, votes, agreement, reasoning, prompt, raw text.

A and B are the candidates as the user placed them; what the model wrote names them by the order it was shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from unifiedreward_think.backends import Completion
from unifiedreward_think.candidate_points import Points
from unifiedreward_think.evaluation.examples import shown_verdict
from unifiedreward_think.evaluation.tables import HEADLINE, counts, table_rows, title
from unifiedreward_think.judging.judge import judgment
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.metrics import both_orders, pair_orders
from unifiedreward_think.order import Order
from unifiedreward_think.pages import load_template
from unifiedreward_think.prompting import Media
from unifiedreward_think.records import Judgment, PreferenceRecord, Preferred
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.votes import combine

Asked = tuple[PreferenceRecord, list[Judgment]]  # a pair, and the samples of one order


def writing(record: PreferenceRecord, order: Order, text: str, config: JudgingConfig) -> str:
    """Return the verdict card while the model writes: the bars grow with the text."""
    row = judgment(record, order, Completion(text, "stop"), config)
    return _render("card", v=shown_verdict(row), record=record, **_names(record, order), writing=True)


def waiting() -> str:
    """Return the card while the model is still busy with another question."""
    return _render("waiting")


def card(record: PreferenceRecord, rows: Sequence[Judgment], other: Sequence[Judgment] = ()) -> str:
    """Return the verdict card.

    Args:
        record: the pair.
        rows: the samples of the order asked last.
        other: those of the other order, if it was asked.
    """
    result = combine(rows)
    winner = letter_of(result.winner)
    verdict = shown_verdict(result.chosen)
    flat = [(name, *scores) for name, scores in result.dimensions]
    totals = [sum(column) for column in list(zip(*flat, strict=True))[1:]] if flat else None
    return _render(
        "card",
        v={**verdict, "scores": flat, "totals": totals},
        record=record,
        **_names(record, rows[0].order),
        writing=False,
        winner=winner,
        doubt=doubt(winner, letter_of(combine(other).winner)) if other else "",
        votes=result.votes if len(rows) > 1 else None,
        agreement=agreement([*rows, *other]),
    )


def scoring(record: PreferenceRecord, order: Order, text: str, config: JudgingConfig) -> str:
    """Return the card of a score while the model writes."""
    row = judgment(record, order, Completion(text, "stop"), config)
    return _render("points", v=shown_verdict(row), spoken=_spoken, writing=True)


def points(said: Points) -> str:
    """Return the card of a score: what the samples of one candidate say together."""
    dimensions = [(name, *scores) for name, scores in said.dimensions]
    verdict = {**shown_verdict(said.chosen), "scores": dimensions}
    return _render("points", v=verdict, spoken=_spoken, writing=False, said=said)


def letter_of(winner: Preferred | None) -> str | None:
    """Return the candidate that won as the page calls it; None where none did."""
    return {1: "A", 2: "B"}.get(winner if isinstance(winner, int) else 0)


def doubt(winner: str | None, other: str | None) -> str:
    """Return why the winner of the order asked last is no winner of the pair, in view of the other order; '' if it is.

    >>> doubt("A", "B"), doubt("A", "A")
    ('it depends on the order', '')
    """
    if winner is None or winner == other:
        return ""
    return "it depends on the order" if other else "in the other order there is none"


def agreement(rows: Sequence[Judgment]) -> tuple[str, str] | None:
    """Return the kind and the words of the badge that compares both orders; None where one was asked.

    >>> from unifiedreward_think.verdict import parse
    >>> said = parse("<answer>Image 1 is better</answer>", "Image")
    >>> rows = [Judgment(record_id="kite", task="", order=order, completion="", verdict=said) for order in ("ab", "ba")]
    >>> agreement(rows)
    ('wrong', 'The verdict depends on the order: the one shown first wins')
    """
    pairs = pair_orders(rows)
    if not pairs:
        return None
    agreeing, of = both_orders(rows).agreement
    if of > 1:
        return ("right" if agreeing == of else "mixed" if agreeing else "wrong"), (
            f"{agreeing} of {of} votes name the same candidate in both orders"
        )
    ab, ba = pairs[0]
    if agreeing:
        return "right", "Both orders agree"
    if ab.choice is None or ba.choice is None:
        both = ab.choice is None and ba.choice is None
        return "mixed", "Neither order can be read" if both else "Only one order can be read"
    place = "first" if ab.verdict.winner == 1 else "second"
    return "wrong", f"The verdict depends on the order: the one shown {place} wins"


def raw(rows: Sequence[Judgment]) -> str:
    """Return every completion word for word, and how it came about."""
    return _render("raw", rows=rows)


def prompt(record: PreferenceRecord, order: Order, config: JudgingConfig) -> str:
    """Return what the model is asked, each picture or video in its place by its file name."""
    parts = config.form.render(record, order=order, prompts=config.prompts)
    shown = [(isinstance(p, Media), Path(p.paths[0]).name if isinstance(p, Media) else p) for p in parts]
    return _render("prompt", parts=shown, kind=TASKS[record.task].media_kind)


def history(judged: Sequence[Asked]) -> str:
    """Return the table of all that was asked in this session, the newest first."""
    lines = []
    for record, rows in reversed(judged):
        other = [row for r, part in judged for row in part if r.id == record.id and row.order != rows[0].order]
        result = combine(rows)
        lines.append(
            {
                "record": record,
                "task": title(record.task),
                "order": rows[0].order.upper(),
                "winner": letter_of(result.winner),
                "doubt": doubt(letter_of(result.winner), letter_of(combine(other).winner)) if other else "",
                "error": result.error,
                "votes": result.votes if len(rows) > 1 else None,
                "margin": result.margin,
                "agreement": agreement([*rows, *other]),
            }
        )
    return _render("history", lines=lines)


def alert(message: str) -> str:
    """Return a message about what went wrong, '' for none."""
    return _render("alert", message=message) if message else ""


def bar(done: int, total: int, words: str) -> str:
    """Return how far long work has come."""
    return _render("progress", done=done, total=total, words=words)


def summary(results: Mapping[str, Any]) -> str:
    """Return the headline numbers of a judged file."""
    cells = [cell for cell in table_rows({"": results})[0][1] if cell[0] in HEADLINE]
    return _render("summary", cells=cells, counts=counts(results))


def heading(judge: str, note: str) -> str:
    """Return the heading of the page: which model judges, and what is to be known of it."""
    return _render("heading", judge=judge, note=note)


def frames(shown: Mapping[str, Any]) -> str:
    """Return a clip as its frames (`media.thumbnails`), for one that the browser cannot play."""
    return _render("frames", images=shown["images"], error=shown["error"])


def _names(record: PreferenceRecord, order: Order) -> dict[str, Any]:
    return {"noun": TASKS[record.task].noun, "order": order.upper(), "mentions": _mentions, "spoken": _spoken}


def _spoken(verdict: Mapping[str, Any]) -> str:
    """Return what a verdict says, in its own words, without the tags around them.

    >>> _spoken({"think": "<think>sharp</think>", "answer": "<answer>8/10</answer>"}).splitlines()
    ['sharp', '8/10']
    """
    return re.sub("</?(?:think|answer)>", "", f"{verdict['think']}\n{verdict['answer']}").strip()


def _mentions(text: str, noun: str, order: str) -> list[tuple[str, str]]:
    """Split a text where it names a candidate: (text, "a" or "b" or "").

    >>> _mentions("so Image 1 wins", "Image", "BA")
    [('so ', ''), ('Image 1', 'b'), (' wins', '')]
    """
    pieces = re.split(rf"({noun} [12])(?!\d)", text)
    return [(piece, order[int(piece[-1]) - 1].lower() if i % 2 else "") for i, piece in enumerate(pieces) if piece]


@cache
def _template() -> Any:
    return load_template(Path(__file__).with_name("view.html")).module


def _render(name: str, **values: Any) -> str:
    return str(getattr(_template(), name)(**values))
