"""Moved: `python -m unifiedreward_think.training.monitor.thresholds` prints what a healthy run logs."""

from unifiedreward_think.entry import note_moved, run_main
from unifiedreward_think.training.monitor.thresholds import main

if __name__ == "__main__":
    note_moved(*(f"python -m unifiedreward_think.training.{name}" for name in ("bands", "monitor.thresholds")))
    run_main(main)
