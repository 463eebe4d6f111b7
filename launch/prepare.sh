#!/usr/bin/env bash
# Prepare: turn the corpus into shards. Everything after the YAML goes to `shardline prepare`.
#   launch/prepare.sh run.yaml                                   this machine, as `shardline prepare` does
#   sbatch -N4 --exclusive --mem=0 launch/prepare.sh run.yaml    Slurm: Ray over the four hosts of the job
# Run it again after any failure: finished slices are kept, and the bytes are the same.
# In a container: SHARDLINE_PYTHON and SHARDLINE_SRUN_OPTIONS, as launch/run.sh describes them; Ray runs in it on each host.
#SBATCH --job-name=shardline-prepare
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --no-kill
# no-kill: a lost host costs the slices it was working on, not the job; Ray gives them to the other hosts.
[ -n "${BASH_VERSION-}" ] || { echo "prepare.sh: needs bash: bash launch/prepare.sh RUN.yaml" >&2 && exit 2; }
set -euo pipefail

script=prepare.sh
(($#)) || { echo "usage: launch/$script RUN.yaml [options of shardline prepare]" >&2 && exit 2; }
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
  { echo "$script: cannot find Shardline's checkout; submit with: sbatch CHECKOUT/launch/$script RUN.yaml" >&2 && exit 2; }
# shellcheck source=launch/common.sh
source "$checkout/launch/common.sh"
[[ -n ${SLURM_JOB_ID-} ]] || exec "$python" -m launch prepare "$@"
exec "$python" -m launch prepare --under-slurm "$@"
