"""Chains of thought of a teacher: `python -m unifiedreward_think.traces --help`."""

from unifiedreward_think.entry import run_main
from unifiedreward_think.traces.distillation import main

run_main(main)
