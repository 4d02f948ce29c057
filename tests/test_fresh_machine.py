"""What a machine without the tests' needs does: it says so, and in CI it fails."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = """
import pytest

def test_a_need():
    pytest.skip({reason!r})
"""


@pytest.mark.parametrize(
    ("ci", "reason", "failed"),
    [
        ("", "no chromium on this machine", 0),
        ("true", "no chromium on this machine", 1),
        ("true", "UNIFIEDREWARD_TEST_DATA names no folder", 0),
    ],
)
def test_a_skip_fails_in_ci_unless_its_reason_is_on_the_list(ci, reason, failed, tmp_path):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_skips.py").write_text(SKIPS.format(reason=reason))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    run = subprocess.run(command, env={**os.environ, "CI": ci}, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == failed, run.stdout
    assert (f"skipped in CI: {reason}" in run.stdout) == bool(failed)


BEFORE = ["environment", "system packages"]


def ci(folder, **scripts):
    """Run .ci/run in a checkout whose scripts are those given; each one else succeeds and names itself."""
    (folder / ".ci").mkdir()
    (folder / "scripts").mkdir()
    shutil.copy(Path(__file__).parents[1] / ".ci" / "run", folder / ".ci")
    for name in ("setup", "vllm_cpu", "lint", "test"):
        (folder / "scripts" / f"{name}.sh").write_text(scripts.get(name, 'echo "ran $(basename $0) $* CI=$CI"'))
    (folder / "scripts" / "system_packages.sh").write_text("system_packages() { :; }")
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    return subprocess.run(["bash", folder / ".ci" / "run"], env=environment, capture_output=True, text=True)


def parts(lines):
    """Names of the parts whose minutes are printed."""
    assert lines[0] == "== minutes" and all(re.match(r" *\d+\.\d min  ", line) for line in lines[1:])
    return [line.partition("min  ")[2] for line in lines[1:]]


def test_ci_makes_both_environments_runs_all_tests_and_prints_minutes(tmp_path):
    run = ci(tmp_path)
    lines = run.stdout.splitlines()
    assert run.returncode == 0 and not run.stderr
    assert lines[:5] == [
        *("ran setup.sh  CI=true", "ran vllm_cpu.sh  CI=true", "ran lint.sh  CI=true"),
        *("ran test.sh -m slow CI=true", "ran test.sh -m not slow CI=true"),
    ]
    assert parts(lines[5:]) == [*BEFORE, "vllm", "lint", "slow tests", "quick tests, after the slow ones", "total"]


@pytest.mark.parametrize("fails", ["not slow", "slow"])
def test_ci_fails_with_either_half_of_the_tests_and_runs_the_other(fails, tmp_path):
    run = ci(tmp_path, test=f'echo "ran $2"; [[ $2 != "{fails}" ]]')
    assert run.returncode == 1 and run.stdout.splitlines()[3:5] == ["ran slow", "ran not slow"]


def test_ci_ends_at_the_first_failure_with_its_status_and_the_minutes_so_far(tmp_path):
    run = ci(tmp_path, vllm_cpu="echo no AVX2 >&2; exit 3")
    lines = run.stdout.splitlines()
    assert run.returncode == 3 and run.stderr == "no AVX2\n"
    assert lines[0] == "ran setup.sh  CI=true" and parts(lines[1:]) == [*BEFORE, "vllm", "total"]
