"""Everything that makes a valid run unlikely to learn: of its plan, its held-out rows and its stop token."""

from __future__ import annotations

from data_prep.shards import Manifest
from training.advice.plan_warnings import method_of, plan_warnings
from training.config import ModelConfig
from training.models.source import ModelOrigin
from training.models.unseen_stop import unseen_stop_warnings
from training.plan import Plan


def run_warnings(origin: ModelOrigin, plan: Plan, manifest: Manifest, model: ModelConfig) -> list[str]:
    """Return one sentence for each reason why a run is unlikely to learn; none if there is no such reason."""
    method = method_of(model, plan.config)
    stop = unseen_stop_warnings(origin) if method == "lora" and manifest.conversational else []
    return [*plan_warnings(plan, manifest, method), *stop]
