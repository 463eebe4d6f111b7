"""Intervals and goodput: the formula beside the simulation, and the interval that it calls the best."""

from __future__ import annotations

import pytest

from benchmarks.goodput.simulation import Fleet, simulated
from training.costs.saving import GPU_SECONDS_BETWEEN_FAILURES, Saving

SAVINGS = {
    "asynchronous": Saving(checkpoint_bytes=1e12, stall_s=1.0, write_s=40.0, restart_s=160.0, failure_s=11_135.0),
    "synchronous": Saving(checkpoint_bytes=1e12, stall_s=40.0, write_s=0.0, restart_s=160.0, failure_s=11_135.0),
    "failing all the time": Saving(checkpoint_bytes=1e12, stall_s=1.0, write_s=30.0, restart_s=100.0, failure_s=400.0),
    "written slowly": Saving(checkpoint_bytes=1e12, stall_s=0.5, write_s=300.0, restart_s=120.0, failure_s=9_000.0),
}


@pytest.mark.parametrize("name", SAVINGS)
def test_the_expected_goodput_is_the_mean_of_simulated_runs(name: str) -> None:
    saving = SAVINGS[name]
    found = simulated(saving, saving.best_interval_s, Fleet(), runs=16, failures=300)
    assert abs(found.mean - saving.goodput()) <= 4 * found.error
    assert found.error < 0.02 * (1 - found.mean)


@pytest.mark.parametrize("name", ["asynchronous", "synchronous"])
def test_no_other_interval_loses_much_less_than_the_one_called_best(name: str) -> None:
    saving = SAVINGS[name]
    best = max(saving.goodput(saving.best_interval_s * factor) for factor in (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0))
    assert best - saving.goodput() < 0.01 * (1 - best)


def test_a_save_is_not_begun_before_the_last_one_is_safe() -> None:
    saving = SAVINGS["written slowly"]
    assert saving.best_interval_s == saving.write_s
    assert saving.goodput(10.0) == saving.goodput(saving.write_s)


def test_the_default_rate_is_that_of_llama_3() -> None:
    days, interruptions, gpus = 54, 419, 16_384
    assert pytest.approx(days * 86_400 * gpus / interruptions, rel=1e-3) == GPU_SECONDS_BETWEEN_FAILURES


def test_a_run_without_enough_spare_nodes_waits_for_repairs() -> None:
    saving = SAVINGS["asynchronous"]
    few, many = (simulated(saving, 150.0, Fleet(spares=spares), runs=4, failures=200) for spares in (4, 40))
    assert many.waited == 0
    assert few.waited > 0.1
    assert few.mean < many.mean
