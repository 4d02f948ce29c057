"""Names of flags, keys and values from before, under which they are taken for a version, with a note.

>>> current({"votes": 3}, note=False)
{'samples': 3}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unifiedreward_think.entry import note_moved
from unifiedreward_think.errors import InputError

# What goes with version 0.3: names of flags and keys, and values of them.
RENAMED = {"data": "input", "prompt_dir": "prompts", "prompt_file": "prompts", "votes": "samples"}
RENAMED_VALUES = {("orders", "random"): "one"}


def current(values: Mapping[str, Any], *, note: bool = True) -> dict[str, Any]:
    """Return settings under the names of today; a note on standard error tells of each that has another.

    Raises:
        InputError: a setting is there under both names.
    """
    new: dict[str, Any] = {}
    for old, before in values.items():
        key = RENAMED.get(old, old)
        new_value = RENAMED_VALUES.get((key, before), before) if isinstance(before, str) else before
        if key != old and key in values:
            raise InputError(f"{old} is now {key}; leave one of them out")
        if note and (key, new_value) != (old, before):
            note_moved(*((old, key) if key != old else (f"{old}: {before}", f"{key}: {new_value}")))
        new[key] = new_value
    return new


def current_words(words: Iterable[str]) -> list[str]:
    """Return a command line under the names of today, with `-` for `_` in its flags.

    >>> current_words(["--max_new_tokens", "4", "--orders", "both", "--run_name=a_b"])
    ['--max-new-tokens', '4', '--orders', 'both', '--run-name=a_b']
    """
    result: list[str] = []
    flag = ""
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else (flag, "", word)
        ((key, value),) = current({name[2:].replace("-", "_"): value}).items()
        if word.startswith("--"):
            flag = f"--{key.replace('_', '-')}"
            value = flag + equals + value
        result.append(value)
    return result
