"""The formats in which released judges reply: their names, the form that each is of, its scale and its reader.

>>> verdict = REPLY_FORMATS["v1_points"].read("Final Score: 4.7", "image_generation")
>>> verdict.score, REPLY_FORMATS["v1_points"].scales["video_generation"]
(Score(value=4.7, lowest=1, highest=5), (1, 10))

Formats: UnifiedReward at ff6f520, its inference scripts (v1, 2.0, Edit, Flex); arXiv 2505.03318 (Think). Where a judge
states several scores of one candidate and none of all, its points are their mean on the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from unifiedreward_think.blocks import Style
from unifiedreward_think.errors import InputError
from unifiedreward_think.reply_formats.objects import EDIT_SCALE, read_categories, read_edit
from unifiedreward_think.reply_formats.pairs import read_sentence, read_shares, read_two_scores
from unifiedreward_think.reply_formats.points import Scale, read_axes, read_final_score, unread
from unifiedreward_think.tasks import TASK_NAMES, TASKS
from unifiedreward_think.verdict import Verdict, parse

if TYPE_CHECKING:
    from unifiedreward_think.forms import Form

OWN = "own"  # the form's own reader, of the replies that our prompts ask for
GENERATION = ("image_generation", "video_generation")
V1_SCALES: dict[str, Scale] = {
    "image_generation": (1, 5),
    "video_generation": (1, 10),
    "image_understanding": (0, 100),
    "video_understanding": (1, 5),
}
V1_VIDEO = (
    "visual quality",
    "temporal consistency",
    "dynamic degree",
    "text-to-video alignment",
    "factual consistency",
)
AXES = {
    "image_generation": ("Alignment", "Coherence", "Style"),
    "video_generation": ("Alignment", "Physics", "Style"),
}
PAIR_AXES = ("Alignment", "Coherence", "Style")  # of videos, too


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyFormat:
    """How a released judge replies.

    Attributes:
        name: key in REPLY_FORMATS, in flags and in the settings of judgments.
        form: key in `forms.FORMS` of what it answers.
        about: what a reply is, in words.
        tasks: those it is of.
        reader: reply and task to a verdict.
        scales: task -> lowest and highest score of a candidate; empty for pairs.
        style: whether a think block is a part of it.
        margins: whether it scores both candidates of a pair, so that ties can be called by a margin.
    """

    name: str
    form: str
    about: str
    tasks: tuple[str, ...]
    reader: Callable[[str, str], Verdict]
    scales: Mapping[str, Scale]
    style: Style = "direct"
    margins: bool = False

    def read(self, text: str, task: str) -> Verdict:
        """Read a reply; never raises, whatever the text. What a model thinks before it replies is not looked at."""
        if task not in self.tasks:
            return unread(f"reply format {self.name!r} is of {', '.join(self.tasks)}, not of {task}")
        if self.style == "cot":
            return self.reader(text, task)
        reply = text.rpartition("</think>")[2]
        return unread("think block not closed") if "<think>" in reply else self.reader(reply, task)


def _v1_points(text: str, task: str) -> Verdict:
    if task == "video_generation":
        return read_final_score(text, V1_SCALES[task], named=V1_VIDEO, named_scale=(1, 4))
    return read_final_score(text, V1_SCALES[task])


def _axes(text: str, task: str, *, words: bool = False) -> Verdict:
    return read_axes(text, AXES[task], (1, 5), words=words)


def _final_score(lowest: int, highest: int) -> ReplyFormat:
    """Return the format of a final score whose prompt asks for another scale than v1's inference scripts."""
    return ReplyFormat(
        name=f"v1_points_{lowest}_{highest}",
        form="pointwise",
        about=f"`Final Score:` from {lowest} to {highest}, of a prompt that asks for that",
        tasks=TASK_NAMES,
        reader=lambda text, task: read_final_score(text, (lowest, highest)),
        scales=dict.fromkeys(TASK_NAMES, (lowest, highest)),
    )


