#!/usr/bin/env bash
# The paper's ablation on the toy world, mean and spread over seeds: cold start alone, + rejection sampling, + GRPO, and
# GRPO without chains of thought. Writes results/toy_ablation.{json,md}.
#   bash scripts/ablation.sh [SEED ...]      # 0 1 2 by default, about a quarter of an hour each
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# shellcheck source=scripts/toy.sh
source scripts/toy.sh

seeds=("$@")
(($# > 0)) || seeds=(0 1 2)
runs=()
for seed in "${seeds[@]}"; do
  out=outputs/toy/seed$seed
  runs+=("$out")
  echo "== seed $seed"
  toy_pipeline "$seed" "$out"
  toy_direct "$seed" "$out"
done
python -m unifiedreward_think.toy.ablation --runs "${runs[@]}" --output results/toy_ablation.json
