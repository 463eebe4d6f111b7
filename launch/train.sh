#!/usr/bin/env bash
# Train: start or resume a run. Everything after the YAML goes to `shardline train`.
#   launch/train.sh run.yaml                                                     this machine: a rank for each GPU, or CPU ranks
#   sbatch -N2 --exclusive --mem=0 --gpus-per-node=8 launch/train.sh run.yaml    Slurm: a rank for each GPU of two nodes
#   sbatch -N2 launch/train.sh run.yaml                                          Slurm without GPUs: one for each task
# In a container: SHARDLINE_PYTHON and SHARDLINE_SRUN_OPTIONS, as launch/run.sh describes them; the ranks are started so.
# Options of sbatch win over the lines below. No folder in --output: where it is missing, Slurm ends the job without a message.
#SBATCH --job-name=shardline
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR2@120
# USR2 comes before the time limit, to the ranks only: they save and end with 75. A longer save needs an earlier USR2.
[ -n "${BASH_VERSION-}" ] || { echo "train.sh: needs bash: bash launch/train.sh RUN.yaml" >&2 && exit 2; }
set -euo pipefail
# they would kill the shell; Python takes them over, and asks the ranks to save
[[ -z ${SLURM_JOB_ID-} ]] || trap '' TERM USR1 USR2

script=train.sh
(($#)) || { echo "usage: launch/$script RUN.yaml [options of shardline train]" >&2 && exit 2; }
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
[[ -n ${SLURM_JOB_ID-} ]] || exec "$python" -m launch train --restart "$@"
exec "$python" -m launch train --under-slurm "$@"
