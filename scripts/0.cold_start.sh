#!/usr/bin/env bash
# Stage 0, cold start: SFT on a teacher's chains of thought.
#   bash scripts/0.cold_start.sh configs/qwen2_5_vl_7b/cold_start.yaml [--any_argument value ...]
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
enter_repository "${1:?usage: bash scripts/0.cold_start.sh CONFIG.yaml [arguments]}"
launch unifiedreward_think.training.sft --config "$config" "${@:2}"
