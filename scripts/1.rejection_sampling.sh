#!/usr/bin/env bash
# Stage 1, rejection sampling: sample K answers a pair, keep the correct ones, train on them.
#   bash scripts/1.rejection_sampling.sh configs/qwen2_5_vl_7b/rejection_sampling.yaml \
#     [--any_sampling_argument value ...] [-- --any_training_argument value ...]
# Trains with the rejection_sft.yaml beside the config. The sampling's output_dir receives kept.jsonl (trained on here),
# hard.jsonl (for scripts/grpo.sh) and manifest.json.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
config=${1:?usage: bash scripts/1.rejection_sampling.sh CONFIG.yaml [sampling arguments] [-- training arguments]}
shift
sampling=()
while (($# > 0)) && [[ $1 != -- ]]; do
  sampling+=("$1")
  shift
done
NPROC=1 NNODES=1 launch unifiedreward_think.training.rejection_sampling --config "$config" "${sampling[@]}"
launch unifiedreward_think.training.sft --config "$(dirname "$config")/rejection_sft.yaml" "${@:2}"
