"""What may leave this machine in a reply: a model goes by its name, and a reason without the folders it speaks of.

>>> public_name("/srv/models/judge-7b/"), public_name("org/judge")
('judge-7b', 'org/judge')
>>> without_folders("no such file: '/srv/my models/config.json', asked by http://127.0.0.1:8000/v1/models")
"no such file: '.../config.json', asked by http://127.0.0.1:8000/v1/models"
"""

from __future__ import annotations

import re
from pathlib import Path

# In quotes a path may hold blanks; without them it ends there. What follows a letter is part of an address or a type.
_QUOTED = re.compile(r"""(?<=['"])~?/(?:[^'"\n]*/)+(?=[^'"\n/]*['"])""")
_BARE = re.compile(r"""(?<![\w:/.'"-])~?/(?:[^\s/'"]+/)+""")


def public_name(model: str) -> str:
    """Return what clients call a model: the last part of the path of a folder or file, any other name as it is."""
    path = Path(model)
    stored = path.is_absolute() or model.startswith((".", "~")) or path.exists()
    return path.resolve().name if stored else model


def without_folders(text: str) -> str:
    """Return a message in which paths have lost their folders."""
    return _BARE.sub(".../", _QUOTED.sub(".../", text))
