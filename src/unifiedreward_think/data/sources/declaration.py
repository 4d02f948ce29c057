"""A source of preference pairs as a declaration: which columns hold what, who is preferred, where the media are.

    configs/data/*.yaml        # one file a source; own_data.yaml explains every key

>>> text = "{name: demo, judged_by: people, task: image_generation, fields: {prompt: caption, media: [a, b]}, "
>>> source = read_source(text + "label: {rule: first}, facts: [made up], unverified: []}", "demo.yaml")
>>> row = {"caption": "a kite", "a": "x.png", "b": "y.png"}
>>> mapping = source.mapping(list(row))
>>> mapping.prompt.get(row), [column.get(row) for column in mapping.media], mapping.label(row).preferred
('a kite', ['x.png', 'y.png'], 1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from unifiedreward_think.data.formats.files import DataError, parse_yaml
from unifiedreward_think.data.sources.columns import SPEC_KEYS, Column, Finder
from unifiedreward_think.data.sources.labels import RULE_KEYS, Rule, label_rule, scale_of, scored_columns
from unifiedreward_think.data.sources.media_store import LOCATIONS
from unifiedreward_think.data.sources.pairing import PAIRINGS
from unifiedreward_think.tasks import TASK_NAMES, TASKS

CONFIGS = Path(__file__).parents[4] / "configs" / "data"
FIELDS = {"prompt", "media", "answers", "group"}
MEDIA_KEYS = {"location", "folder", "archive"}
HUB_KEYS = {"name", "config", "split", "revision"}


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """The columns of a source, found in its data."""

    prompt: Column
    media: tuple[Column, ...]
    answers: tuple[Column, ...]
    group: tuple[Column, ...]
    label: Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A declaration, as its YAML file holds it.

    Attributes:
        name: goes into every record's `source` and id.
        judged_by: who preferred: people, a model, a metric.
        facts: where each fact comes from.
        unverified: facts that nobody has checked on the data; a mismatch shows when the data is read.
        task: of TASK_NAMES; empty for the known shapes, whose rows tell it.
        shape: "columns", or "known" for our own and the released formats (`shapes.py`), which need no mapping.
        fields: record field -> column (see `columns.Finder`): `prompt`, `media` (one column a candidate, or those
            of what is asked about), `answers` (two; with scores one or more), `group` (columns that rows of one group
            share).
        label: the rule (`labels.py`).
        pairs: how rows become pairs (`pairing.py`).
        media: `location` (`media_store.Location`), `folder` that paths start from, `archive` to look for.
        hub: `name`, `config`, `split`, `revision` on the Hub.
        licence: of the data.
        about: what it is.
    """

    name: str
    judged_by: str
    facts: list[str]
    unverified: list[str]
    task: str = ""
    shape: str = "columns"
    fields: dict[str, Any] = field(default_factory=dict)
    label: dict[str, Any] = field(default_factory=dict)
    pairs: dict[str, Any] = field(default_factory=lambda: {"kind": "plain"})
    media: dict[str, Any] = field(default_factory=dict)
    hub: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    about: str = ""

    def finder(self, columns: Sequence[str], renamed: Mapping[str, str] | None = None) -> Finder:
        """Return what looks columns up in data of these columns."""
        return Finder(self.name, columns, renamed or {})

    def mapping(self, columns: Sequence[str], renamed: Mapping[str, str] | None = None) -> ColumnMapping:
        """Return the columns of rows of pairs.

        Raises:
            DataError: a column is missing; the message names those found and expected, and the closest.
        """
        added = PAIRINGS[self.pairs["kind"]][3]
        finder = self.finder([*columns, *(name for name in added if name not in columns)], renamed)
        many = {
            key: tuple(finder.column(spec, where=f"fields.{key}") for spec in self.fields.get(key, []))
            for key in ("media", "answers", "group")
        }
        prompt = finder.column(self.fields["prompt"], where="fields.prompt")
        return ColumnMapping(prompt=prompt, label=label_rule(self.label, finder), **many)

    def columns(self) -> list[str]:
        """Return the names of all columns that the declaration may mean, for readers that can leave others unread."""
        return sorted({name for part in (self.fields, self.label, self.pairs) for name in _names(part)})

    @property
    def matches_columns(self) -> bool:
        """Whether a column is given by a pattern, so that all must be read to find it."""
        return any("match" in spec for part in (self.fields, self.label) for spec in _specs(part))


def load_source(name: str) -> Source:
    """Read a declaration: a path, or the name of a file in configs/data without its suffix.

    Raises:
        DataError: there is no such file, or it is no declaration.
    """
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else CONFIGS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise DataError(f"{path}: no such declaration; known: {known}; or write your own from own_data.yaml")
    return read_source(path.read_text(encoding="utf-8"), str(path))


