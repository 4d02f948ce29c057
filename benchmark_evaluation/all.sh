#!/usr/bin/env bash
# Run every benchmark with one model, then list the results.
#   bash benchmark_evaluation/all.sh MODEL OUTPUT [--any_argument value ...]
# Rows come from the Hub, or from DATA/<name of the script> where that exists:
#   DATA=/data bash benchmark_evaluation/all.sh outputs/grpo outputs/benchmarks --frames 8
# One that fails does not stop the others; the exit status says that one did. Safe to run again: judgments are kept.
set -uo pipefail
trap 'exit 130' INT # Ctrl-C ends this script, too
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
model=${1:?usage: bash benchmark_evaluation/all.sh MODEL OUTPUT [arguments]}
output=${2:?usage: bash benchmark_evaluation/all.sh MODEL OUTPUT [arguments]}
shift 2
failed=()

# run SCRIPT NAME [arguments]
run() {
  local script=$1 name=$2 data=()
  [[ -n "${DATA:-}" && -e "$DATA/$name" ]] && data=(--input "$DATA/$name")
  if [[ $script == sharegpt_video && ${#data[@]} -eq 0 ]]; then
    echo "== $name: skipped, it needs DATA/sharegpt_video"
    return
  fi
  echo "== $name"
  python "$here/$script.py" --model "$model" --output "$output/$name" "${data[@]}" "${@:3}" || failed+=("$name")
}

run vl_rewardbench vl_rewardbench "$@"
run genai_bench_image genai_bench_image "$@"
run genai_bench_image genai_bench_image_v1 --split test_v1 "$@"
run genai_bench_video genai_bench_video "$@"
run genai_bench_video genai_bench_video_v1 --split test_v1 "$@"
run videogen_rewardbench videogen_rewardbench "$@"
run sharegpt_video sharegpt_video "$@"
run multimodal_rewardbench multimodal_rewardbench "$@"
run mmrb2 mmrb2 "$@"
run mmrb2 mmrb2_edit --config edit "$@"

if ((${#failed[@]} > 0)); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
