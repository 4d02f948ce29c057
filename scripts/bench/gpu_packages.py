"""Which Python packages gpu.sh needs and this interpreter lacks, with the commands that bring them as wheels.

    python scripts/bench/gpu_packages.py

Checked are the bounds of pyproject.toml, and whether what these packages need in turn is there; what torch needs is
left to whoever installed it.
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

REPO = Path(__file__).parents[2]
UNUSED = {"deepspeed", "decord", "av", "qwen-vl-utils", "scipy"}  # what is measured here does without
HELP = """\
gpu.sh: this Python lacks packages, or has other versions than pyproject.toml allows. Where there is a registry:
  {python} -m pip install {pins}
Where there is none, fetch the wheels elsewhere, bring the folder here, and name it in WHEELS:
  pip download --no-deps --only-binary=:all: --python-version {version} -d wheels {pins}
  WHEELS=wheels bash scripts/bench/gpu.sh
(--no-deps: what these need in turn is asked for by the next run.)"""


def missing():
    """Return {name: reason} of every package that is not there, or not in a version that fits."""
    from packaging.requirements import Requirement

    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [("pyproject.toml", line) for line in project["dependencies"]]
    found, seen = {}, set()
    while waiting:
        needed_by, line = waiting.pop()
        wanted = Requirement(line)
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if name in UNUSED or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = f"not installed ({needed_by} needs it)"
            continue
        if needed_by == "pyproject.toml" and not wanted.specifier.contains(installed, prereleases=True):
            found[name] = f"{installed} is installed, {needed_by} needs {wanted.specifier}"
        if name not in {*seen, "torch"}:
            seen.add(name)
            waiting += [(name, line) for line in metadata.requires(name) or ()]
    return found


def main():
    try:
        found = missing()
    except ModuleNotFoundError as error:
        found = {error.name: "not installed"}
    if not found:
        return
    locked = dict(re.findall(r"^([\w.-]+)={2,3}([^\s;]+)", (REPO / "requirements.lock").read_text(), re.MULTILINE))
    pins = " ".join(f"{name}=={locked[name]}" if name in locked else name for name in sorted(found))
    print(*(f"{name}: {reason}" for name, reason in sorted(found.items())), sep="\n", file=sys.stderr)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    sys.exit(HELP.format(python=sys.executable, version=version, pins=pins))


if __name__ == "__main__":
    main()
