"""What made an output: the versions of everything that can change a number, the commit, the data files, the time.

>>> sorted(provenance())
['commit', 'versions']
>>> print(config_yaml({"frames": 8, "output": Path("outputs/eval")}, benchmark="mmrb2").partition("versions:")[0])
benchmark: mmrb2
arguments:
  frames: 8
  output: outputs/eval
data: []
<BLANKLINE>
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from unifiedreward_think.checksums import sha256_if_there

# What is not installed is left out: decord has no wheel for every machine; vllm, openai and imagehash are extras.
VERSIONED = (
    *("unifiedreward-think", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "deepspeed"),
    *("pillow", "decord", "av", "pyarrow", "imagehash", "vllm", "openai"),
)


def provenance() -> dict[str, Any]:
    """Return the installed versions of VERSIONED and the commit."""
    return {"versions": versions(), "commit": commit(Path(__file__).parents[2])}


def versions() -> dict[str, str]:
    """Return the installed versions of VERSIONED."""
    installed: dict[str, str] = {}
    for name in VERSIONED:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def commit(root: Path) -> str:
    """Return the commit of the repository at `root`, "-dirty" with changes in it; "unknown" where there is none.

    A package that is installed elsewhere may lie inside another project's repository: that commit is not ours.
    """
    if not (root / ".git").exists() or shutil.which("git") is None:
        return "unknown"
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def now() -> str:
    """Return the date and time as outputs name them, "2026-11-30 09:16 UTC".

    No part of `provenance`: outputs that are the same bytes for the same input name no time.
    """
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def data_files(files: Iterable[str], rows: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """Return what identifies data files: name, digest ("": it is no file), and how many of its rows were used.

    >>> data_files(["gone.jsonl"], {"gone.jsonl": 3})
    [{'file': 'gone.jsonl', 'rows': 3, 'sha256': ''}]
    """
    return [
        {"file": file, **({} if rows is None else {"rows": rows.get(file, 0)}), "sha256": sha256_if_there(Path(file))}
        for file in files
    ]


def config_yaml(arguments: Mapping[str, Any], *, data: Sequence[Mapping[str, Any]] = (), **more: str) -> str:
    """Return what config.yaml of an evaluation says.

    That is `more`, the arguments of the command, its `data_files`, versions, commit, and when it was started.
    """
    import yaml

    plain = {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}
    about = {**more, "arguments": plain, "data": [dict(each) for each in data], **provenance(), "date": now()}
    return yaml.safe_dump(about, sort_keys=False)
