"""A run through worlds of 1 to 4 ranks and through the templates is the run of one rank under one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
JOURNEY = [(2, "zero3"), (3, "zero1"), (1, "zero2_offload_cpu"), (4, "zero3_offload_cpu"), (2, "zero2")]
STEPS = 2  # in each place


@pytest.fixture(scope="module")
def lives(trial_of: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("journey")
    return [
        trial_of(ranks, "journey_ranks.py", str(folder), template, str(STEPS), rows=24) for ranks, template in JOURNEY
    ]


@pytest.fixture(scope="module")
def alone(trial_of: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("alone")
    return trial_of(1, "journey_ranks.py", str(folder), "zero3", str(STEPS * len(JOURNEY)), rows=24)


def test_weights_and_moments_are_the_same_to_the_bit_after_every_change_of_ranks_and_template(lives: list[Any]) -> None:
    for before, after in pairwise(lives):
        saved, loaded = before.by_rank("saved")[0], after.by_rank("loaded")[0]
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[key].view(torch.int32), loaded[key].view(torch.int32)) for key in saved)


def test_the_rows_of_every_step_are_those_of_one_rank_and_so_are_the_losses(lives: list[Any], alone: Any) -> None:
    told, expected = [life.facts("journey") for life in lives], alone.facts("journey")
    assert [rows for life in told for rows in life["rows"]] == expected["rows"]
    assert [loss for life in told for loss in life["losses"]] == pytest.approx(expected["losses"], rel=1e-5)
    assert told[-1]["steps_done"] == STEPS * len(JOURNEY)
