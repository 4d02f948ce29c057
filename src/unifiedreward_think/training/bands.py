"""Moved: `python -m unifiedreward_think.training.monitor.thresholds` prints what a healthy run logs."""

from unifiedreward_think.entry import note_moved
from unifiedreward_think.training.monitor.thresholds import main

if __name__ == "__main__":
    note_moved("unifiedreward_think.training.bands", "unifiedreward_think.training.monitor.thresholds")
    main()
