"""How much room a run's checkpoints still need on the disk."""

from __future__ import annotations

import json

from cluster.disk.sizes import size_below
from data_prep.shards import MANIFEST, read_manifest
from launch.config import RunConfig
from training.plan import Plan, make_plan


def room_needed(run: RunConfig) -> int | None:
    """Return the bytes that checkpoints will take beyond those that are there; None before the data is prepared.

    Imports torch unless the run has started before, which leaves its plan.
    """
    if not (run.shards / MANIFEST).is_file():
        return None
    plan = plan_of(run)
    return max(0, plan.checkpoints_at_once() * plan.checkpoint_bytes - size_below(run.paths.checkpoints))


def plan_of(run: RunConfig) -> Plan:
    """Return the plan by the configuration as it is now; the size of the model may come from an earlier start."""
    manifest = read_manifest(run.shards)
    if run.paths.plan.is_file():
        record = json.loads(run.paths.plan.read_text(encoding="utf-8"))
        parameters, trained = record["parameters"], record["trained_parameters"]
    else:
        from training.models.source import find_model

        origin = find_model(run.model, run.shards, manifest, weights=False)
        parameters, trained = origin.parameters, origin.trained_parameters(run.train)
    return make_plan(
        run.train, manifest, parameters=parameters, trained_parameters=trained, world_size=1, seed=run.seed
    )
