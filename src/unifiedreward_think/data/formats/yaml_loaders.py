"""YAML in which each key is written once, and plain words mean what is written: `no` is a word, not False.

>>> yaml.load("{first: [yes, true, 01], votes: 7}", AsWritten)
{'first': ['yes', True, '01'], 'votes': 7}
>>> yaml.load("{a: 1, a: 2}", OnceEach)
Traceback (most recent call last):
    ...
yaml.constructor.ConstructorError: 'a' is written twice; keep one
  in "<unicode string>", line 1, column 8:
    {a: 1, a: 2}
           ^
"""

from __future__ import annotations

import re
from typing import Any

import yaml

PLAIN = {  # what is no text: written so, a value comes back as it was written
    "bool": ("true|false", "tf"),
    "int": (r"-?(0|[1-9]\d*)", "-0123456789"),
    "float": (r"-?(0|[1-9]\d*)\.(0|\d*[1-9])", "-0123456789"),
    "merge": ("<<", "<"),
}


class OnceEach(yaml.SafeLoader):
    """The YAML 1.1 of `yaml.safe_load`, TRL's and everybody's configs, less its silence about a key written twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node; what `<<` brings may be written again."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is written twice; keep one", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


class AsWritten(OnceEach):
    """Declarations, where words are data: only true, false and plain decimal numbers are no text."""


AsWritten.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in PLAIN.items():
    AsWritten.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))
