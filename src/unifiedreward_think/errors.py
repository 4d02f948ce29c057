"""What the user can fix: entry points print these without a traceback (`entry.run_main`)."""


class InputError(ValueError):
    """Something the user can fix; the message names it and the fix."""


class RecordError(InputError):
    """A row that cannot be used; the message names the file and line or the record, and the fix."""
