"""Moved: `python -m unifiedreward_think.data.formats.loading` checks and counts rows."""

import sys

from unifiedreward_think.data.formats.loading import main
from unifiedreward_think.entry import note_moved, run_main

if __name__ == "__main__":
    note_moved("python -m unifiedreward_think.data.loading", "python -m unifiedreward_think.data.formats.loading")
    run_main(lambda: sys.exit(main()))
