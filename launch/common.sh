#!/usr/bin/env bash
# Sourced by train.sh and prepare.sh once they have found the checkout; not a command.
# Takes $checkout and $script; sets `say`, $python, PYTHONPATH and what launch/site.env sets.
: "${checkout:?source it from train.sh or prepare.sh}" "${script:?}"

say() { echo "$script: $*" >&2; }

checkout=$(realpath "$checkout")
export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}
# shellcheck source=/dev/null
[[ ! -f $checkout/launch/site.env ]] || source "$checkout/launch/site.env"
# shellcheck disable=SC2034  # python is the scripts' to use
[[ -n ${VIRTUAL_ENV-}${CONDA_PREFIX-} || ! -x $checkout/.venv/bin/python ]] || python=$checkout/.venv/bin/python
