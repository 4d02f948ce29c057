"""What the user can fix: entry points print these without a traceback (`entry.run_main`)."""


class InputError(ValueError):
    """Something the user can fix; the message names it and the fix."""


class RecordError(InputError):
    """A row that cannot be used; the message names the file and line or the record, and the fix."""


class MediaError(InputError):
    """An image or video that cannot be used; the message names the file and the fix."""


class DecoderError(InputError):
    """A video decoder that is not installed: no video can be read, whichever it is."""
