#!/usr/bin/env bash
# Stage 2, GRPO on the pairs that rejection sampling could not solve.
#   bash scripts/grpo.sh configs/qwen2_5_vl_7b/grpo.yaml [--any_argument value ...]
# Eight nodes of eight GPUs: run the same line on each with NNODES=8 NODE_RANK=0..7 MASTER_ADDR=<node 0>.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
enter_repository "${1:?usage: bash scripts/grpo.sh CONFIG.yaml [arguments]}"
launch unifiedreward_think.training.grpo --config "$config" "${@:2}"
