"""How a command starts and ends: a moved one names its new place; bad input ends in one message, not a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from unifiedreward_think.errors import InputError


def run_main(main: Callable[[], object]) -> None:
    """Run the main function of a command.

    Raises:
        SystemExit: with the message of an InputError; any other exception is a bug and keeps its traceback.
    """
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


def note_moved(old: str, new: str) -> None:
    """Say on standard error where a command is now; the old name goes with the next minor version (CHANGELOG.md)."""
    print(f"note: `python -m {old}` is now `python -m {new}`; the old name goes with version 0.3", file=sys.stderr)
