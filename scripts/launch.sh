# shellcheck shell=bash
# launch MODULE ARGS...: run a stage on this machine, or on this node's share of many.
#   NPROC        processes on this node; one for each GPU by default, 1 without a GPU
#   NNODES NODE_RANK MASTER_ADDR MASTER_PORT   for more than one node: the same command on each
# DRY_RUN=1 prints the command instead.
launch() {
  local gpus command
  gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
  local nproc=${NPROC:-$((gpus > 0 ? gpus : 1))} nnodes=${NNODES:-1}
  if ((gpus == 0 && nproc == 1 && nnodes == 1)); then
    command=(python -m "$@")
  else
    command=(torchrun --nnodes "$nnodes" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$nproc"
      --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" -m "$@")
  fi
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}
