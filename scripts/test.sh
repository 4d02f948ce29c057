#!/usr/bin/env bash
# Run every check and test, or only pytest when it is given arguments:
#   bash scripts/test.sh
#   bash scripts/test.sh tests/test_verdict.py -k swap
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

step() {
  echo "== $*"
  "$@"
}

if (($# == 0)); then
  step ruff check
  step ruff format --check
  step mypy
  step lint-imports --no-logo
  step find scripts benchmark_evaluation -name '*.sh' -exec shellcheck -x .ci/run {} +
fi
step python -m pytest "$@"
