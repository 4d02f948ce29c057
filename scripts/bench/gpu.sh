#!/usr/bin/env bash
# Measure on one GPU, in 8 minutes, what the other benchmarks measure on a CPU: accuracy in bfloat16, time and memory.
#   bash scripts/bench/gpu.sh --output outputs/gpu
#   bash scripts/bench/gpu.sh --size tiny --device cpu --output outputs/gpu_tiny    # a dry run
#   WHEELS=wheels bash scripts/bench/gpu.sh                                         # packages that this Python lacks
# Needs this folder and the Python packages, no registry and no hub: weights, tokenizer and pictures are made here.
# PYTHON=python3.12 chooses the interpreter; scripts/bench/gpu.py lists the items, --help the options.
set -euo pipefail
wheels=${WHEELS:+$(realpath "$WHEELS")}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python3}
unset PYTHONDONTWRITEBYTECODE # without compiled modules every item compiles its libraries again
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} # with more than one, the Trainer would split every batch
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"

if [[ -n $wheels ]]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl
  export PYTHONPATH="$site:$PYTHONPATH"
fi
"$python" scripts/bench/gpu_packages.py
"$python" scripts/bench/gpu.py "$@"
