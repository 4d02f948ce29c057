#!/usr/bin/env bash
# Write requirements.lock and requirements-vllm.lock anew from pyproject.toml. One resolution with vLLM in it gives
# both: requirements.lock has what scripts/setup.sh installs, requirements-vllm.lock what the `vllm` extra adds to it.
#   bash scripts/lock.sh
# Pins stay as they are unless they must move. To move one, change its bound in pyproject.toml or delete its line
# (torch: with nvidia-*, cuda-* and triton) first.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { uv pip compile pyproject.toml --universal --python-version 3.11 --extra dev --no-header --no-annotate -q "$@"; }
name_of() { sed -E 's/^([A-Za-z0-9._-]+).*/\1/'; }

sed -E '/^#/d; s/===/==/' requirements.lock requirements-vllm.lock >"$work/full" # uv keeps the pins of its output file
compile --extra vllm -o "$work/full"
cp "$work/full" "$work/base"
compile -c "$work/full" -o "$work/base"

# `===` takes the registry's own build where an index also offers a `+cpu` one, which fails beside its torchvision.
pin='s/^(torch|torchvision|torchaudio)==/\1===/'
{
  echo "# The versions that scripts/setup.sh, the tests and CI use; made by scripts/lock.sh, together with"
  echo "# requirements-vllm.lock. Plain \`pip install -r requirements.lock\` works too."
  sed -E "$pin" "$work/base"
} >requirements.lock
{
  echo "# What vLLM adds to requirements.lock on Linux with CUDA; it changes no version there. Made by scripts/lock.sh."
  echo "#   pip install --no-deps -r requirements-vllm.lock"
  awk 'NR == FNR { have[$1]; next } { name = $1; sub(/[=<>!~;].*/, "", name) } !(name in have)' \
    <(name_of <"$work/base") "$work/full" | sed -E "$pin"
} >requirements-vllm.lock
