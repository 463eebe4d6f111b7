#!/usr/bin/env bash
# Train: start a run, or go on with it. Everything after the YAML goes to `shardline train`.
#   launch/train.sh run.yaml                                             this machine: a rank for each GPU, or CPU ranks
#   sbatch -N2 --exclusive --gpus-per-node=8 launch/train.sh run.yaml    Slurm: a rank for each GPU of two nodes
#   sbatch -N2 launch/train.sh run.yaml                                  Slurm without GPUs: a rank for each task
# Options of sbatch win over the lines below. No folder in --output: where it is missing, Slurm ends the job in silence.
#SBATCH --job-name=shardline
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR2@120
# USR2 comes before the time limit, to the ranks alone: they save and end with 75. A longer save needs a longer notice.
set -euo pipefail

say() { echo "train.sh: $*" >&2; }

find_checkout() { # Slurm runs a copy of this file, so $0 is in the checkout only without sbatch
  local folder command=""
  [[ -z ${SLURM_JOB_ID-} ]] || command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
  for folder in "$(dirname "$0")/.." "${command%%/launch/train.sh*}" "${SLURM_SUBMIT_DIR-}"; do
    [[ ! -f $folder/launch/__main__.py ]] || { realpath "$folder" && return; }
  done
  say "cannot find Shardline's checkout; submit with: sbatch CHECKOUT/launch/train.sh RUN.yaml"
  return 2
}

(($#)) || { say "usage: launch/train.sh RUN.yaml [options of shardline train]" && exit 2; }
checkout=$(find_checkout)
export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}
# shellcheck source=/dev/null
[[ ! -f $checkout/launch/site.env ]] || source "$checkout/launch/site.env"
python=python
[[ -n ${VIRTUAL_ENV-}${CONDA_PREFIX-} || ! -x $checkout/.venv/bin/python ]] || python=$checkout/.venv/bin/python
[[ -n ${SLURM_JOB_ID-} ]] || exec "$python" -m launch train --restart "$@"

note_launch() { # ends with 2 if the configuration is wrong, another job trains there, or the last starts led nowhere
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
trap : TERM # requeue, scancel and the time limit end everybody with TERM: stay until srun has seen the ranks save
for ((attempt = 0; ; attempt++)); do
  export MASTER_PORT=$((20000 + (SLURM_JOB_ID * 10 + restarts + attempt) % 10000))
  status=0
  SHARDLINE_LAUNCHER=srun srun --export=ALL --overlap --kill-on-bad-exit=1 ${gpus:+"--gpus-per-node=$gpus"} \
    --ntasks=$((SLURM_JOB_NUM_NODES * ranks)) --ntasks-per-node="$ranks" --cpus-per-task=$((cpus / ranks)) \
    "$python" -m launch train "$@" || status=$?
  job=$(scontrol show job "$SLURM_JOB_ID") || true
  # in a job that ends, or has lost a node, Slurm decides; else start again from the newest checkpoint
  [[ $status != @(0|2|75|130) && $job == *JobState=RUNNING* && ! -e $stop_file ]] || break
  say "the ranks ended with $status: starting them again"
  note_launch "$@"
done
((status == 75)) || exit "$status"

if [[ -e $stop_file ]]; then
  say "$stop_file exists: not put back into the queue; submit again to go on"
elif [[ $job == *JobState=RUNNING* || $job == *Reason=TimeLimit* ]]; then # else Slurm requeues or cancels it by itself
  trap '' TERM # sent by that requeueing, to scontrol too
  scontrol requeue "$SLURM_JOB_ID" || say "not put back into the queue; submit again to go on"
fi
exit 75
