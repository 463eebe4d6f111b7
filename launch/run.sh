#!/usr/bin/env bash
# Any other verb in a job of one node: export, evaluate, report, push, verify ...
#   launch/run.sh export run.yaml                      this machine
#   sbatch --mem=64G launch/run.sh export run.yaml     Slurm: what follows the verb goes to `shardline VERB`
# In a container, where `shardline submit` or launch/site.env says so: SHARDLINE_PYTHON is the command that starts Python
# (words as in a shell), SHARDLINE_SRUN_OPTIONS are options of the srun that starts it.
#SBATCH --job-name=shardline
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
[ -n "${BASH_VERSION-}" ] || { echo "run.sh: needs bash: bash launch/run.sh VERB RUN.yaml" >&2 && exit 2; }
set -euo pipefail

script=run.sh
(($# > 1)) || { echo "usage: launch/$script VERB RUN.yaml [options of shardline VERB]" >&2 && exit 2; }
case $1 in
  train | prepare) echo "$script: submit launch/$1.sh RUN.yaml: it uses all nodes of the job" >&2 && exit 2 ;;
esac
((${SLURM_JOB_NUM_NODES:-1} == 1)) ||
  { echo "$script: '$1' uses one node, and this job has $SLURM_JOB_NUM_NODES; submit with -N1" >&2 && exit 2; }
checkout=$(dirname "$(realpath "$0")")/..
if [[ ! -f $checkout/launch/common.sh && -n ${SLURM_JOB_ID-} ]]; then # Slurm runs a copy of this file
  for ((tries = 0; tries < 60; tries++)); do # its controller may be restarting; a requeued job's disk may be away
    if job=$(scontrol show job "$SLURM_JOB_ID"); then
      command=$(sed -n '/^ *Command=/ { s///p; q }' <<<"$job")
      for checkout in "${command%%"/launch/$script"*}" "${SLURM_SUBMIT_DIR-}"; do
        [[ ! -f $checkout/launch/common.sh ]] || break 2
      done
      ((${SLURM_RESTART_COUNT:-0})) || break
    fi
    sleep 10
  done
fi
[[ -f $checkout/launch/common.sh ]] ||
  { echo "$script: cannot find Shardline's checkout; submit with: sbatch CHECKOUT/launch/$script VERB RUN.yaml" >&2 && exit 2; }
# shellcheck source=launch/common.sh
source "$checkout/launch/common.sh"

words() { xargs -r printf '%s\0' <<<"$1"; } # quoted as in a shell
mapfile -d '' -t options < <(words "${SHARDLINE_SRUN_OPTIONS-}")
mapfile -d '' -t start < <(words "${SHARDLINE_PYTHON-}")
((${#start[@]})) || start=("$python")
cpus=(--cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" --cpu-bind=none) # all of the job's
((${#options[@]} == 0)) || \
  start=(srun --ntasks=1 --nodes=1 --overlap --export=ALL --mpi=none "${cpus[@]}" "${options[@]}" "${start[@]}")
exec "${start[@]}" -m launch "$@"
