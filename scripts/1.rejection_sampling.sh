#!/usr/bin/env bash
# Stage 1, rejection sampling: sample K answers a pair, keep the correct ones, train on them.
#   bash scripts/1.rejection_sampling.sh configs/qwen2_5_vl_7b/rejection_sampling.yaml \
#     [--any_sampling_argument value ...] [-- --any_training_argument value ...]
# Trains with the rejection_sft.yaml beside the config. The sampling's output_dir receives kept.jsonl (trained on here),
# hard.jsonl (for scripts/grpo.sh) and manifest.json. Each process samples its share of the pairs, with a GPU of its own, or
# with as many as tensor_parallel_size says; the files are those that one process writes. With --check_data or --help nothing is sampled or trained; with SAMPLE_ONLY=1 nothing is trained.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
enter_repository "${1:?usage: bash scripts/1.rejection_sampling.sh CONFIG.yaml [sampling arguments] [-- training arguments]}"
sampler=(launch)
split=2
while ((split <= $#)) && [[ ${!split} != -- ]]; do
  if [[ ${!split} =~ ^(-h|--help|--check_data(=.*)?)$ ]]; then
    SAMPLE_ONLY=1
    sampler=(run python -m) # one look is enough
  fi
  split=$((split + 1))
done
engine=$(said tensor_parallel_size "${@:2:split-2}")
[[ $engine =~ ^[1-9][0-9]*$ ]] || engine=1 # not said, or none; what is no number, Python refuses
gpus_each=$engine "${sampler[@]}" unifiedreward_think.training.rejection_sampling --config "$config" "${@:2:split-2}"
[[ -z ${SAMPLE_ONLY:-} ]] || exit 0
# A port of its own: on another node this may start before the sampling of node 0 has let go of the first.
MASTER_PORT=$((${MASTER_PORT:-29500} + 1))
launch unifiedreward_think.training.sft --config "$(dirname "$config")/rejection_sft.yaml" "${@:split+1}"
