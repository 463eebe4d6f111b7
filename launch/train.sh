#!/usr/bin/env bash
# Train: start or resume a run. Everything after the YAML goes to `shardline train`.
#   launch/train.sh run.yaml                                             this machine: a rank for each GPU, or CPU ranks
#   sbatch -N2 --exclusive --gpus-per-node=8 launch/train.sh run.yaml    Slurm: a rank for each GPU of two nodes
#   sbatch -N2 launch/train.sh run.yaml                                  Slurm without GPUs: a rank for each task
# Options of sbatch win over the lines below. No folder in --output: where it is missing, Slurm ends the job without a message.
#SBATCH --job-name=shardline
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR2@120
# USR2 comes before the time limit, to the ranks only: they save and end with 75. A longer save needs an earlier USR2.
set -euo pipefail

script=train.sh python=python command=""
(($#)) || { echo "usage: launch/$script RUN.yaml [options of shardline train]" >&2 && exit 2; }
# Slurm runs a copy of this file, so that $0 is in the checkout only without sbatch
[[ -z ${SLURM_JOB_ID-} ]] || command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
for checkout in "$(dirname "$(realpath "$0")")/.." "${command%%"/launch/$script"*}" "${SLURM_SUBMIT_DIR-}"; do
  [[ ! -f $checkout/launch/common.sh ]] || break
done
[[ -f $checkout/launch/common.sh ]] ||
  { echo "$script: cannot find Shardline's checkout; submit with: sbatch CHECKOUT/launch/$script RUN.yaml" >&2 && exit 2; }
# shellcheck source=/dev/null
source "$checkout/launch/common.sh"
[[ -n ${SLURM_JOB_ID-} ]] || exec "$python" -m launch train --restart "$@"

note_launch() { # ends with 2 if the configuration is wrong, another job trains the run, or the last attempts made no new step
  stop_file=$("$python" -m launch train --launching "$@")
}

restarts=${SLURM_RESTART_COUNT:-0}
note_launch "$@"
((restarts)) || rm -f "$stop_file" # it was meant for an earlier job

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
gpus=${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE-}} # of each node, as are ranks and cpus: 8, h200:8, 16(x2)
gpus=${gpus##*:}
ranks=${gpus:-${SLURM_TASKS_PER_NODE%%[(,]*}}
cpus=${SLURM_JOB_CPUS_PER_NODE%%[(,]*}
((cpus >= ranks)) || { say "$cpus CPUs for $ranks ranks on a node; add --exclusive or --cpus-per-gpu=N" && exit 2; }
unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK SLURM_GPU_BIND SLURM_TRES_BIND # a rank sees all GPUs and takes its own
export MASTER_ADDR=${hosts%%$'\n'*}
trap : TERM # requeue, scancel and the time limit send TERM to all: stay until srun has seen the ranks save
for ((attempt = 0; ; attempt++)); do
  export MASTER_PORT=$((20000 + (SLURM_JOB_ID * 10 + restarts + attempt) % 10000))
  status=0
  SHARDLINE_LAUNCHER=srun srun --export=ALL --overlap --kill-on-bad-exit=1 ${gpus:+"--gpus-per-node=$gpus"} \
    --ntasks=$((SLURM_JOB_NUM_NODES * ranks)) --ntasks-per-node="$ranks" --cpus-per-task=$((cpus / ranks)) \
    "$python" -m launch train "$@" || status=$?
  job=$(scontrol show job "$SLURM_JOB_ID") || true
  # if the job ends or has lost a node, Slurm decides; else restart from the newest checkpoint
  [[ $status != @(0|2|75|130) && $job == *JobState=RUNNING* && ! -e $stop_file ]] || break
  say "the ranks ended with $status: restarting them"
  note_launch "$@"
done
((status == 75)) || exit "$status"

if [[ -e $stop_file ]]; then
  say "$stop_file exists: not put back into the queue; submit again to resume"
elif [[ $job == *JobState=RUNNING* || $job == *Reason=TimeLimit* ]]; then # else Slurm requeues or cancels it by itself
  trap '' TERM # sent by that requeueing, to scontrol too
  scontrol requeue "$SLURM_JOB_ID" || say "not put back into the queue; submit again to resume"
fi
exit 75
