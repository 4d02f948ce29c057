"""From a record to what the model reads: prompt templates, and the text and media of a prompt in reading order.

>>> from unifiedreward_think.records import PreferenceRecord
>>> record = PreferenceRecord(id="kite-1", task="image_generation", prompt="a {red} kite",
...                           media=(("a.png",), ("b.png",)))
>>> parts = build_parts(record, order="ba", prompts=load_prompts("direct"))
>>> [part.paths for part in parts if isinstance(part, Media)]
[('b.png',), ('a.png',)]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.forms import PAIRWISE
from unifiedreward_think.order import Order
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.tasks import TASKS
from unifiedreward_think.verdict import Layout, Style

PROMPTS = Path(__file__).parent / "prompts"


FORMAT_FILES: dict[tuple[Style, Layout], str] = {
    ("cot", "one_line"): "format_cot_one_line.txt",
    ("cot", "three_line"): "format_cot_three_line.txt",
    ("direct", "one_line"): "format_direct.txt",
    ("direct", "three_line"): "format_direct.txt",
}
_PLACEHOLDER = re.compile(r"\{(media_1|media_2|media|prompt|answer_1|answer_2)\}")


@dataclass(frozen=True, slots=True)
class Media:
    """A place in the prompt where an image, or the frames of a video, goes."""

    paths: tuple[str, ...]
    kind: str


Part = str | Media


def load_prompts(
    style: Style = "cot", *, layout: Layout = "one_line", folder: str | Path | None = None
) -> dict[str, str]:
    """Return task -> template, with the answer format of `style` and `layout` filled in.

    Args:
        style: "cot" or "direct".
        layout: how the chain of thought lists a dimension; ignored by "direct".
        folder: a folder of templates of your own, `<task>.txt` for each task in use. A template may hold
            {prompt}, {answer_1}, {answer_2}, {media_1}, {media_2} (generation), {media} (understanding) and
            {format}, which takes the text of `format_cot_one_line.txt`, `format_cot_three_line.txt` or
            `format_direct.txt` of the same folder. Media come first, unlabelled, where a template places none
            (released checkpoints).

    Raises:
        InputError: the folder holds no template at all, or no format file that a template asks for; or a template
            would leave out the caption, the question or an answer.
    """
    root = PROMPTS if folder is None else Path(folder)
    prompts = {}
    for name, task in TASKS.items():
        file = root / f"{name}.txt"
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8").strip("\n")
        needed = ("{prompt}",) if task.compares_media else ("{prompt}", "{answer_1}", "{answer_2}")
        if absent := [placeholder for placeholder in needed if placeholder not in text]:
            raise InputError(f"{file}: the template has no {absent[0]}; write where it goes")
        if "{format}" in text:
            form = root / FORMAT_FILES[style, layout]
            if not form.is_file():
                raise InputError(f"{form}: no such file; {file.name} asks for it by {{format}}")
            text = text.replace("{format}", form.read_text(encoding="utf-8").strip("\n"))
        text = text.replace("{noun}", task.noun)
        for i, dimension in enumerate(task.dimensions, start=1):
            text = text.replace(f"{{dimension_{i}}}", dimension)
        prompts[name] = text
    if not prompts:
        names = ", ".join(f"{name}.txt" for name in TASKS)
        raise InputError(f"{root}: no prompt template here; expected files named {names}")
    return prompts


def build_parts(record: PreferenceRecord, *, order: Order, prompts: Mapping[str, str]) -> list[Part]:
    """Return the text pieces and media of a record's prompt, in reading order.

    Placeholders are replaced in one pass over the template, so a caption that itself holds braces or the name of a
    placeholder stays as it is.

    Raises:
        RecordError: `order` is "ba" for a row that cannot be swapped, no template fits its task, or the template
            asks for something the record does not have.
    """
    shown = record.shown(order)
    media = [Media(paths, TASKS[record.task].media_kind) for paths in shown.media]
    if record.instruction:
        return [*media, record.instruction]
    if record.task not in prompts:
        raise RecordError(f"record {record.id!r}: no prompt template for task {record.task}")
    values: dict[str, list[Part]] = {"prompt": [record.prompt], "media": [*media]}
    values |= {f"answer_{i}": [text] for i, text in enumerate(shown.answers, start=1)}
    values |= {f"media_{i}": [entry] for i, entry in enumerate(media, start=1)}
    parts: list[Part] = []
    # Split at the one group of the pattern: every second piece is the name of a placeholder.
    for i, piece in enumerate(_PLACEHOLDER.split(prompts[record.task])):
        if i % 2 and piece not in values:
            raise RecordError(f"record {record.id!r}: the template asks for {{{piece}}}, which the record lacks")
        parts += values[piece] if i % 2 else [piece]
    if not any(isinstance(part, Media) for part in parts):
        parts = [*media, *parts]
    return _without_empty(parts)


def solution(record: PreferenceRecord, order: Order) -> str | None:
    """Return the gold answer string in the order shown, the `solution` column of GRPO rows; None without a winner."""
    gold = PAIRWISE.gold(record.preferred, order)
    return None if gold is None else PAIRWISE.solution(gold, TASKS[record.task].noun)


def _without_empty(parts: list[Part]) -> list[Part]:
    """Join neighbouring texts and drop empty ones, so that equal prompts have equal parts."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return joined
