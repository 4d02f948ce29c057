"""Which records of a data set to leave out, and why: the decisions of `check`, on records and fingerprints alone.

Rules, in this order; the first that applies is the reason: media cannot be opened; the candidates are equal; the text
is too short, too long, or in another script; part of a benchmark, by picture or by prompt; conflicting labels of the
same pair; an exact or near duplicate.

>>> from unifiedreward_think.records import PreferenceRecord
>>> row = PreferenceRecord(id="a", task="image_generation", prompt="kite", media=(("x",), ("y",)), preferred=1)
>>> prints = [Fingerprint("1" * 64, "0" * 16), Fingerprint("1" * 64, "0" * 16)]
>>> own_problem(row, prints, Limits())
'the two candidates have the same pixels'
"""

from __future__ import annotations

import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from unifiedreward_think.data.curation.fingerprints import Fingerprint, NearIndex
from unifiedreward_think.flags import Count, Span, Whole, option
from unifiedreward_think.records import PreferenceRecord, digest
from unifiedreward_think.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a record may be."""

    min_chars: Whole = option("of a prompt", default=3)
    max_chars: Count = option("of a prompt", default=8000)
    max_answer_chars: Count = option("of an answer", default=16000)
    script: str = option("most letters of a prompt must be of it: LATIN, CJK, CYRILLIC (default: any)", default="")
    near: Annotated[int, Span(-1, 64)] = option(
        "bits of 64 in which near duplicates may differ; -1: exact ones only", default=3
    )
    # "What is this?" is too common to tell that a row comes from a benchmark; captions count whatever their length.
    prompt_words: Whole = option("shorter questions are in no benchmark by text", default=8)


@dataclass(slots=True)
class Benchmarks:
    """The pictures and prompts that must not be trained on; value: where each comes from."""

    reach: int
    pixels: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)
    near: NearIndex = field(init=False)

    def __post_init__(self) -> None:
        """Start an empty index."""
        self.near = NearIndex(max(0, self.reach))

    def add_prompt(self, prompt: str, origin: str) -> None:
        """Remember a prompt."""
        self.prompts.setdefault(plain(prompt), origin)

    def add_picture(self, picture: Fingerprint, origin: str) -> None:
        """Remember a picture or video."""
        self.pixels.setdefault(picture.sha256, origin)
        self.hashes.setdefault(self.near.add(picture.phash), origin)

    def problem(self, record: PreferenceRecord, prints: Sequence[Fingerprint], limits: Limits) -> str:
        """Return which benchmark a record touches, "" if none."""
        for picture in prints:
            if origin := self.pixels.get(picture.sha256):
                return f"a picture is in the benchmark {origin!r}"
            if self.reach >= 0 and (near := self.near.find(picture.phash)) is not None:
                return f"a picture is nearly in the benchmark {self.hashes[near]!r}"
        prompt = plain(record.prompt)
        telling = TASKS[record.task].compares_media or len(prompt.split()) >= limits.prompt_words
        if telling and (origin := self.prompts.get(prompt)):
            return f"the prompt is in the benchmark {origin!r}"
        return ""


def own_problem(record: PreferenceRecord, prints: Sequence[Fingerprint], limits: Limits) -> str:
    """Return why a record cannot be used whatever the others are, "" if it can."""
    if errors := [picture.error for picture in prints if picture.error]:
        return f"media cannot be opened: {errors[0]}"
    if TASKS[record.task].compares_media and len({picture.sha256 for picture in prints}) < len(prints):
        return "the two candidates have the same pixels" if len(prints) == 2 else "two candidates have the same pixels"
    if len(set(map(plain, record.answers))) < len(record.answers):
        return "the two answers are the same" if len(record.answers) == 2 else "two answers are the same"
    if not limits.min_chars <= len(record.prompt) <= limits.max_chars:
        return f"the prompt has {len(record.prompt)} characters, allowed are {limits.min_chars} to {limits.max_chars}"
    if (longest := max(map(len, record.answers), default=0)) > limits.max_answer_chars:
        return f"an answer has {longest} characters, allowed are {limits.max_answer_chars}"
    if limits.script and (script := main_script(record.prompt)) != limits.script:
        return f"the letters of the prompt are mostly {script or 'none'}, wanted is {limits.script}"
    return ""


class Duplicates:
    """Pairs seen so far, by prompt, media and answers, whichever candidate stands first.

    Args:
        near: bits in which media may differ and still count as the same; below 0 only equal pixels do.
        database: keeps the pairs.
    """

    def __init__(self, near: int, database: sqlite3.Connection) -> None:
        self._index = NearIndex(near, database) if near >= 0 else None
        self._database = database
        columns = "key INTEGER PRIMARY KEY, first TEXT, pixels INTEGER, label INTEGER, disagree INTEGER"
        database.execute(f"CREATE TABLE pairs ({columns})")

    def see(self, record: PreferenceRecord, prints: Sequence[Fingerprint]) -> int:
        """Remember a record, and return the key of its pair."""
        key, label = self._key(record, prints)
        self._database.execute(
            "INSERT INTO pairs VALUES (?, ?, ?, ?, 0)"
            " ON CONFLICT (key) DO UPDATE SET disagree = disagree OR label <> excluded.label",
            [key, record.id, pixels_of(prints), label],
        )
        return key

    def problem(self, key: int, record: PreferenceRecord, pixels: int) -> str:
        """Return why a record that was seen is left out, "" if it is not; all records must have been seen before."""
        query = "SELECT first, pixels, disagree FROM pairs WHERE key = ?"
        first, pixels_of_first, disagree = self._database.execute(query, [key]).fetchone()
        if disagree:
            return f"records of the same pair disagree; the first is {first!r}"
        if first == record.id:
            return ""
        return f"{'an exact' if pixels == pixels_of_first else 'a near'} duplicate of {first!r}"

    def _key(self, record: PreferenceRecord, prints: Sequence[Fingerprint]) -> tuple[int, int]:
        """Return the key of a pair, and that of the candidate it prefers."""
        names = (
            [str(self._index.add(picture.phash)) for picture in prints] if self._index else [f.sha256 for f in prints]
        )
        generation = TASKS[record.task].compares_media
        if generation and len(set(names)) < len(names):
            names = [picture.sha256 for picture in prints]  # candidates near each other: only pixels tell them apart
        candidates = names if generation else [plain(answer) for answer in record.answers] or [record.instruction]
        label = candidates[record.preferred - 1] if record.preferred in (1, 2) and len(candidates) == 2 else ""
        about = (record.task, plain(record.prompt), *([] if generation else names))
        alone = record.scores if len(candidates) == 1 else ()  # of more than one, the preference is what must agree
        return number_of(*about, *sorted(candidates)), number_of(label or record.preferred, *alone)


def number_of(*parts: object) -> int:
    """Return `digest` of the parts as the signed number that a database takes."""
    return digest(*parts) - 2**63


def pixels_of(prints: Sequence[Fingerprint]) -> int:
    """Return a number that is the same for the same media in any order."""
    return number_of(*sorted(picture.sha256 for picture in prints))


def plain(text: str) -> str:
    """Return a text for comparing: without case, punctuation at the ends, and runs of white space.

    >>> plain("  A red  Kite. ")
    'a red kite'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .,;:!?\"'")


def main_script(text: str) -> str:
    r"""Return the Unicode script most letters of a text have, by their names; "" without letters.

    >>> main_script("a red kite"), main_script("\N{CYRILLIC SMALL LETTER KA}"), main_script("42")
    ('LATIN', 'CYRILLIC', '')
    """
    names = (unicodedata.name(letter, "").split(" ")[0] for letter in text[:2000] if letter.isalpha())
    common = Counter(names).most_common(1)
    return common[0][0] if common else ""
