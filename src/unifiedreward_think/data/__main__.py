"""Preference data, from public sources to training files.

    python -m unifiedreward_think.data COMMAND --help

Commands: import (a source into records), check (clean them), split (train, rejection sampling, held-out), export
(to training formats), report (one HTML page), distill (chains of thought of a teacher), cut
(those of pairs into those of scores).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from unifiedreward_think.entry import run_main

# Each module is imported when it is chosen: `--help` and `import` need no picture library, `report` no model.
COMMANDS = {
    "import": "unifiedreward_think.data.importing",
    "check": "unifiedreward_think.data.curation.check",
    "split": "unifiedreward_think.data.curation.split",
    "export": "unifiedreward_think.data.exporting",
    "report": "unifiedreward_think.data.report",
    "distill": "unifiedreward_think.traces.distillation",
    "cut": "unifiedreward_think.traces.cutting",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        prog="python -m unifiedreward_think.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command: COMMAND --help")
    args = parser.parse_args(arguments)
    import_module(COMMANDS[args.command]).main(args.arguments)


if __name__ == "__main__":
    run_main(main)
