"""How a command starts and ends: a moved one names its new place; bad input and Ctrl-C end in one line each."""

from __future__ import annotations

from collections.abc import Callable

from unifiedreward_think.errors import InputError
from unifiedreward_think.interrupts import one_line
from unifiedreward_think.terminal import note


def run_main(main: Callable[[], object]) -> None:
    """Run the main function of a command.

    Raises:
        SystemExit: with the message of an InputError, or with status 130 after Ctrl-C; any other exception is a bug and
            keeps its traceback.
    """
    try:
        with one_line(note):
            main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


def note_moved(old: str, new: str) -> None:
    """Say on standard error what the name of a command, a flag or a key is now (CHANGELOG.md)."""
    note(f"note: `{old}` is now `{new}`; the old name goes with version 0.3")
