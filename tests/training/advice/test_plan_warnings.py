"""What is said of a run that is valid and would learn little."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from data_prep.shards import ShardInfo
from tests.training.test_plan import manifest_of
from training.advice.learning_rates import Method, usual_learning_rates
from training.advice.plan_warnings import division_warnings, plan_warnings
from training.config import TrainConfig
from training.order import BY_WORK, IN_TURN
from training.plan import make_plan

GOOD: dict[str, Any] = {"epochs": 3.0, "global_batch_rows": 8, "learning_rate": 2e-5}


def warnings(*, rows: int = 1000, held_out: int = 50, method: Method = "full", **train: Any) -> str:
    manifest = manifest_of(rows)
    shard = ShardInfo(path="v", rows=held_out, tokens=1, trained_tokens=1, bytes=1, sha256="")
    manifest.splits["validation"].append(shard)
    plan = make_plan(TrainConfig(**{**GOOD, **train}), manifest, parameters=7 * 10**9, world_size=1, seed=0)
    return "\n".join(plan_warnings(plan, manifest, method))


def test_a_usual_run_is_not_warned_about() -> None:
    assert warnings() == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rows": 6, "epochs": 10}, "8 is more than the 6 training rows, so each step repeats rows"),
        ({"steps": 40, "epochs": None}, "40 steps are few"),
        ({"warmup_fraction": 1.0}, "is all of the run's 375"),
        ({"warmup_fraction": 0.6}, "is more than half of the run's"),
        ({"epochs": 40.0}, "each row is seen 40 times"),
        ({"learning_rate": 1e-3}, "may diverge: for fine-tuning all weights of 7,000,000,000 parameters"),
        ({"learning_rate": 1e-8}, "too low to learn much"),
        ({"held_out": 0}, "no rows are held out"),
        ({"validation_rows": 0}, "train.validation_rows is 0"),
        ({"held_out": 3}, "3 held-out rows say little; raise data.validation_fraction"),
    ],
)
def test_each_reason_not_to_learn_is_named_alone(changed: dict[str, Any], said: str) -> None:
    text = warnings(**changed)
    assert said in text
    assert len(text.splitlines()) == (2 if changed.get("rows") == 6 else 1)


@pytest.mark.parametrize(
    ("deal", "rows", "ranks", "micro", "said"),
    [
        (
            IN_TURN,
            8,
            3,
            2,
            "8 rows for 3 ranks x 2 micro_batch_rows: 33% of the ranks' time is lost (11% with micro_batch_rows 1)",
        ),
        (IN_TURN, 8, 3, 2, "4 of 12 places empty; none would be on 2 or 4 ranks"),
        (IN_TURN, 5, 1, 4, ""),  # three of eight places are empty, and no rank waits
        (BY_WORK, 8, 3, 2, ""),
        (BY_WORK, 16, 5, 1, ""),
        (BY_WORK, 5, 4, 1, "5 rows for 4 ranks x 1 micro_batch_rows: 38% of the ranks' time is lost; 3 of 8 places"),
    ],
)
def test_ranks_that_wait_for_others_for_more_than_a_quarter_of_the_time_are_told(
    deal: int, rows: int, ranks: int, micro: int, said: str
) -> None:
    train = TrainConfig(global_batch_rows=rows, micro_batch_rows=micro)
    plan = make_plan(train, manifest_of(100), parameters=1, world_size=ranks, seed=0)
    plan = replace(plan, deal=deal)
    found = "\n".join(division_warnings(plan))
    assert said in found and bool(found) == bool(said)


@pytest.mark.parametrize("method", ["new", "full", "lora"])
def test_larger_models_take_lower_rates(method: Method) -> None:
    rates = [usual_learning_rates(method, size).usual for size in (10**5, 10**7, 10**8, 10**9, 10**10, 10**12)]
    assert rates == sorted(rates, reverse=True)
