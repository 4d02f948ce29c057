"""What made an output: the versions of everything that can change a number, and the commit.

>>> sorted(provenance())
['commit', 'versions']
>>> print(config_yaml({"frames": 8, "output": Path("outputs/eval")}, benchmark="mmrb2").partition("versions:")[0])
benchmark: mmrb2
arguments:
  frames: 8
  output: outputs/eval
<BLANKLINE>
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

# What is not installed is left out: decord has no wheel for every machine; vllm, openai and imagehash are extras.
VERSIONED = (
    *("unifiedreward-think", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "deepspeed"),
    *("pillow", "decord", "av", "pyarrow", "imagehash", "vllm", "openai"),
)


def provenance() -> dict[str, Any]:
    """Return the installed versions of VERSIONED and the commit."""
    versions: dict[str, str] = {}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "commit": commit(Path(__file__).parents[2])}


def commit(root: Path) -> str:
    """Return the commit of the repository at `root`, "-dirty" with changes in it; "unknown" where there is none.

    A package that is installed elsewhere may lie inside another project's repository: that commit is not ours.
    """
    if not (root / ".git").exists() or shutil.which("git") is None:
        return "unknown"
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def config_yaml(arguments: Mapping[str, Any], **more: str) -> str:
    """Return what config.yaml of an evaluation says: `more`, the arguments of the command, versions and commit."""
    import yaml

    plain = {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}
    return yaml.safe_dump({**more, "arguments": plain, **provenance()}, sort_keys=False)
