"""Presets: how each family of released judges is asked and read, under one name (`presets.yaml`).

>>> preset_settings("v2-points")["reply_format"], with_preset({"preset": "v2-points", "frames": 4})["frames"]
('v2_points', 4)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from unifiedreward_think.data.formats.files import read_yaml
from unifiedreward_think.errors import InputError

FILE = Path(__file__).with_name("presets.yaml")


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Return the name of each preset and what the file says of it: `about` and `settings`."""
    return read_yaml(FILE)


def preset_settings(name: str) -> dict[str, Any]:
    """Return the fields of `JudgingArguments` that a preset sets.

    Raises:
        InputError: there is none of this name; the message lists them.
    """
    if name not in presets():
        raise InputError(f"preset {name!r} is unknown; known: {', '.join(presets())}")
    return dict(presets()[name]["settings"])


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of their `preset` beneath them: what is there already wins.

    Raises:
        InputError: the preset is unknown.
    """
    own = {key: value for key, value in values.items() if key != "preset"}
    name = values.get("preset")
    return own if name is None else {**preset_settings(name), **own}
