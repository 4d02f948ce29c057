#!/usr/bin/env bash
# The three stages on real, human-labelled pairs in the released formats: Cornell NLVR, with the tiny model. A check that the
# pipeline runs on data it did not draw; a model of 1 M parameters is not expected to understand the pictures.
#   UNIFIEDREWARD_TEST_DATA=/path/to/data bash scripts/real_pairs.sh
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

out=outputs/nlvr
data=${UNIFIEDREWARD_TEST_DATA:?set it to the folder that holds nlvr/}
base=src/unifiedreward_think/toy/base
args=(--max_pixels 16384 --frame_cache "$out/frames")

judge() {
  python -m unifiedreward_think.evaluation --model "$1" --input "$out/data/heldout.json" --output "$out/eval/$2" \
    --orders both --max-pixels 16384 --frame-cache "$out/frames" --dtype float32 --max-new-tokens 192 --batch-size 64
}

python tests/helpers/nlvr.py --input "$data/nlvr" --output "$out/data"
judge "$base" base
bash scripts/0.cold_start.sh configs/toy/cold_start.yaml "${args[@]}" \
  --train_files "$out/data/cold_start.json" --output_dir "$out/cold_start" --num_train_epochs 12 --learning_rate 2e-3
judge "$out/cold_start" cold_start
bash scripts/1.rejection_sampling.sh configs/toy/rejection_sampling.yaml "${args[@]}" \
  --model_name_or_path "$out/cold_start" --train_files "$out/data/train.json" --output_dir "$out/sampling" -- \
  "${args[@]}" --model_name_or_path "$out/cold_start" --train_files "$out/sampling/kept.jsonl" \
  --output_dir "$out/rejection_sft"
judge "$out/rejection_sft" rejection_sft
bash scripts/grpo.sh configs/toy/grpo.yaml "${args[@]}" --model_name_or_path "$out/rejection_sft" \
  --train_files "$out/sampling/hard.jsonl" --output_dir "$out/grpo" --max_steps 20
judge "$out/grpo" grpo
python -m unifiedreward_think.evaluation.report --run "base=$out/eval/base" --run "cold start=$out/eval/cold_start" \
  --run "+ rejection sampling=$out/eval/rejection_sft" --run "+ GRPO=$out/eval/grpo" \
  --curves "+ GRPO=$out/grpo/log_history.json" --title "NLVR pairs, tiny model" --output "$out/report.html"
