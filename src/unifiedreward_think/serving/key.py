"""The key that requests must bring, and what may be one.

>>> checked("sesame")
'sesame'
>>> checked("sesame ")
Traceback (most recent call last):
...
unifiedreward_think.errors.InputError: UNIFIEDREWARD_API_KEY holds a blank, a line break or what is not ASCII, ...
"""

from __future__ import annotations

import os
import re

from unifiedreward_think.errors import InputError

KEY = "UNIFIEDREWARD_API_KEY"


def own_key() -> str:
    """Return the key of the environment, "" for none.

    Raises:
        InputError: no request could bring it.
    """
    return checked(os.environ.get(KEY, ""))


def checked(key: str) -> str:
    """Return a key, "" for none.

    Raises:
        InputError: no request could bring it: whoever set it would be locked out without a word.
    """
    if key and not re.fullmatch("[!-~]+", key):
        raise InputError(
            f"{KEY} holds a blank, a line break or what is not ASCII, which no header carries; "
            f"set it without: export {KEY}=\"$(tr -d '[:space:]' <FILE)\""
        )
    return key
