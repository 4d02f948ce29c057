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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from unifiedreward_think.blocks import Style
from unifiedreward_think.errors import InputError, RecordError
from unifiedreward_think.order import Order
from unifiedreward_think.plain_text import TAGS, as_text
from unifiedreward_think.tasks import TASKS, Task
from unifiedreward_think.verdict import Layout

if TYPE_CHECKING:
    from unifiedreward_think.records import PreferenceRecord

T = TypeVar("T")
M = TypeVar("M")
PROMPTS = Path(__file__).parent / "prompts"
FORMAT_FILES: dict[tuple[Style, Layout], str] = {
    ("cot", "one_line"): "format_cot_one_line.txt",
    ("cot", "three_line"): "format_cot_three_line.txt",
    ("direct", "one_line"): "format_direct.txt",
    ("direct", "three_line"): "format_direct.txt",
}
_PLACEHOLDER = re.compile(r"\{(prompt|media(?:_[1-9])?|answer_[1-9])\}")


@dataclass(frozen=True, slots=True)
class Media:
    """A place in the prompt where an image, or the frames of a video, goes."""

    paths: tuple[str, ...]
    kind: str


Part = str | Media


def load_prompts(
    style: Style = "cot",
    *,
    layout: Layout = "one_line",
    path: str | Path | None = None,
    task: str = "",
    candidates: int = 2,
    home: Path = PROMPTS,
) -> dict[str, str]:
    """Return task -> template, with the answer format of `style` and `layout` filled in.

    Args:
        style: "cot" or "direct".
        layout: how the chain of thought lists a dimension; ignored by "direct".
        path: templates of your own: a folder with `<task>.txt` for each task in use, or one such file. A template may
            hold {prompt}, {answer_1}, {answer_2}, {media_1}, {media_2} (generation), {media} (understanding) and
            {format}, which takes the text of `format_cot_one_line.txt`, `format_cot_three_line.txt` or
            `format_direct.txt` of the same folder; beside a single file, ours where there is none. Media come first,
            unlabelled, where a template places none (released checkpoints).
        task: whose template a file is; by default its name says it.
        candidates: how many a template shows.
        home: folder of our templates and format files for what is asked.

    Raises:
        InputError: there is no template at all, or no format file that a template asks for; or a template would leave
            out the caption, the question or an answer.
    """
    root = home if path is None else Path(path)
    if not root.exists():
        raise InputError(f"{root}: no such file or folder; name a prompt template, or a folder of them")
    single, name = root.is_file(), task or root.stem
    if single and name not in TASKS:
        raise InputError(f"{root}: whose prompt is it? Name it <task>.txt; the tasks are {', '.join(TASKS)}")
    files = {name: root} if single else {name: root / f"{name}.txt" for name in TASKS}
    files = {name: file for name, file in files.items() if file.is_file()}
    if not files:
        expected = ", ".join(f"{name}.txt" for name in TASKS)
        raise InputError(f"{root}: no prompt template here; expected files named {expected}")
    format_file, spare = FORMAT_FILES[style, layout], home if single else None
    return {name: _template(file, TASKS[name], format_file, candidates, spare) for name, file in files.items()}


def _template(file: Path, task: Task, format_file: str, candidates: int, spare: Path | None) -> str:
    """Return the template in a file, with answer format (of `spare` where there is none), noun and dimensions."""
    text = file.read_text(encoding="utf-8").strip("\n")
    answers = () if task.compares_media else (f"{{answer_{place}}}" for place in range(1, candidates + 1))
    if absent := [placeholder for placeholder in ("{prompt}", *answers) if placeholder not in text]:
        raise InputError(f"{file}: the template has no {absent[0]}; write where it goes")
    if "{format}" in text:
        form = file.with_name(format_file)
        form = spare / format_file if spare and not form.is_file() else form
        if not form.is_file():
            raise InputError(f"{form}: no such file; {file.name} asks for it by {{format}}")
        text = text.replace("{format}", form.read_text(encoding="utf-8").strip("\n"))
    text = text.replace("{noun}", task.noun)
    for i, dimension in enumerate(task.dimensions, start=1):
        text = text.replace(f"{{dimension_{i}}}", dimension)
    return text


