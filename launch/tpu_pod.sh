#!/usr/bin/env bash
#
# Run a verb on every host of a Cloud TPU slice, over ssh.
#
#   TPU_NAME=my-pod ZONE=us-east5-a launch/tpu_pod.sh [--dry-run] VERB [ARGUMENT…]
#   launch/tpu_pod.sh hf import EleutherAI/gpt-j-6b /mnt/models/gpt-j-6b --fsdp -1
#
# --dry-run before the verb prints the command and stops; after it, it belongs to the verb.
#
# Every host needs the repository in the same place, with `pip install -e .[tpu]` done, and the
# configuration file; `gcloud compute tpus tpu-vm ssh` with --worker=all does that too. JAX finds
# the other hosts by itself. The run ends with the ssh connection: start it inside tmux.
#
# Environment:
#   TPU_NAME           the TPU VM; required
#   ZONE, PROJECT      where it is; default: those of gcloud config
#   REMOTE_DIR         the repository on the hosts, from the home folder; default: jaxedit
#   PYTHON             the interpreter on the hosts, from REMOTE_DIR; default: .venv/bin/python
#   LIBTPU_INIT_ARGS, HF_HOME, JAXEDIT_TRACEBACK  handed to the hosts if set; none is needed

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
: "${TPU_NAME:?set it to the name of the TPU VM}"

remote=(env JAXEDIT_DISTRIBUTED=1)
for name in LIBTPU_INIT_ARGS HF_HOME JAXEDIT_TRACEBACK; do
  [[ -z ${!name-} ]] || remote+=("$name=${!name}")
done
remote+=("${PYTHON:-.venv/bin/python}" -m "jaxedit.$verb" "$@")

# The shell on the host reads this line once more, hence %q.
command=(
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --worker=all
  ${ZONE:+"--zone=$ZONE"} ${PROJECT:+"--project=$PROJECT"}
  "--command=cd $(printf '%q' "${REMOTE_DIR:-jaxedit}") && $(printf '%q ' "${remote[@]}")"
)
if [[ $dry_run ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
