#!/usr/bin/env bash
# Every check that runs no code of ours: ruff, mypy, lint-imports, shellcheck. test.sh begins with it.
#   bash scripts/lint.sh
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

step() {
  echo "== $*"
  "$@"
}

step ruff check
step ruff format --check
step mypy
step lint-imports --no-logo
step find scripts benchmark_evaluation -name '*.sh' -exec shellcheck -x .ci/run {} +
