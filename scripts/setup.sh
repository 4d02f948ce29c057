# shellcheck shell=bash
# Make .venv and install the locked versions into it, or do nothing when that is done. quickstart.sh and test.sh source
# this file; it leaves them in the repository root with the environment on PATH.
# PYTHON=python3.12 chooses the interpreter of a new .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
  echo "setup: $*" >&2
  exit 1
}

# What must be installed: this package, from here, with these versions.
wanted() {
  pwd
  cat pyproject.toml requirements.lock
}

make_venv() {
  local python=${PYTHON:-python3} free_kb
  case $(uname -s) in
    Linux | Darwin) ;;
    *) die "runs on Linux and macOS, this is $(uname -s); on Windows use WSL" ;;
  esac
  command -v "$python" >/dev/null || die "$python not found: install Python 3.11 or newer, or set PYTHON"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "needs Python 3.11 or newer, $python is $("$python" -V 2>&1): set PYTHON to a newer one"
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$python lacks the venv module (on Debian and Ubuntu: apt install python3-venv)"
  free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
  ((free_kb > 10 * 1024 * 1024)) || die "needs 10 GB free in $PWD, has $((free_kb / 1024 / 1024)) GB"
  echo "setup: making .venv with $("$python" -V)"
  "$python" -m venv --clear .venv
}

install_locked() {
  local pip=(.venv/bin/pip --disable-pip-version-check install --no-deps --no-compile)
  [[ -t 1 ]] || pip+=(--progress-bar off)
  echo "setup: installing requirements.lock (3 GB to download the first time, a few minutes)"
  "${pip[@]}" -r requirements.lock -e . || die "pip failed, see above; run this again to go on"
  wanted >.venv/installed
}

# pip's first line holds the path of .venv, so this also finds out that the repository was moved.
.venv/bin/pip --version >/dev/null 2>&1 || make_venv
wanted | cmp -s - .venv/installed || install_locked

export PATH="$PWD/.venv/bin:$PATH"
# Compiled modules are kept, in .venv alone, even where the shell says not to write any: without them every process
# compiles its libraries again, and the import of trl takes 10 s instead of 5.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$PWD/.venv/pycache"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # with tiny models, ten times faster than two threads on two shared cores
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"   # neither the toy pipeline nor a test downloads a model or data
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
