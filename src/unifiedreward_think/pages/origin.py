"""What every page says of how its numbers came about: facts by name, and "not recorded" for what nothing says.

>>> table({"a": {"Commit": "abc", "Seed": "0"}, "b": {"Commit": "abc", "Seed": "1"}})
[('Commit', ['abc']), ('Seed', ['0', '1'])]
>>> versions({"versions": {"torch": "2.13.0"}})
{'Versions': 'torch 2.13.0', 'Commit': 'not recorded'}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NOT_RECORDED = "not recorded"
PACKAGES = ("unifiedreward-think", "transformers", "torch", "vllm")
Facts = Mapping[str, str]


def recorded(value: Any, **more: Any) -> str:
    """Return a value as text, with what else is known of it in brackets.

    >>> recorded("outputs/grpo", weights="3f2a", dtype=None), recorded("", dtype="float32"), recorded(None)
    ('outputs/grpo (weights 3f2a)', 'not recorded (dtype float32)', 'not recorded')
    """
    known = ", ".join(f"{name} {text}" for name, text in more.items() if text not in (None, ""))
    text = NOT_RECORDED if value in (None, "") else str(value)
    return f"{text} ({known})" if known else text


def versions(source: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions and the commit that a config.yaml, run.json or manifest.json names."""
    installed = source.get("versions", {})
    named = ", ".join(f"{name} {installed[name]}" for name in PACKAGES if name in installed)
    return {"Versions": recorded(named), "Commit": recorded(source.get("commit"))}


def files(known: Iterable[Mapping[str, Any]] | None) -> str:
    """Return `provenance.data_files` in words.

    >>> files([{"file": "a.jsonl", "rows": 2000, "sha256": 16 * "0123"}, {"file": "HPD", "sha256": ""}])
    'a.jsonl (rows 2,000, sha256 012301230123); HPD (sha256 not recorded)'
    """
    words = []
    for each in known or ():
        rows = f"{each['rows']:,}" if "rows" in each else None
        words.append(recorded(each["file"], rows=rows, sha256=recorded(each["sha256"][:12])))
    return recorded("; ".join(words))


def table(facts: Mapping[str, Facts]) -> list[tuple[str, list[str]]]:
    """Return (fact, its value in each run); a single value where all runs share it."""
    rows = []
    for name in next(iter(facts.values()), {}):
        values = [of_run[name] for of_run in facts.values()]
        rows.append((name, values if len(set(values)) > 1 else values[:1]))
    return rows
