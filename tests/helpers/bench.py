"""Scripts of scripts/bench as modules, and the programs that some of them compare with."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


def script(name):
    """Return a script as a module; scripts import each other by their bare names."""
    if str(BENCH) not in sys.path:
        sys.path.append(str(BENCH))
    return importlib.import_module(name)


def need(program):
    """Skip a test where a program is missing."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
