#!/usr/bin/env bash
# Sourced by train.sh, prepare.sh, tune.sh and run.sh once they have found the checkout; not a command. How they find it is
# the same text in each of them, as nothing can be sourced before; a test keeps it so.
# Takes $checkout and $script; sets `say`, $python, PYTHONPATH and what launch/site.env sets.
: "${checkout:?source it from train.sh, prepare.sh, tune.sh or run.sh}" "${script:?}"

say() { echo "$script: $*" >&2; }

checkout=$(realpath "$checkout")
export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}
if [[ -f $checkout/launch/site.env ]]; then
  shardline_kept=("$checkout" "$script" "$PWD" "$@") # what it may change without meaning to
  trap 'say "launch/site.env has ended the script: take \`exit\` and \`set -e\` out of it"; exit 2' EXIT
  set +euo pipefail # what it sources, module and conda too, is not written for them
  # shellcheck source=/dev/null
  source "$checkout/launch/site.env" # not in a function, where its `declare` would be lost
  trap - EXIT
  set -euo pipefail
  checkout=${shardline_kept[0]} script=${shardline_kept[1]}
  cd -- "${shardline_kept[2]}"
  set -- "${shardline_kept[@]:3}" # of the script that sources this
fi

python=python # of an environment that was activated on purpose; conda's base, which many shells activate, is not
[[ -n ${VIRTUAL_ENV-} || ! -x $checkout/.venv/bin/python ]] || python=$checkout/.venv/bin/python
"$python" -c "import pydantic" 2>/dev/null || {
  say "$(type -P "$python" || echo "$python (not found)") cannot import pydantic: install Shardline into $checkout/.venv," \
    "or activate its environment, here or in launch/site.env"
  exit 2
}
if [[ -n ${SLURM_JOB_ID-} ]]; then
  say "python is $(type -P "$python")"
  # of another job that this one was submitted in, the first component is another job too
  ((${SLURM_HET_SIZE:-1} < 2)) || [[ ${SLURM_JOB_ID_HET_GROUP_0:-$SLURM_JOB_ID} != "$SLURM_JOB_ID" ]] || {
    say "this is a heterogeneous job, and only its first component would be used; submit a job of one component"
    exit 2
  }
  # sbatch passes on what srun and salloc have set in the shell it was called in, and srun would take it for options
  unset "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}" "${!SLURM_MEM_PER_@}" "${!SLURM_TRES_@}" \
    "${!SLURM_NTASKS_PER_@}" \
    SLURM_CPUS_PER_TASK SLURM_CPUS_PER_GPU SLURM_EXACT SLURM_GPU_BIND SLURM_GPUS SLURM_GPUS_PER_SOCKET \
    SLURM_GPUS_PER_TASK SLURM_GRES SLURM_HINT SLURM_OVERCOMMIT SLURM_THREADS_PER_CORE SRUN_CPUS_PER_TASK
fi
