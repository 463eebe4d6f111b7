#!/usr/bin/env bash
# Prepare: turn the corpus into shards. Everything after the YAML goes to `shardline prepare`.
#   launch/prepare.sh run.yaml                           this machine, as `shardline prepare` does it
#   sbatch -N4 --exclusive launch/prepare.sh run.yaml    Slurm: Ray over the four hosts of the job
# Run it again after anything: finished slices are kept, and the bytes are the same.
#SBATCH --job-name=shardline-prepare
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --no-kill
# no-kill: a host that is lost costs the slices it was at, not the job; Ray gives them to the others.
set -euo pipefail

say() { echo "prepare.sh: $*" >&2; }

find_checkout() { # Slurm runs a copy of this file, so $0 is in the checkout only without sbatch
  local folder command=""
  [[ -z ${SLURM_JOB_ID-} ]] || command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
  for folder in "$(dirname "$0")/.." "${command%%/launch/prepare.sh*}" "${SLURM_SUBMIT_DIR-}"; do
    [[ ! -f $folder/launch/__main__.py ]] || { realpath "$folder" && return; }
  done
  say "cannot find Shardline's checkout; submit with: sbatch CHECKOUT/launch/prepare.sh RUN.yaml"
  return 2
}

(($#)) || { say "usage: launch/prepare.sh RUN.yaml [options of shardline prepare]" && exit 2; }
checkout=$(find_checkout)
export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}
# shellcheck source=/dev/null
[[ ! -f $checkout/launch/site.env ]] || source "$checkout/launch/site.env"
python=python
[[ -n ${VIRTUAL_ENV-}${CONDA_PREFIX-} || ! -x $checkout/.venv/bin/python ]] || python=$checkout/.venv/bin/python
[[ -n ${SLURM_JOB_ID-} ]] || exec "$python" -m launch prepare "$@"

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + (SLURM_JOB_ID * 10 + ${SLURM_RESTART_COUNT:-0}) % 10000))
export RAY_ADDRESS=${hosts%%$'\n'*}:$port SHARDLINE_RAY_HOSTS=$SLURM_JOB_NUM_NODES
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n') # else anybody on the network runs code as you
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0

cpus=${SLURM_JOB_CPUS_PER_NODE%%[(,]*}
srun --export=ALL --overlap --no-kill --kill-on-bad-exit=0 --wait=0 \
  --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$cpus" \
  "$checkout/launch/ray_host.sh" "$python" &
ray=$!
end_ray() { # TERM to the tasks, not to srun: it would kill them before they have tidied up
  local tenths
  scancel --signal=TERM "$SLURM_JOB_ID.0" || say "a host did not hear that Ray is to end"
  for ((tenths = 0; tenths < 100; tenths++)); do
    kill -0 "$ray" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$ray" # srun waits for a host that is lost
}
trap end_ray EXIT
until (: >"/dev/tcp/${RAY_ADDRESS%:*}/$port") 2>/dev/null; do
  kill -0 "$ray" 2>/dev/null || { say "Ray did not start on ${RAY_ADDRESS%:*}; its reason is above" && exit 1; }
  sleep 0.2
done
"$python" -m launch prepare "$@" -o data.executor=ray