def build_parts(record: PreferenceRecord, *, order: Order, prompts: Mapping[str, str]) -> list[Part]:
    """Return the text pieces and media of a record's prompt, in reading order.

    Placeholders are replaced in one pass over the template, so a caption that itself holds braces or the name of a
    placeholder stays as it is. Nothing in it is a control token for the model (`plain_text`).

    Raises:
        RecordError: the record cannot be shown in this order, no template fits its task, or the template
            asks for something the record does not have.
    """
    shown = record.shown(order)
    if record.instruction:
        return instruction_parts(shown)
    media = [Media(paths, TASKS[record.task].media_kind) for paths in shown.media]
    if record.task not in prompts:
        raise RecordError(f"record {record.id!r}: no prompt template for task {record.task}")
    values: dict[str, list[Part]] = {"prompt": [as_text(record.prompt, TAGS)], "media": [*media]}
    values |= {f"answer_{i}": [as_text(text, TAGS)] for i, text in enumerate(shown.answers, start=1)}
    values |= {f"media_{i}": [entry] for i, entry in enumerate(media, start=1)}
    parts: list[Part] = []
    # Split at the one group of the pattern: every second piece is the name of a placeholder.
    for i, piece in enumerate(_PLACEHOLDER.split(prompts[record.task])):
        if i % 2 and piece not in values:
            raise RecordError(f"record {record.id!r}: the template asks for {{{piece}}}, which the record lacks")
        parts += values[piece] if i % 2 else [piece]
    if not any(isinstance(part, Media) for part in parts):
        parts = [*media, *parts]
    return _as_plain_text(parts)


def instruction_parts(record: PreferenceRecord) -> list[Part]:
    """Return the parts of a complete instruction: its text, with media at the record's places or in front.

    Raises:
        RecordError: there is no place for each media entry, nor for each frame, or a place is outside of the text.
    """
    media = [Media(paths, TASKS[record.task].media_kind) for paths in record.media]
    text, places = record.instruction, record.places
    if not places:
        return _as_plain_text([*media, text])
    if len(places) != len(media):
        media = [Media((path,), "image") for paths in record.media for path in paths]
    ends = [*places, len(text)]
    if len(places) != len(media) or ends != sorted(ends) or places[0] < 0:
        raise RecordError(
            f"record {record.id!r}: places {list(places)} do not fit {len(record.media)} media entries of {len(media)} "
            f"files and a text of {len(text)} characters; write one for each, in order"
        )
    if len(media) > len(record.media) and len(set(map(len, record.media))) > 1:
        raise RecordError(f"record {record.id!r}: with places of their own, each video needs as many frames")
    parts: list[Part] = [text[: places[0]]]
    for medium, start, end in zip(media, places, ends[1:], strict=True):
        parts += [medium, text[start:end]]
    return _as_plain_text(parts)


def to_content(
    parts: Sequence[str | M], files: Callable[[M], Sequence[T]], *, kind: str = "image"
) -> tuple[list[dict[str, str | None]], list[T]]:
    """Return the content of a user message, with a placeholder for each file, and the files in reading order.

    Args:
        parts: as `build_parts` gives them.
        files: what stands for a medium: its picture, the frames of a video, or one clip.
        kind: of the placeholders, "image" or "video".
    """
    content: list[dict[str, str | None]] = []
    shown: list[T] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            media = files(part)
            content += [{"type": kind, "text": None} for _ in media]
            shown += media
    return content, shown


def _as_plain_text(parts: list[Part]) -> list[Part]:
    """Join neighbouring texts and drop empty ones, so that equal prompts have equal parts; no control token is left."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return [as_text(part) if isinstance(part, str) else part for part in joined]
