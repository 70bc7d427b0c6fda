#!/usr/bin/env bash
#
# Run a verb on the GPUs of this machine, in one process.
#
#   launch/gpu.sh [--dry-run] VERB [ARGUMENT…]
#   launch/gpu.sh hf import EleutherAI/gpt-j-6b runs/gpt-j-6b --fsdp -1
#
# --dry-run before the verb prints the command and stops; after it, it belongs to the verb.
#
# Environment:
#   PYTHON                          the interpreter; default: python
#   CUDA_VISIBLE_DEVICES            which GPUs; default: all
#   XLA_PYTHON_CLIENT_MEM_FRACTION  share of GPU memory that JAX takes at the start; default: 0.9
#                                   (JAX's own 0.75 wastes a quarter; lower it on a shared card)
#   XLA_FLAGS                       goes after ours, so it wins; an unknown flag ends the process

set -euo pipefail

usage() { sed -n '3,/^$/{s/^# \{0,1\}//;p;}' "$0"; }

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=yes
  shift
fi
case ${1-} in
  '') usage >&2 && exit 2 ;;
  -h | --help) usage && exit 0 ;;
esac
verb=$1
shift

# Several GPUs: let collectives overlap with computation.
flags=--xla_gpu_enable_latency_hiding_scheduler=true
command=(
  env "XLA_FLAGS=$flags${XLA_FLAGS:+ $XLA_FLAGS}"
  "XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
  "${PYTHON:-python}" -m "jaxedit.$verb" "$@"
)
if [[ $dry_run ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
