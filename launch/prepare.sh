#!/usr/bin/env bash
# Prepare: turn the corpus into shards. Everything after the YAML goes to `shardline prepare`.
#   launch/prepare.sh run.yaml                           this machine, as `shardline prepare` does
#   sbatch -N4 --exclusive launch/prepare.sh run.yaml    Slurm: Ray over the four hosts of the job
# Run it again after any failure: finished slices are kept, and the bytes are the same.
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
  for ((tries = 0; tries < 60; tries++)); do # its controller may be restarting
    ! job=$(scontrol show job "$SLURM_JOB_ID") || break
    sleep 10
  done
  command=$(sed -n '/^ *Command=/ { s///p; q }' <<<"$job")
  for checkout in "${command%%"/launch/$script"*}" "${SLURM_SUBMIT_DIR-}"; do
    [[ ! -f $checkout/launch/common.sh ]] || break
  done
fi
[[ -f $checkout/launch/common.sh ]] ||
  { echo "$script: cannot find Shardline's checkout; submit with: sbatch CHECKOUT/launch/$script RUN.yaml" >&2 && exit 2; }
# shellcheck source=launch/common.sh
source "$checkout/launch/common.sh"
[[ -n ${SLURM_JOB_ID-} ]] || exec "$python" -m launch prepare "$@"

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + (SLURM_JOB_ID * 10 + ${SLURM_RESTART_COUNT:-0}) % 10000))
mapfile -t -n 2 some <<<"$hosts" # two tell each host the address that the others know it by, which its own name may not
RAY_ADDRESS=$("$python" -m cluster.network.interfaces "${some[@]}"):$port
export RAY_ADDRESS SHARDLINE_RAY_HOSTS=$SLURM_JOB_NUM_NODES
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n') # without it, anybody on the network can run code as you
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0

cpus=$(tr , '\n' <<<"$SLURM_JOB_CPUS_PER_NODE" | sed 's/(.*//' | sort -n | sed -n 1p) # the least of any host
unset SLURM_DISTRIBUTION SLURM_HOSTFILE
srun --export=ALL --mpi=none --overlap --no-kill --kill-on-bad-exit=0 --wait=0 \
  --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$cpus" \
  "$checkout/launch/ray_host.sh" "$python" "${some[@]}" &
ray=$!
end_ray() { # TERM to the tasks, not to srun, which would kill them before they have cleaned up
  local tenths
  scancel --signal=TERM "$SLURM_JOB_ID.0" || say "could not ask a host to end Ray"
  for ((tenths = 0; tenths < 100; tenths++)); do
    kill -0 "$ray" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$ray" # srun waits for lost hosts
}
# this is the first host: where Slurm has killed its task before that could clean up, its folder is removed from here
trap 'end_ray; rm -rf "/tmp/ray-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"' EXIT
until (: >"/dev/tcp/${RAY_ADDRESS%:*}/$port") 2>/dev/null; do
  kill -0 "$ray" 2>/dev/null || { say "Ray did not start on ${RAY_ADDRESS%:*}; its reason is above" && exit 1; }
  sleep 0.2
done
"$python" -m launch prepare "$@" -o data.executor=ray
