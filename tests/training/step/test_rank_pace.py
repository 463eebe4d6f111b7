"""A rank that computes slower than the others is found, and one that had a slow step is not."""

from __future__ import annotations

import random

import torch

from training.step.rank_pace import MANY_STEPS, RankPace
from training.step.step_times import LayerClock


def test_the_slowest_rank_of_a_step_is_told_once_with_its_share_beyond_the_median() -> None:
    pace = RankPace()
    pace.note([100, 150, 100, 90])
    assert pace.as_record() == {"slowest_rank": 1, "slowest_by": 0.5}
    assert pace.as_record() == {}


def test_a_rank_that_is_slow_over_many_steps_is_named_once() -> None:
    pace = RankPace()
    for _ in range(MANY_STEPS - 1):
        pace.note([100, 100, 115])
    assert pace.slow_ranks() == {}
    pace.note([100, 100, 115])
    assert {rank: round(excess, 3) for rank, excess in pace.slow_ranks().items()} == {2: 0.15}
    pace.note([100, 100, 115])
    assert pace.slow_ranks() == {}


def test_a_step_that_took_a_rank_a_thousand_times_as_long_makes_no_slow_rank() -> None:
    pace = RankPace()
    for step in range(4 * MANY_STEPS):
        pace.note([100, 100, 100_000 if step == 2 * MANY_STEPS else 100])
        assert pace.slow_ranks() == {}


def test_where_ranks_take_turns_at_slow_steps_none_is_the_slow_one() -> None:
    pace = RankPace()
    for step in range(4 * MANY_STEPS):
        pace.note([100, 160] if step % 2 else [160, 100])
        assert pace.slow_ranks() == {}


def test_noise_of_a_busy_machine_makes_no_slow_rank() -> None:
    pace, generator = RankPace(), random.Random(0)
    for _ in range(100 * MANY_STEPS):
        pace.note([round(100 * generator.lognormvariate(0, 0.5)) for _ in range(2)])
        assert pace.slow_ranks() == {}


def test_ranks_that_were_not_measured_and_a_rank_alone_are_compared_with_nobody() -> None:
    pace = RankPace()
    for times in ([100], [0, 0], [100, 0]):
        pace.note(times)
        assert pace.as_record() == {} and pace.slow_ranks() == {}


def test_layers_are_measured_where_they_are_asked_to_be_and_compute_the_same() -> None:
    layer, values = torch.nn.Linear(64, 64), torch.ones(8, 64)
    expected = layer(values)
    clock = LayerClock([layer], torch.device("cpu"))
    layer(values)
    assert clock.seconds() == {}
    with clock.measuring():
        found = layer(layer(values) * 0 + values)
    layer(values)
    assert torch.equal(found, expected)
    assert len(clock.taken) == 2 and 0 < clock.seconds()["layers_s"] < 60