def _edit(name: str, first: str, second: str) -> ReplyFormat:
    return ReplyFormat(
        name=name,
        form="pointwise",
        about=f"JSON with `reasoning` and `score`: {first.lower()} and {second.lower()}, each from 0 to 25",
        tasks=("image_generation",),
        reader=lambda text, task: read_edit(text, (first, second)),
        scales={"image_generation": (2 * EDIT_SCALE[0], 2 * EDIT_SCALE[1])},
    )


def _think(layout: str, about: str) -> ReplyFormat:
    return ReplyFormat(
        name=f"think_{layout}",
        form="pairwise",
        about=f"think and answer block, {about}: our own reader",
        tasks=TASK_NAMES,
        reader=lambda text, task: parse(text, TASKS[task].noun),
        scales={},
        style="cot",
        margins=True,
    )


REPLY_FORMATS: dict[str, ReplyFormat] = {
    each.name: each
    for each in (
        ReplyFormat(
            name="v1_points",
            form="pointwise",
            about="lines `name: value`, or an explanation, then `Final Score:` on the scale of the task",
            tasks=TASK_NAMES,
            reader=_v1_points,
            scales=V1_SCALES,
        ),
        _final_score(1, 5),
        _final_score(1, 10),
        _final_score(0, 100),
        ReplyFormat(
            name="v1_acs",
            form="pointwise",
            about="`Word-wise Scores:` of the caption's words, then three axes from 1 to 5",
            tasks=("image_generation",),
            reader=partial(_axes, words=True),
            scales={"image_generation": (1, 5)},
        ),
        ReplyFormat(
            name="v1_pairs",
            form="pairwise",
            about="a sentence: `Image 1 is better than Image 2.` or `Both images are equally good.`",
            tasks=TASK_NAMES,
            reader=lambda text, task: read_sentence(text, TASKS[task].noun),
            scales={},
        ),
        ReplyFormat(
            name="v2_points",
            form="pointwise",
            about="three axes from 1 to 5, real numbers",
            tasks=GENERATION,
            reader=_axes,
            scales=dict.fromkeys(GENERATION, (1, 5)),
        ),
        ReplyFormat(
            name="v2_pairs",
            form="pairwise",
            about="on three axes two numbers that add up to 1",
            margins=True,
            tasks=GENERATION,
            reader=lambda text, task: read_shares(text, TASKS[task].noun, PAIR_AXES),
            scales={},
        ),
        ReplyFormat(
            name="edit_pair_scores",
            form="pairwise",
            about="two signed numbers",
            margins=True,
            tasks=("image_generation",),
            reader=lambda text, task: read_two_scores(text, TASKS[task].noun),
            scales={},
        ),
        _edit("edit_following", "Instruction following", "Over-editing"),
        _edit("edit_quality", "Naturalness", "Artifacts"),
        ReplyFormat(
            name="flex",
            form="pairwise",
            about="JSON with `categories` of dimensions, two scores that add up to 10 each, and `winner`",
            margins=True,
            tasks=GENERATION,
            reader=lambda text, task: read_categories(text, TASKS[task].noun),
            scales={},
        ),
        _think("one_line", "a dimension a line"),
        _think("three_line", "a line for each candidate"),
    )
}


def read_reply(text: str, task: str, *, form: Form, style: Style, reply_format: str = OWN) -> Verdict:
    """Read a completion by its format: the one way from a text to a verdict where a format can be named.

    Args:
        text: the completion.
        task: of the record.
        form: what was asked for; its own reader reads OWN.
        style: what that expects.
        reply_format: OWN or a key of REPLY_FORMATS.

    Raises:
        InputError: there is no such format.
    """
    if reply_format == OWN:
        return form.parse(text, TASKS[task].noun, style=style)
    return format_named(reply_format).read(text, task)


def format_named(name: str) -> ReplyFormat:
    """Return a format by its name.

    Raises:
        InputError: there is none; the message lists them.
    """
    if name not in REPLY_FORMATS:
        raise InputError(f"reply format {name!r} is unknown; known: {', '.join((OWN, *REPLY_FORMATS))}")
    return REPLY_FORMATS[name]
