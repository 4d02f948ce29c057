# shellcheck shell=bash
# What the stage scripts share. Relative paths, in configs and in arguments, start at the repository root; the config
# itself may also be given from where the script is called.
#   NPROC        processes on this node; one for each visible GPU by default, 1 without a GPU
#   NNODES NODE_RANK MASTER_ADDR [MASTER_PORT]   for more than one node: the same command on each
# DRY_RUN=1 prints the commands instead.

# enter_repository CONFIG: go to the repository root and set `config` to a path that is valid there. With --help, print
# the first lines of the calling script instead.
enter_repository() {
  config=$1
  [[ $config == -h || $config == --help ]] && { sed -n '2,/^set /s/^# *//p' "$0"; exit; }
  [[ $config != /* && -f $config ]] && config=$PWD/$config
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
  [[ -f $config ]] || { echo "$0: no config file $1, neither here nor in $PWD" >&2; exit 2; }
  config=${config#"$PWD"/}
  # The environment that setup.sh made, unless another virtual environment is active.
  [[ -n ${VIRTUAL_ENV:-} || ! -d .venv/bin ]] || export PATH="$PWD/.venv/bin:$PATH"
}

visible_gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
  else
    nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
  fi
}

# run COMMAND...: print it for DRY_RUN, or run it.
run() {
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# launch MODULE ARGS...: run a training stage on this machine, or on this node's share of many.
launch() {
  local gpus nproc nnodes=${NNODES:-1}
  gpus=$(visible_gpus)
  nproc=${NPROC:-$((gpus > 0 ? gpus : 1))}
  if ((nnodes > 1)); then
    run torchrun --nnodes "$nnodes" --node_rank "${NODE_RANK:?is 0 to NNODES-1}" --nproc_per_node "$nproc" \
      --master_addr "${MASTER_ADDR:?is the address of node 0}" --master_port "${MASTER_PORT:-29500}" -m "$@"
  elif ((gpus > 0 || nproc > 1)); then
    run torchrun --standalone --nproc_per_node "$nproc" -m "$@" # standalone: two runs on a machine do not share a port
  else
    run python -m "$@"
  fi
}
