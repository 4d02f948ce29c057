"""Which model judges, and what is to be known of it, its training and its limits: the first lines of the page.

    judge, note = about(args, backend, limits="It knows drawings only.")

What nobody says of a model is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from unifiedreward_think.backends import Backend
from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.backends.server import ServerBackend

LIMITS = "It can be wrong, and its verdict can depend on the order in which it sees the two: swap and ask again."
STORED = "Only what that run has judged is answered, as it was then; nothing is computed."


def about(args: BackendArguments, backend: Backend, *, limits: str = "") -> tuple[str, str]:
    """Return the name of the model and where it answers; and how it was trained, and what it cannot do.

    Args:
        args: what the backend was made of.
        backend: the model.
        limits: what is known of this one; by default, what holds for all.
    """
    name = short(backend.model)
    if isinstance(backend, ServerBackend):
        return f"{name} on {', '.join(map(host, backend.servers))}", limits or LIMITS
    if args.backend == "replay":
        return f"{name}, from the stored run {short(str(args.model))}", STORED
    return name, " ".join(part for part in (trained(Path(backend.model)), limits or LIMITS) if part)


def short(model: str) -> str:
    """Return the name of a model: on the Hub, or the last two parts of its folder.

    >>> short("CodeGoat24/UnifiedReward-Think-qwen-7b"), short("/home/me/outputs/toy/seed0/grpo")
    ('CodeGoat24/UnifiedReward-Think-qwen-7b', 'seed0/grpo')
    """
    return "/".join([part for part in Path(model).parts if part != "/"][-2:])


def host(url: str) -> str:
    """Return host and port of an address, without what else may stand in it.

    >>> host("http://me:secret@judge.example:8000/v1")
    'judge.example:8000'
    """
    return urlsplit(url).netloc.rpartition("@")[2]


def trained(folder: Path) -> str:
    """Return how this repository has trained the model of a folder; '' where it has not, or does not say so."""
    file = folder / "run.json"
    if not file.is_file():
        return ""
    run = json.loads(file.read_text(encoding="utf-8"))
    return f"Trained by stage {run['stage']} from {short(str(run['arguments']['model_name_or_path']))}."
