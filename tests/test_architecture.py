"""What may import what: a light core, one direction, no folder that hides a library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = [
    *("verdict", "order", "forms", "tasks", "errors", "labels", "lines", "records", "prompting", "rewards"),
    *("intervals", "metrics", "writing", "votes", "ranking"),
]
HEAVY = ["torch", "transformers", "trl", "datasets", "PIL", "numpy", "pandas", "av", "decord"]


def cpu_seconds(code):
    """CPU time of a fresh interpreter that runs `code`; the best of a few runs, as the machine may be busy."""
    best = float("inf")
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        best = min(best, used)
    return best


@pytest.mark.parametrize("module", CORE)
def test_a_core_module_loads_nothing_heavy(module):
    code = f"import sys, unifiedreward_think.{module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert set(loaded.stdout.split()).isdisjoint(HEAVY)


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in CORE)])
def test_importing_the_core_takes_a_moment(module):
    assert cpu_seconds(f"import unifiedreward_think{module}") - cpu_seconds("pass") <= 0.3


def test_the_demo_folder_does_not_hide_the_gradio_library():
    assert not (ROOT / "gradio" / "__init__.py").exists()


def test_imports_point_towards_the_core():
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
