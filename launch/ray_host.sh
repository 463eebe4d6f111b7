#!/usr/bin/env bash
# One host of a job's Ray cluster, started by prepare.sh as a task of srun; it lasts as long as the task.
# Ray's own folder must be on this host's disk and its path short; it is removed at the end.
set -euo pipefail
python=${1:?usage: ray_host.sh PYTHON HOST..., from prepare.sh}
shift
host=${RAY_ADDRESS%:*} port=${RAY_ADDRESS##*:}
folder=/tmp/ray-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0} # the other hosts take this name from the first
if ((SLURM_NODEID == 0)); then
  role=(--head "--port=$port" "--temp-dir=$folder" --include-dashboard=false)
else
  role=("--address=$RAY_ADDRESS")
  until (: >"/dev/tcp/$host/$port") 2>/dev/null; do sleep 0.2; done
fi
address=$("$python" -m cluster.network.interfaces "$@")
unset RAY_ADDRESS # `ray start --head` would join it
trap 'kill "$ray" 2>/dev/null || true; wait "$ray" 2>/dev/null || true; rm -rf "$folder"' EXIT
trap 'exit 0' TERM
"$python" -m ray.scripts.scripts start "${role[@]}" "--node-ip-address=$address" "--num-cpus=$SLURM_CPUS_PER_TASK" \
  --num-gpus=0 --object-store-memory=268435456 --disable-usage-stats --log-color=false --block >/dev/null &
ray=$!
wait "$ray"
