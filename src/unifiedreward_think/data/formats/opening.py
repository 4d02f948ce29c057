"""The media of records, each opened once before anything is trained or judged: which records cannot be used, and why.

What was opened is remembered in the frame cache, until its files change.
"""

from __future__ import annotations

from collections.abc import Sequence

from unifiedreward_think.data.seen import digest_of, remembering
from unifiedreward_think.errors import MediaError
from unifiedreward_think.media import FrameSampling, check_media
from unifiedreward_think.progress import in_threads
from unifiedreward_think.records import PreferenceRecord
from unifiedreward_think.tasks import TASKS


def media_problems(records: Sequence[PreferenceRecord], sampling: FrameSampling) -> list[str]:
    """Open every media entry once, and return why each record's media cannot be used; "" where they can.

    Videos are decoded into the frame cache of `sampling`, where training finds them.
    """
    entries = list(
        dict.fromkeys((entry, TASKS[record.task].media_kind) for record in records for entry in record.media)
    )
    with remembering(sampling.cache / "opened.txt") as seen:
        reasons = in_threads(
            lambda entry: _media_problem(*entry, sampling, seen), entries, "checking media", unit="entry"
        )
        problems = dict(zip(entries, reasons, strict=True))
    by_record = (
        dict.fromkeys(problems[entry, TASKS[record.task].media_kind] for entry in record.media) for record in records
    )
    return ["; ".join(filter(None, reasons)) for reasons in by_record]


def _media_problem(entry: tuple[str, ...], kind: str, sampling: FrameSampling, seen: set[str]) -> str:
    key = digest_of(kind, sampling.frames, sampling.decoder, files=entry)
    if key in seen:
        return ""
    try:
        check_media(entry, kind, sampling)
    except MediaError as error:
        return str(error)
    if key:
        seen.add(key)
    return ""
