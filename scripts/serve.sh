#!/usr/bin/env bash
# The reward server (docs/reward_server.md), on http://127.0.0.1:8080. Ctrl-C answers what is in flight, then ends.
#   bash scripts/serve.sh                          the trained toy judge of the package, on the CPU
#   bash scripts/serve.sh --model MODEL [...]      a model in this process; --help lists the arguments
# A large model runs best in vLLM (pip install -e '.[vllm]'), with the reward server in front of it:
#   bash scripts/serve.sh vllm MODEL [...]         vLLM with the flags that judging needs, on port 8000, on all GPUs
#   bash scripts/serve.sh front [...]              the reward server in front of it
# PORT and VLLM_PORT change the ports. UNIFIEDREWARD_API_KEY is a key that requests must bring, and is needed to listen on
# another --host than this machine's own. DRY_RUN=1 prints the command instead.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[[ ${1:-} == -h ]] && { sed -n '2,/^set /s/^# *//p' "$0"; exit; }
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -n ${VIRTUAL_ENV:-} || ! -d .venv/bin ]] || export PATH="$PWD/.venv/bin:$PATH"
name=UnifiedReward
vllm_port=${VLLM_PORT:-8000}
serve=(python -m unifiedreward_think.serving --port "${PORT:-8080}")

# start COMMAND...: become it, so that a signal to this script reaches the server; or print it for DRY_RUN.
start() {
  [[ -n ${DRY_RUN:-} ]] || exec "$@"
  run "$@"
}

toy() {
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # with a tiny model, threads cost more than they bring
  start "${serve[@]}" --model src/unifiedreward_think/toy/judge --prompts configs/toy/prompts --frames 4 --dtype float32 \
    --max-new-tokens 192 --batch-size 64 "$@"
}

# Two videos of 8 frames are 16 pictures. Both orders and all pairs of a group share caption and candidates: the prefix
# cache holds the text and the first candidate, the processor cache the pictures. The content format is named, since vLLM
# moves all pictures in front of the text where it does not recognise a template's loop over the parts of a message.
vllm_server() {
  local gpus model=${1:?usage: bash scripts/serve.sh vllm MODEL [arguments of vllm serve]}
  gpus=$(visible_gpus)
  [[ ! -f $model/adapter_config.json ]] || die "$model is an adapter, and vLLM takes whole models: merge it first with" \
    "python -m unifiedreward_think.models.adapters $model --output FOLDER"
  start vllm serve "$model" \
    --served-model-name "$name" --host 127.0.0.1 --port "$vllm_port" --tensor-parallel-size "$((gpus > 0 ? gpus : 1))" \
    --limit-mm-per-prompt '{"image": 16}' --enable-prefix-caching --mm-processor-cache-gb 16 \
    --generation-config vllm --chat-template-content-format openai "${@:2}"
}

case ${1:-} in
  "") toy ;;
  toy) toy "${@:2}" ;;
  vllm) vllm_server "${@:2}" ;;
  front)
    start "${serve[@]}" --backend server --server "http://127.0.0.1:$vllm_port/v1" --model "$name" --stop \
      --concurrency 128 --batch-size 128 --parallel 2 "${@:2}"
    ;;
  *)
    cd "$called_from" # paths in the arguments start there
    start "${serve[@]}" "$@"
    ;;
esac
