"""How a command ends when its input is at fault: one clear message and status 1, not a traceback."""

from __future__ import annotations

from collections.abc import Callable

from unifiedreward_think.records import InputError


def run_main(main: Callable[[], object]) -> None:
    """Run the main function of a command.

    Raises:
        SystemExit: with the message of an InputError; any other exception is a bug and keeps its traceback.
    """
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
