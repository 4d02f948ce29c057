#!/usr/bin/env bash
# Stage 1, rejection sampling: sample K answers a pair, keep the correct ones, train on them.
#   bash scripts/1.rejection_sampling.sh configs/qwen2_5_vl_7b/rejection_sampling.yaml \
#     [--any_sampling_argument value ...] [-- --any_training_argument value ...]
# Trains with the rejection_sft.yaml beside the config. The sampling's output_dir receives kept.jsonl (trained on here),
# hard.jsonl (for scripts/grpo.sh) and manifest.json. With --check_data or --help nothing is trained.
# Several nodes: sample on one with SAMPLE_ONLY=1, then train on all with scripts/0.cold_start.sh and rejection_sft.yaml.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
enter_repository "${1:?usage: bash scripts/1.rejection_sampling.sh CONFIG.yaml [sampling arguments] [-- training arguments]}"
split=2
while ((split <= $#)) && [[ ${!split} != -- ]]; do
  [[ ${!split} =~ ^(-h|--help|--check_data(=.*)?)$ ]] && SAMPLE_ONLY=1
  split=$((split + 1))
done
if [[ -z ${SAMPLE_ONLY:-} ]] && ((${NNODES:-1} > 1)); then
  echo "$0: sampling runs on one node; see the first lines of this script" >&2
  exit 2
fi
run python -m unifiedreward_think.training.rejection_sampling --config "$config" "${@:2:split-2}"
[[ -n ${SAMPLE_ONLY:-} ]] ||
  launch unifiedreward_think.training.sft --config "$(dirname "$config")/rejection_sft.yaml" "${@:split+1}"
