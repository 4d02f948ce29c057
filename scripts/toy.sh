# shellcheck shell=bash
# The toy pipeline, for quickstart.sh and ablation.sh: the real stage scripts on the toy configs. A stage is judged on the
# held-out pairs while the next one trains, on the second core.

judging=()
trap 'kill ${judging[@]+"${judging[@]}"} 2>/dev/null || true' EXIT # the next run goes on with what was judged

# toy_judge MODEL NAME OUT [arguments]: judge the held-out pairs in both orders, in the background; none that is judged
# already, which the command itself holds against what the pairs are now.
toy_judge() {
  python -m unifiedreward_think.evaluation --model "$1" --input "$3/data/heldout.jsonl" --output "$3/eval/$2" \
    --orders both --prompts configs/toy/prompts --frames 4 --decoder pyav --frame-cache "$3/frames" \
    --dtype float32 --max-new-tokens 192 --batch-size 64 "${@:4}" >"$3/logs/judge_$2.log" 2>&1 &
  judging+=("$!")
}

# toy_wait OUT: wait for the judging in the background, and fail if any of it failed.
toy_wait() {
  local pid
  for pid in "${judging[@]}"; do
    wait "$pid" || { echo "judging the held-out pairs failed, see $1/logs" >&2; return 1; }
  done
}

# toy_pipeline SEED OUT: data, the three stages, and a judgment of each on the held-out pairs.
toy_pipeline() {
  export NPROC=1 # also where there are GPUs: the toy batch sizes are for one process
  local seed=$1 out=$2 base=src/unifiedreward_think/toy/base
  local args=(--seed "$seed" --order_seed "$seed" --frame_cache "$out/frames")
  judging=()
  mkdir -p "$out/logs"
  echo "== toy world: drawing"
  python -m unifiedreward_think.toy.dataset --output "$out/data" --seed "$seed"
  toy_judge "$base" base "$out"
  echo "== stage 0: cold start"
  bash scripts/0.cold_start.sh configs/toy/cold_start.yaml "${args[@]}" \
    --train_files "$out/data/cold_start.jsonl" --output_dir "$out/cold_start"
  toy_judge "$out/cold_start" cold_start "$out"
  echo "== stage 1: rejection sampling"
  # Sampled by both cores; training is for one process.
  SAMPLE_ONLY=1 NPROC=2 bash scripts/1.rejection_sampling.sh configs/toy/rejection_sampling.yaml "${args[@]}" \
    --model_name_or_path "$out/cold_start" --train_files "$out/data/train.jsonl" --output_dir "$out/sampling"
  bash scripts/0.cold_start.sh configs/toy/rejection_sft.yaml "${args[@]}" \
    --model_name_or_path "$out/cold_start" --train_files "$out/sampling/kept.jsonl" --output_dir "$out/rejection_sft"
  toy_judge "$out/rejection_sft" rejection_sft "$out"
  echo "== stage 2: GRPO"
  bash scripts/grpo.sh configs/toy/grpo.yaml "${args[@]}" --model_name_or_path "$out/rejection_sft" \
    --train_files "$out/sampling/hard.jsonl" --output_dir "$out/grpo"
  toy_judge "$out/grpo" grpo "$out"
  toy_wait "$out"
}

# toy_direct SEED OUT: the ablation without chains of thought, on the same pairs.
toy_direct() {
  local seed=$1 out=$2
  judging=()
  echo "== ablation: GRPO without chains of thought"
  bash scripts/grpo.sh configs/toy/grpo_direct.yaml --seed "$seed" --order_seed "$seed" --frame_cache "$out/frames" \
    --train_files "$out/data/train.jsonl" --output_dir "$out/grpo_direct"
  toy_judge "$out/grpo_direct" grpo_direct "$out" --style direct
  toy_wait "$out"
}
