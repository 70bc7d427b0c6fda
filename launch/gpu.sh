#!/usr/bin/env bash
# Run a verb on the GPUs of this machine, in one process.
#
#   launch/gpu.sh [--dry-run] VERB [ARGUMENTS…]
#   launch/gpu.sh edit --config configs/rome.py:gpt-j-6b --set editor.layer=7
#
# --dry-run before the verb prints the command instead of running it; after it, it is the verb's own.
#
# Environment:
#   PYTHON                          the interpreter; default: python
#   CUDA_VISIBLE_DEVICES            which GPUs; default: all
#   XLA_PYTHON_CLIENT_MEM_FRACTION  share of GPU memory that JAX takes at the start; default: 0.9
#                                   (JAX alone takes 0.75; lower it if someone else is on the card)
#   XLA_FLAGS                       added after ours, so yours win. An unknown flag ends the process.
set -euo pipefail

usage() { sed -n '/^# /,/^set /{s/^# \{0,1\}//p;/^#$/s///p;}' "$0"; }

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=1
  shift
fi
case ${1-} in
  '') usage >&2; exit 2 ;;
  -h | --help) usage; exit 0 ;;
esac
verb=$1
shift

# The scheduler overlaps collectives with computation; on one GPU it changes nothing.
command=(
  env
  "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}"
  "XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
  "${PYTHON:-python}" -m "jaxedit.$verb" "$@"
)
if [[ $dry_run ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
