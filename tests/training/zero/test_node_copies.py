"""hpZ: with a copy of the weights on every node, a run computes the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow


def test_copies_of_the_weights_on_nodes_change_no_bit_also_after_a_rollback(trial_of: Callable[[int], Any]) -> None:
    trial = trial_of(4)
    without, facts = trial.facts("hpz-1-losses"), trial.facts("hpz-2-losses")
    assert (without["copies"], facts["copies"] > 10) == (0, True)
    assert facts["losses"] == without["losses"] and facts["losses"][:2] == facts["losses"][2:]
    for found, expected in zip(trial.by_rank("hpz-2"), trial.by_rank("hpz-1"), strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
