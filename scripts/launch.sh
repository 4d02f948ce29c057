# shellcheck shell=bash
# What the stage scripts share. Relative paths, in configs and in arguments, start at the repository root; the config
# itself may also be given from where the script is called.
#   NPROC        processes on this node; one for each visible GPU by default (sampling: for each tensor_parallel_size of
#                them), 1 without a GPU
# More than one node: the same command on each, with one of
#   NNODES NODE_RANK MASTER_ADDR [MASTER_PORT]
#   HOSTFILE     DeepSpeed's hostfile, a line "host slots=8" for each node; NODE_RANK where no line names this machine
#   Slurm's own variables: srun --ntasks-per-node 1 bash scripts/...
# docs/scaling.md has examples.
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

die() {
  echo "$0: $*" >&2
  exit 2
}

# said KEY ARGS...: print the value of a key: on the command line, else in its --overlay, else in the config.
said() {
  local key=$1 flag="" word overlay="" value=""
  for word in "${@:2}"; do
    if [[ $word == --* ]]; then
      flag=${word%%=*} flag=${flag//-/_}
      [[ $word == *=* ]] || continue
      word=${word#*=}
    fi
    [[ $flag != "__$key" ]] || value=$word
    [[ $flag != __overlay ]] || overlay=$word
  done
  [[ -n $value ]] || value=$(sed -n "s/^$key: *\([^ #]*\).*/\1/p" ${overlay:+"$overlay"} "$config" | head -n 1)
  echo "$value"
}

# find_nodes: set nnodes, node_rank, master_addr and nproc from NNODES, a HOSTFILE or Slurm, whichever is there first.
find_nodes() {
  nnodes=${NNODES:-} node_rank=${NODE_RANK:-} master_addr=${MASTER_ADDR:-} nproc=${NPROC:-}
  if [[ -z $nnodes && -n ${HOSTFILE:-} ]]; then
    read_hostfile
  elif [[ -z $nnodes ]] && ((${SLURM_NNODES:-1} > 1)); then
    read_slurm
  fi
  nnodes=${nnodes:-1}
}

read_hostfile() {
  local hosts=() slots=() host count own i
  while read -r host count _ || [[ -n $host ]]; do
    [[ -z $host || $host == \#* ]] && continue
    [[ $count =~ ^slots=[1-9][0-9]*$ ]] || die "$HOSTFILE: expected 'host slots=8', found '$host $count'"
    hosts+=("$host") slots+=("${count#slots=}")
  done <"$HOSTFILE"
  nnodes=${#hosts[@]}
  ((nnodes > 0)) || die "$HOSTFILE names no host"
  if [[ -z $node_rank ]]; then
    own=" $(hostname) $(hostname -s) $(hostname -I 2>/dev/null || true) "
    for i in "${!hosts[@]}"; do
      [[ $own == *" ${hosts[i]} "* ]] && node_rank=$i
    done
    [[ -n $node_rank ]] || die "$HOSTFILE does not name this machine ($(hostname)); set NODE_RANK, 0 to $((nnodes - 1))"
  fi
  master_addr=${master_addr:-${hosts[0]}}
  nproc=${nproc:-$((slots[node_rank] / ${gpus_each:-1}))}
}

read_slurm() {
  ((${SLURM_NTASKS:-$SLURM_NNODES} == SLURM_NNODES)) ||
    die "Slurm runs $SLURM_NTASKS tasks on $SLURM_NNODES nodes; run one a node: srun --ntasks-per-node 1"
  nnodes=$SLURM_NNODES
  node_rank=${node_rank:-${SLURM_NODEID:?is set by srun: run this script with srun}}
  [[ -n $master_addr ]] || read -r master_addr < <(scontrol show hostnames "${SLURM_JOB_NODELIST:?}")
}

# launch MODULE ARGS...: run a stage on this machine, or on this node's share of many; a process has gpus_each GPUs (1).
launch() {
  local gpus nnodes node_rank master_addr nproc
  find_nodes
  gpus=$(visible_gpus)
  nproc=${nproc:-$((gpus > 0 ? gpus / ${gpus_each:-1} : 1))}
  ((nproc > 0)) || die "a process takes $gpus_each GPUs, and $gpus are visible here: set another tensor_parallel_size"
  # torchrun hands on SIGTERM, not SIGUSR1, and kills what has not ended 30 s later: a large checkpoint takes longer.
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
  export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"
  if ((nnodes > 1)); then
    run torchrun --nnodes "$nnodes" --node_rank "${node_rank:?NODE_RANK is 0 to NNODES-1}" --nproc_per_node "$nproc" \
      --master_addr "${master_addr:?MASTER_ADDR is the address of node 0}" --master_port "${MASTER_PORT:-29500}" -m "$@"
  elif ((gpus > 0 || nproc > 1)); then
    run torchrun --standalone --nproc_per_node "$nproc" -m "$@" # standalone: two runs on a machine do not share a port
  else
    run python -m "$@"
  fi
}
