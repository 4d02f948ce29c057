"""Moved: `python -m unifiedreward_think.data.formats.loading` checks and counts rows."""

import sys

from unifiedreward_think.data.formats.loading import main
from unifiedreward_think.entry import note_moved

if __name__ == "__main__":
    note_moved("unifiedreward_think.data.loading", "unifiedreward_think.data.formats.loading")
    sys.exit(main())
