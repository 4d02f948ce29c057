"""Record lines: the JSON form of a record, in its two spellings (README, Data formats).

Two candidates are spelled `media` and `answers`; any number of them `candidates` and `context`. Both are read.

>>> row = {"id": "q1", "task": "image_understanding", "prompt": "What is it?", "context": ["a.png"],
...        "candidates": [{"text": "A cat."}, {"text": "A dog."}, {"text": "A fox."}]}
>>> fields = record_fields(row, ("id", "task", "prompt", "media", "answers"))
>>> fields["media"], fields["answers"]
((('a.png',),), ('A cat.', 'A dog.', 'A fox.'))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from unifiedreward_think.errors import RecordError
from unifiedreward_think.forms import PAIRWISE
from unifiedreward_think.tasks import TASKS

if TYPE_CHECKING:
    from unifiedreward_think.records import PreferenceRecord

TEXTS = ("task", "prompt", "source", "group", "instruction", "judged_by")
LISTS = ("ranks", "scores", "scale", "places")


def record_to_json(record: PreferenceRecord) -> dict[str, Any]:
    """Return the line of a record: empty optional fields left out, media of one file plain strings."""
    row = {key: value for key, value in asdict(record).items() if value not in ("", (), None)}
    row["media"] = [_plain(entry) for entry in record.media]
    row["prompt"] = record.prompt
    if record.count == PAIRWISE.candidates:
        return row
    del row["media"]
    row.pop("answers", None)
    if TASKS[record.task].compares_media:
        return {**row, "candidates": [{"media": _plain(entry)} for entry in record.media]}
    texts = [{"text": answer} for answer in record.answers]
    return {**row, "context": [_plain(entry) for entry in record.media], "candidates": texts}


def record_fields(row: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a record from its line.

    Raises:
        RecordError: a key is unknown or missing, or a value has the wrong type.
    """
    name = row.get("id")
    if not isinstance(name, str) or not name:
        raise RecordError(f"id is {name!r}; every record needs a non-empty string id")
    if unknown := set(row) - set(known) - {"candidates", "context"}:
        raise RecordError(f"record {name!r}: unknown key {min(unknown)!r}; known: {', '.join(known)}")
    if missing := {"task", "prompt"} - set(row):
        raise RecordError(f"record {name!r}: {min(missing)!r} is missing; add it")
    for key in TEXTS:
        if not isinstance(row.get(key, ""), str):
            raise RecordError(f"record {name!r}: {key} must be a string, found {row[key]!r}")
    two, row = "candidates" not in row, _media_and_answers(row, name)
    if "media" not in row:
        raise RecordError(f"record {name!r}: 'media' is missing; add it")
    media, answers = row["media"], row.get("answers", ())
    if not isinstance(media, list | tuple) or not isinstance(answers, list | tuple):
        raise RecordError(f"record {name!r}: media and answers must be lists")
    if not all(isinstance(answer, str) for answer in answers):
        raise RecordError(f"record {name!r}: answers must be strings")
    if two:
        _check_two(row, media, answers, name)
    entries = tuple((e,) if isinstance(e, str) else tuple(e) if isinstance(e, list | tuple) else () for e in media)
    if not all(isinstance(path, str) for entry in entries for path in entry):
        raise RecordError(f"record {name!r}: media paths must be strings")
    return {**row, "media": entries, "answers": tuple(answers), **_labels(row, name)}


def _media_and_answers(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Spell `candidates` and `context` as `media` and `answers`."""
    candidates = row.get("candidates")
    if candidates is None:
        if "context" in row:
            raise RecordError(f"record {name!r}: context stands beside candidates, which are missing; add them")
        return dict(row)
    if "media" in row or "answers" in row:
        raise RecordError(f"record {name!r}: candidates beside media or answers; write one of the two spellings")
    task = TASKS.get(row["task"])
    key = "media" if task is None or task.compares_media else "text"
    if not isinstance(candidates, list) or not all(isinstance(c, Mapping) and set(c) == {key} for c in candidates):
        raise RecordError(f'record {name!r}: candidates must be a list of {{"{key}": ...}} for {row["task"]}')
    if key == "media" and row.get("context"):
        raise RecordError(f"record {name!r}: {row['task']} has no context; the candidates are its media")
    rest = {k: value for k, value in row.items() if k not in ("candidates", "context")}
    values = [candidate[key] for candidate in candidates]
    return {**rest, "media": values} if key == "media" else {**rest, "media": row.get("context", []), "answers": values}


def _check_two(row: Mapping[str, Any], media: Sequence[Any], answers: Sequence[Any], name: str) -> None:
    """Refuse another number of candidates than two in the spelling that is for two: it is a mistake there."""
    task, advice = TASKS.get(row["task"]), "write `candidates` for another number"
    if task is None or not media:
        return
    if task.compares_media and len(media) != PAIRWISE.candidates:
        raise RecordError(f"record {name!r}: {row['task']} needs media of 2 candidates, found {len(media)}; {advice}")
    if not task.compares_media and not row.get("instruction") and len(answers) != PAIRWISE.candidates:
        raise RecordError(f"record {name!r}: {row['task']} needs 2 answers, found {len(answers)}; {advice}")


def _labels(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    for key in LISTS:
        if not isinstance(row.get(key, []), list | tuple):
            raise RecordError(f"record {name!r}: {key} must be a list, found {row[key]!r}")
    if "scale" in row and (len(row["scale"]) != 2 or not all(isinstance(v, int | float) for v in row["scale"])):
        raise RecordError(f"record {name!r}: scale must be [lowest, highest], found {row['scale']!r}")
    if "places" in row and not (row.get("instruction") and all(type(place) is int for place in row["places"])):
        raise RecordError(f"record {name!r}: places are whole numbers beside an instruction, found {row['places']!r}")
    for key, kind in (("margin", int | float), ("votes", int)):
        if not isinstance(row.get(key, 0), kind) or isinstance(row.get(key), bool):
            raise RecordError(f"record {name!r}: {key} must be a number, found {row[key]!r}")
    return {key: tuple(row[key]) for key in LISTS if key in row}


def _plain(entry: Sequence[str]) -> Any:
    return entry[0] if len(entry) == 1 else list(entry)
