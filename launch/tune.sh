#!/usr/bin/env bash
# One task of a job array that `shardline tune RUN.yaml --space SPACE.yaml --slurm='OPTIONS OF SBATCH'` submits.
# Runs one trial of the study by launch/train.sh, which requeues the task where that is meant; the trial then resumes.
#SBATCH --output=%x-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR2@120
set -euo pipefail

script=tune.sh python=python command=""
(($#)) || { echo "usage: shardline tune RUN.yaml --space SPACE.yaml --slurm='OPTIONS OF SBATCH'" >&2 && exit 2; }
# Slurm runs a copy of this file, so that $0 is in the checkout only without sbatch
[[ -z ${SLURM_JOB_ID-} ]] || command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
for checkout in "$(dirname "$(realpath "$0")")/.." "${command%%"/launch/$script"*}" "${SLURM_SUBMIT_DIR-}"; do
  [[ ! -f $checkout/launch/common.sh ]] || break
done
[[ -f $checkout/launch/common.sh ]] || { echo "$script: cannot find Shardline's checkout" >&2 && exit 2; }
# shellcheck source=/dev/null
source "$checkout/launch/common.sh"
exec "$python" -m launch tune --task "$@"