def read_source(text: str, name: str) -> Source:
    """Read the text of a declaration; `name` is for errors.

    Raises:
        DataError: it is no YAML, a key is unknown or missing, or a value cannot mean what it says.
    """
    values = parse_yaml(text, name, as_written=True)
    known = {entry.name for entry in fields(Source)}
    if unknown := set(values) - known:
        raise DataError(f"{name}: unknown key {min(map(str, unknown))!r}; known: {', '.join(sorted(known))}")
    if missing := {"name", "judged_by", "facts", "unverified"} - set(values):
        raise DataError(f"{name}: {min(missing)!r} is missing; own_data.yaml explains it")
    source = Source(**values)
    if problem := _problem(source):
        raise DataError(f"{name}: {problem}")
    return source


def _problem(source: Source) -> str:
    """Return what is wrong with a declaration, "" if nothing is."""
    for key, allowed in (("media", MEDIA_KEYS), ("hub", HUB_KEYS), ("fields", FIELDS)):
        if unknown := set(getattr(source, key)) - allowed:
            return f"{key}: unknown key {min(unknown)!r}; known: {', '.join(sorted(allowed))}"
    if source.media.get("location", "any") not in LOCATIONS:
        return f"media.location is {source.media['location']!r}; choose one of {', '.join(LOCATIONS)}"
    if source.shape == "known":
        return "shape 'known' takes no fields and no label" if source.fields or source.label else ""
    if source.shape != "columns":
        return f"shape is {source.shape!r}; choose 'columns' or 'known'"
    if source.task not in TASK_NAMES:
        return f"task is {source.task!r}; choose one of {', '.join(TASK_NAMES)}"
    kind = source.pairs.get("kind")
    if kind not in PAIRINGS:
        return f"pairs.kind is {kind!r}; choose one of {', '.join(PAIRINGS)}"
    needed, optional = PAIRINGS[kind][1:3]
    given = set(source.pairs) - {"kind"}
    if given - needed - optional or needed - given:
        return f"pairs of kind {kind!r} take {', '.join(sorted(needed | optional)) or 'no keys'}, found {sorted(given)}"
    if source.label.get("rule") not in RULE_KEYS:
        return f"label.rule is {source.label.get('rule')!r}; choose one of {', '.join(RULE_KEYS)}"
    generation = source.task in TASKS and TASKS[source.task].compares_media
    counts = {key: len(source.fields.get(key, [])) for key in ("media", "answers")}
    if source.label["rule"] == "scores":
        return _scored_problem(source, counts, generation)
    if "prompt" not in source.fields or not counts["media"] or (generation and counts["media"] != 2):
        return "fields need a prompt, and media: 2 columns for generation, at least 1 for understanding"
    if counts["answers"] != (0 if generation else 2):
        return "fields.answers are 2 columns for understanding, none for generation"
    sides = {
        "fields.media": source.fields["media"] if generation else [],
        "fields.answers": source.fields.get("answers", []),
        "label": [source.label.get(side, side) for side in ("first", "second")],
    }
    for key, specs in sides.items():
        if len(specs) == 2 and specs[0] == specs[1]:
            return f"{key}: {specs[0]!r} is the same column for both candidates; name two"
    return ""


def _scored_problem(source: Source, counts: Mapping[str, int], generation: bool) -> str:
    """Return what is wrong with a declaration of scores, which may be of one candidate."""
    try:
        scored = len(scored_columns(source.label))
        scale_of(source.label)
    except DataError as error:
        return str(error)
    key = "media" if generation else "answers"
    if (
        "prompt" not in source.fields
        or not counts["media"]
        or counts[key] != scored
        or (generation and counts["answers"])
    ):
        return (
            f"scores need a prompt, media, and as many fields.{key} as label.columns, found {counts[key]} and {scored}"
        )
    return ""


def _specs(part: Any) -> list[Mapping[str, Any]]:
    """Return every column specification that is a mapping, however deep."""
    if isinstance(part, Mapping):
        here = [part] if part and set(part) <= SPEC_KEYS and set(part) & {"any", "match"} else []
        return here + [spec for value in part.values() for spec in _specs(value)]
    return [spec for value in part for spec in _specs(value)] if isinstance(part, list) else []


def _names(part: Any) -> list[str]:
    """Return every string of a part of a declaration, whole and up to its first dot: some are columns."""
    if isinstance(part, str):
        return [part, part.split(".")[0]]
    values = part.values() if isinstance(part, Mapping) else part if isinstance(part, list) else []
    return [name for value in values for name in _names(value)]
