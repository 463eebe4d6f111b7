#!/usr/bin/env bash
# One task of a job array that `shardline tune RUN.yaml --space SPACE.yaml --slurm='OPTIONS OF SBATCH'` submits.
# Runs one trial of the study by launch/train.sh, which requeues the task where that is meant; the trial then resumes.
#SBATCH --output=%x-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR2@120
set -euo pipefail
# they would kill the shell; Python takes them over, and passes them on to the trial
[[ -z ${SLURM_JOB_ID-} ]] || trap '' TERM USR1 USR2

script=tune.sh
(($#)) || { echo "usage: shardline tune RUN.yaml --space SPACE.yaml --slurm='OPTIONS OF SBATCH'" >&2 && exit 2; }
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
[[ -f $checkout/launch/common.sh ]] || { echo "$script: cannot find Shardline's checkout" >&2 && exit 2; }
# shellcheck source=launch/common.sh
source "$checkout/launch/common.sh"
exec "$python" -m launch tune --task "$@"
