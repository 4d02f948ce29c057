#!/usr/bin/env bash
# Run every check and test, or only pytest when it is given arguments:
#   bash scripts/test.sh
#   bash scripts/test.sh tests/test_verdict.py -k swap
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# shellcheck source=scripts/system_packages.sh
source scripts/system_packages.sh
system_packages

(($# > 0)) || bash scripts/lint.sh
echo "== pytest $*"
python -m pytest "$@"
