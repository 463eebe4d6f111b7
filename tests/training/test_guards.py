"""Which losses and gradient norms are spikes, and which steps a rollback excludes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import TrainConfig
from training.guards import USUAL_STEPS, Guards, rolled_back
from training.step.loss import StepStats
from training.train_state import HISTORY_STEPS, TrainState


def state_of(losses: list[float], norms: list[float] | None = None) -> TrainState:
    state = TrainState()
    for step, loss in enumerate(losses):
        state = state.after(step, StepStats(loss=loss, gradient_norm=norms[step] if norms else 1.0))
    return state


def verdict(state: TrainState, loss: float = 2.0, norm: float = 1.0, **train: Any) -> str | None:
    return Guards(TrainConfig(**train)).skip_reason(state, StepStats(loss=loss, gradient_norm=norm))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_from_the_first_step_on(value: float) -> None:
    assert verdict(TrainState(), loss=value) == f"loss is {value}"
    assert verdict(TrainState(), norm=value) == f"gradient norm is {value}"


def test_a_spike_is_measured_by_the_recent_steps() -> None:
    usual = state_of([2.0] * USUAL_STEPS)
    assert verdict(usual, loss=4.1) == "loss 4.1 is a spike: the recent median is 2"
    assert verdict(usual, loss=3.9) is None
    assert verdict(usual, loss=4.1, loss_spike_factor=None) is None
    assert verdict(usual, norm=31.0) == "gradient norm 31 is a spike: the recent median is 1"
    assert verdict(usual, norm=31.0, norm_spike_factor=None) is None


def test_before_there_is_enough_to_compare_with_nothing_is_a_spike() -> None:
    assert verdict(state_of([2.0] * (USUAL_STEPS - 1)), loss=1e9, norm=1e9) is None


def test_near_zero_a_multiple_of_the_usual_loss_is_no_spike() -> None:
    converged = state_of([0.01] * USUAL_STEPS, [0.001] * USUAL_STEPS)
    assert verdict(converged, loss=0.9) is None
    assert verdict(converged, loss=1.1) is not None
    assert verdict(converged, loss=0.01, norm=0.9, clip_gradient_norm=1.0) is None


@given(st.lists(st.floats(0.5, 12), min_size=1, max_size=200))
def test_a_falling_loss_is_never_a_spike(losses: list[float]) -> None:
    state = TrainState()
    for step, loss in enumerate(sorted(losses, reverse=True)):
        assert verdict(state, loss=loss) is None
        state = state.after(step, StepStats(loss=loss, gradient_norm=1.0))
    assert len(state.losses) == min(len(losses), HISTORY_STEPS)


def test_a_rollback_excludes_the_bad_steps_as_many_before_them_and_all_that_was_skipped_since() -> None:
    failed = TrainState(steps_done=20, skipped=(3, 11, 17, 18, 19), rollbacks=1)
    restored = TrainState(steps_done=10, skipped=(3,))
    back = rolled_back(restored, failed)
    assert back == TrainState(steps_done=10, skipped=(3,), excluded=(11, 14, 15, 16, 17, 18, 19), rollbacks=2)
    assert rolled_back(TrainState(steps_done=16, skipped=(3, 11)), failed).excluded == (16, 17, 18, 19)
