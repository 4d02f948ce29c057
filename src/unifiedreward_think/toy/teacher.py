"""The scripted teacher: true scores, true reasons and captions for toy scenes.

It plays two parts: the source of the preference labels (the larger total is preferred), and the teacher whose chains of
thought seed the cold start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unifiedreward_think.tasks import TASKS
from unifiedreward_think.toy.world import Scene
from unifiedreward_think.verdict import render

Score = tuple[int, str]  # out of 10, and why


@dataclass(frozen=True, slots=True)
class Reply:
    """A toy answer to a question: the value it claims ('red', 'left') and whether it is put clearly."""

    claim: str
    clear: bool

    @property
    def text(self) -> str:
        """The answer as written."""
        return f"It is {self.claim}." if self.clear else f"Well it is maybe well {self.claim} maybe."


def observe(caption: Scene, scene: Scene) -> str:
    """Describe a scene, with a yes or no after each attribute that the caption asks for.

    >>> observe(Scene("red", "circle"), Scene("red", "bar", clean=False))
    'red yes, bar no, noisy, whole'
    """
    pairs = [(caption.colour, scene.colour), (caption.shape, scene.shape), (caption.motion, scene.motion)]
    marks = [_checked(wanted, shown) for wanted, shown in pairs if shown]
    marks.append("clean" if scene.clean else "noisy")
    if scene.motion:
        marks.append("steady" if scene.steady else "flickering")
    else:
        marks.append("whole" if scene.whole else "broken")
    return ", ".join(marks)


def observe_pair(noun: str, caption: Scene, scenes: Sequence[Scene]) -> str:
    """Describe two candidates against their caption.

    >>> observe_pair("Image", Scene("red", "circle"), [Scene("red", "circle"), Scene("blue", "bar")])
    'Asked: red circle. Image 1: red yes, circle yes, clean, whole. Image 2: blue no, bar no, clean, whole.'
    """
    seen = (f"{noun} {k}: {observe(caption, scene)}." for k, scene in enumerate(scenes, start=1))
    return f"Asked: {caption.subject}. " + " ".join(seen)


def observe_replies(truth: str, replies: Sequence[Reply]) -> str:
    """Say what is seen, and check what two answers claim.

    >>> observe_replies("red", [Reply("red", clear=True), Reply("blue", clear=False)])
    'Seen: red. Answer 1: red yes, clear. Answer 2: blue no, rambling.'
    """
    claims = (f"{_checked(truth, reply.claim)}, {'clear' if reply.clear else 'rambling'}" for reply in replies)
    return f"Seen: {truth}. " + " ".join(f"Answer {k}: {claim}." for k, claim in enumerate(claims, start=1))


def score_candidate(caption: Scene, scene: Scene) -> list[Score]:
    """Score a generated picture or clip against its caption on the three dimensions of its task."""
    wrong = [
        name
        for name, wanted, shown in (
            ("colour", caption.colour, scene.colour),
            ("shape", caption.shape, scene.shape),
            ("motion", caption.motion, scene.motion),
        )
        if wanted != shown
    ]
    match = ((9, "as asked"), (6, f"wrong {''.join(wrong)}"), (3, "mostly wrong"), (1, "all wrong"))[len(wrong)]
    clean = (8, "clean") if scene.clean else (4, "noisy")
    if scene.motion:
        return [match, (7, "steady") if scene.steady else (2, "flickering"), clean]
    return [match, clean, (7, "whole") if scene.whole else (2, "broken")]


def score_reply(truth: str, reply: Reply) -> list[Score]:
    """Score an answer against what the media really shows on the three dimensions of the understanding tasks."""
    right = reply.claim == truth
    return [
        (9, "is shown") if right else (2, "not shown"),
        (8, "true") if right else (3, "false"),
        (7, "clear") if reply.clear else (4, "rambling"),
    ]


def total(scores: list[Score]) -> int:
    """Sum the scores of one candidate."""
    return sum(value for value, _ in scores)


def write_trace(task: str, shown: str, first: list[Score], second: list[Score]) -> str:
    """Write the chain of thought for two scored candidates.

    Args:
        task: one of TASKS.
        shown: what is seen, said before the scores.
        first: scores of the candidate shown first.
        second: scores of the candidate shown second; its total must differ.
    """
    rows = [(name, a[0], b[0]) for name, a, b in zip(TASKS[task].dimensions, first, second, strict=True)]
    notes = [(a[1], b[1]) for a, b in zip(first, second, strict=True)]
    winner = 1 if total(first) > total(second) else 2
    return render(winner, rows, noun=TASKS[task].noun, notes=notes, preamble=shown)


def _checked(expected: str, drawn: str) -> str:
    return f"{drawn} {'yes' if drawn == expected else 'no'}"
