"""What the page says where something fails: the reason, in words that show no folder of this machine.

    except Exception as error:
        yield view.alert(told(error, setup.work))

What a visitor can do nothing about is in the log as well, once, with its traceback.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from unifiedreward_think.backends import BackendError
from unifiedreward_think.errors import InputError

log = logging.getLogger(__name__)


def told(error: Exception, work: Path, *, root: Path | None = None, paths: Iterable[str] = ()) -> str:
    """Return what the page says of an error, `by_names`; one that a visitor cannot have caused is logged."""
    visitors = isinstance(error, InputError) and not isinstance(error, BackendError)
    if not visitors:
        log.error("the demo failed", exc_info=error)
    said = str(error) if isinstance(error, InputError) else f"Failed: {type(error).__name__}: {error}"
    return by_names(said, work, root=root, paths=paths)


def by_names(text: str, work: Path, *, root: Path | None = None, paths: Iterable[str] = ()) -> str:
    """Call files by their names: where they lie here is no business of whoever asks.

    Args:
        text: a message.
        work: uploads lie below this folder, however deep.
        root: a visitor's files name others by their paths from this folder.
        paths: other files.

    >>> by_names("/tmp/demo/gradio/8f/a b.png: no picture, nor /data/c/d.png", Path("/tmp/demo"), root=Path("/data"))
    'a b.png: no picture, nor c/d.png'
    """
    for path in sorted(paths, key=len, reverse=True):
        text = text.replace(path, Path(path).name)
    if root:
        text = text.replace(f"{root.resolve()}/", "")
    return re.sub(rf"{re.escape(str(work))}/(?:[^/\s'\"]+/)*", "", text)
