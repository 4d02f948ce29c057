"""Read rows of the released files: `conversations/images` (SFT) and `problem/solution/images` (GRPO).

>>> row = {"problem": "<image><image>Which fits? Text Caption: [a red kite]", "solution": "Image 2 is better",
...        "images": ["a.png", "b.png"]}
>>> record = read_problem(row, name="train-1", source="train")
>>> record.task, record.preferred, record.prompt, record.media
('image_generation', 2, 'a red kite', (('a.png',), ('b.png',)))
>>> record.instruction, record.places
('Which fits? Text Caption: [a red kite]', (0, 0))

The files hold no task: it follows from what the answer calls the candidates and from the number of media files. Columns
other than those named here are left alone. Pictures go where the marks stand, <image> or <video>: one for each file, or
one for each video. These are the only texts in which they are marks; `export` writes other ones apart (`plain_text`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, islice
from typing import Any

from unifiedreward_think.errors import RecordError
from unifiedreward_think.plain_text import as_written
from unifiedreward_think.records import PreferenceRecord, Trace
from unifiedreward_think.verdict import NOUNS, answer_text, parse, read_answer

MEDIA_KEYS = ("images", "image", "video")
PLACEHOLDER = re.compile(r"<(?:image|video)>")
_CAPTION = re.compile(r"Text Caption: ?\[(.*)\]", re.DOTALL)
_ALLOWED = " or ".join(repr(answer_text(k, "|".join(NOUNS))) for k in (1, 2))


def read_problem(row: Mapping[str, Any], *, name: str, source: str) -> PreferenceRecord:
    """Build a record from a GRPO row: `problem`, `solution`, and one of MEDIA_KEYS.

    Args:
        row: the JSON object.
        name: id of the record if the row has none.
        source: data set of the record if the row names none.

    Raises:
        RecordError: a part is missing or of the wrong type, or the media do not fit what `solution` compares.
    """
    solution = row.get("solution")
    if not isinstance(solution, str):
        raise RecordError(f"solution is {solution!r}; write {_ALLOWED}")
    for noun in NOUNS:
        if (winner := read_answer(solution, noun)) is not None:
            return _record(row, row["problem"], noun, winner, name=name, source=source)
    raise RecordError(f"solution is {solution!r}; write {_ALLOWED}")


def read_conversation(row: Mapping[str, Any], *, name: str, source: str) -> Trace:
    """Build a trace from an SFT row: `conversations` of one human and one gpt turn, and one of MEDIA_KEYS.

    The preferred candidate is the one the gpt turn calls better: released traces were kept only where it agrees with
    the human label.

    Args:
        row: the JSON object.
        name: id of the record if the row has none.
        source: data set of the record if the row names none.

    Raises:
        RecordError: a part is missing or of the wrong type, the gpt turn has no answer block that can be read, or the
            media do not fit what it compares.
    """
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RecordError("conversations must be a list of objects with 'from' and 'value'")
    if (speakers := [turn.get("from") for turn in turns]) != ["human", "gpt"]:
        raise RecordError(f"conversations must be one 'human' and one 'gpt' turn, found {speakers!r}")
    instruction, completion = (turn.get("value") for turn in turns)
    if not isinstance(completion, str):
        raise RecordError(f"the gpt turn must be a string, found {completion!r}")
    for noun in NOUNS:  # these files compare two: no other form is read here
        if isinstance(winner := parse(completion, noun).winner, int):
            record = _record(row, instruction, noun, winner, name=name, source=source)
            return Trace(record=record, completion=as_written(completion))
    raise RecordError(f"the gpt turn must end with an <answer> block that says {_ALLOWED}")


def _record(
    row: Mapping[str, Any], text: object, noun: str, winner: int, *, name: str, source: str
) -> PreferenceRecord:
    pieces = list(map(as_written, PLACEHOLDER.split(text.strip()))) if isinstance(text, str) else []
    instruction = "".join(pieces)
    if not instruction.strip():
        raise RecordError(f"the instruction must be a text that is not empty, found {text!r}")
    identity = row.get("id", name)
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or identity == "":
        raise RecordError(f"id is {identity!r}; write a string or a whole number, or leave it out")
    task, media = _media(noun, *_files(row))
    places = _places(list(accumulate(map(len, pieces[:-1]))), media)
    caption = _CAPTION.search(instruction)
    return PreferenceRecord(
        id=str(identity),
        task=task,
        prompt=caption.group(1).strip() if caption else instruction.strip(),
        media=media,
        preferred=winner,
        source=row["source"] if isinstance(row.get("source"), str) else source,
        instruction=instruction,
        places=places,
    )


def _places(marks: list[int], media: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """Return the places of media entries; those of all frames where text stands between two frames of an entry."""
    files = sum(map(len, media))
    if len(marks) not in (files, len(media)):
        counted = f"{len(marks)} mark{'s' * (len(marks) != 1)} (<image> or <video>)"
        raise RecordError(
            f"the text holds {counted} for {files} picture{'s' * (files != 1)}; write one where each picture goes"
        )
    if len(marks) == files:
        rest = iter(marks)
        groups = [set(islice(rest, len(entry))) for entry in media]
        if all(len(group) == 1 for group in groups):
            return tuple(group.pop() for group in groups)
    return tuple(marks)


def _files(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return which of MEDIA_KEYS a row uses and the paths under it; a column that is null counts as absent."""
    used = [key for key in MEDIA_KEYS if row.get(key) is not None]
    if len(used) != 1:
        raise RecordError(f"needs exactly one of {', '.join(MEDIA_KEYS)}; found {' and '.join(used) or 'none'}")
    key = used[0]
    files = [row[key]] if isinstance(row[key], str) and key != "images" else row[key]
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise RecordError(f"{key} must be a {'list of paths' if key == 'images' else 'path'}, found {row[key]!r}")
    if not files or not all(files):
        raise RecordError(f"{key} holds no path or an empty one; name a file for every candidate")
    return key, files


def _media(noun: str, key: str, files: list[str]) -> tuple[str, tuple[tuple[str, ...], ...]]:
    """Return task and media entries. One or two `images` are separate pictures, more are frames.

    >>> _media("Video", "images", ["a0", "a1", "b0", "b1"])
    ('video_generation', (('a0', 'a1'), ('b0', 'b1')))
    >>> _media("Answer", "images", ["f0", "f1", "f2"])
    ('video_understanding', (('f0', 'f1', 'f2'),))
    """
    count = len(files)
    if noun == "Image":
        if count != 2 or key == "video":
            raise RecordError(f"the answer compares images, so 2 images are needed; found {count} under {key!r}")
        return "image_generation", ((files[0],), (files[1],))
    if noun == "Video":
        if count % 2:
            raise RecordError(
                f"the answer compares videos, so {key!r} must hold two files, or as many frames of video 1 as of"
                f" video 2; found an odd number ({count})"
            )
        return "video_generation", (tuple(files[: count // 2]), tuple(files[count // 2 :]))
    if key != "video" and count <= 2:
        return "image_understanding", tuple((file,) for file in files)
    return "video_understanding", (tuple(files),)
