#!/usr/bin/env bash
# The whole method on the toy world: base -> cold start -> rejection sampling -> GRPO, then a table and a report.
#   bash scripts/quickstart.sh [SEED]
# No GPU and no network beyond the package registry. Safe to run again: finished parts are not repeated.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# shellcheck source=scripts/toy.sh
source scripts/toy.sh

seed=${1:-0}
out=outputs/toy/seed$seed
toy_pipeline "$seed" "$out"
python -m unifiedreward_think.evaluation.report \
  --run "base=$out/eval/base" --run "cold start=$out/eval/cold_start" \
  --run "+ rejection sampling=$out/eval/rejection_sft" --run "+ GRPO=$out/eval/grpo" \
  --curves "+ GRPO=$out/grpo/log_history.json" --decoder pyav --output "$out/report.html"
python -m unifiedreward_think.evaluation.training_report --run "$out/grpo" \
  --before "$out/eval/rejection_sft" --after "$out/eval/grpo" --decoder pyav --output "$out/training.html"
