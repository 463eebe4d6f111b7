"""A step that a guard refuses leaves weights, moments and everything after it as if it had never been tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
WORLDS = (1, 2, 4)


def assert_same_bits(trial: Any, left: str, right: str) -> None:
    for ours, theirs in zip(trial.by_rank(left), trial.by_rank(right), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("ranks", WORLDS)
def test_a_refused_step_changes_neither_weights_nor_moments(trial_of: Callable[[int], Any], ranks: int) -> None:
    assert_same_bits(trial_of(ranks), "guarded-after", "guarded-before")


@pytest.mark.parametrize("ranks", WORLDS)
def test_the_step_after_a_refused_one_is_the_one_without_it(trial_of: Callable[[int], Any], ranks: int) -> None:
    trial = trial_of(ranks)
    assert_same_bits(trial, "guarded-next", "spared-next")
    losses = trial.facts("guarded-losses")
    assert losses["loss"] == losses["expected"]


@pytest.mark.parametrize("ranks", WORLDS)
def test_a_run_that_goes_back_to_its_first_weights_begins_as_it_did(trial_of: Callable[[int], Any], ranks: int) -> None:
    assert_same_bits(trial_of(ranks), "begun-again", "guarded-before")


@pytest.mark.parametrize("ranks", WORLDS)
def test_every_rank_sees_the_same_loss_and_norm_before_the_weights_change(
    trial_of: Callable[[int], Any], ranks: int
) -> None:
    seen = [rank["stats"] for rank in trial_of(ranks).by_rank("guarded-seen")]
    assert all(torch.equal(values.nan_to_num(-1.0), seen[0].nan_to_num(-1.0)) for values in seen)
    (poisoned_loss, poisoned_norm), (loss, norm) = seen[0].tolist()
    assert poisoned_loss != poisoned_loss and poisoned_norm == float("inf")
    assert 0 < norm < float("inf") and 0 < loss < float("inf")
