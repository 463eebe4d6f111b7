"""What a run is told about itself, for the courses that a training and a held-out loss can take."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from training.evaluate.verdict import verdict

STEPS = 200


def curve(loss: Callable[[float], float], every: int = 1) -> list[tuple[int, float]]:
    return [(step, loss(step / STEPS)) for step in range(every, STEPS + 1, every)]


FALLS = curve(lambda done: 2 + 3 * math.exp(-6 * done))
COURSES = {
    "learnt": curve(lambda done: 2.2 + 3 * math.exp(-6 * done) - 0.002 * done, 20),
    "too short": curve(lambda done: 5 - 2 * done, 20),
    "over-fitted": curve(lambda done: 3 + 2 * (done - 0.5) ** 2, 20),
    "did not learn": curve(lambda done: 5 - 0.01 * done, 20),
}


@pytest.mark.parametrize("kind", COURSES)
def test_a_course_of_the_held_out_loss_gets_its_name(kind: str) -> None:
    train = curve(lambda done: 5 - 0.01 * done) if kind == "did not learn" else FALLS
    assert verdict(train, COURSES[kind]).kind == kind


def test_over_fitting_is_told_with_the_step_before_it() -> None:
    found = verdict(FALLS, COURSES["over-fitted"])
    assert found.best_step == 100
    assert "Over-fitted since step 100: the held-out loss was lowest at step 100 (3.000)" in found.text


def test_a_held_out_loss_that_rises_with_the_training_loss_is_not_called_over_fitting() -> None:
    rises = curve(lambda done: 3 + 4 * abs(done - 0.5))
    assert verdict(rises, COURSES["over-fitted"]).kind == "diverged"


def test_noise_of_the_training_loss_and_a_skipped_step_change_no_verdict() -> None:
    noisy = [(step, loss + 0.3 * (-1) ** step) for step, loss in FALLS] + [(77, math.nan)]
    assert verdict(noisy, COURSES["learnt"]).kind == "learnt"


def test_a_run_that_learnt_before_its_first_evaluation_has_learnt() -> None:
    assert verdict(FALLS, [(180, 2.21), (200, 2.205)]).kind == "learnt"


def test_a_loss_that_rose_for_a_moment_and_came_back_is_not_still_falling() -> None:
    held_out = [(20, 2.312), (80, 1.96), (140, 1.803), (160, 1.7946), (180, 1.8444), (200, 1.8105), (211, 1.7953)]
    assert verdict([], held_out).kind == "learnt"


def test_a_slight_rise_at_the_end_is_told_of_a_run_that_has_learnt() -> None:
    found = verdict([], [(1, 4.8), (20, 0.4545), (40, 0.2415), (60, 0.2278), (66, 0.2351)])
    assert found.kind == "learnt"
    assert found.text.endswith("and has levelled off; it was lowest at step 60 (0.228).")


def test_few_steps_are_given_as_the_reason_that_nothing_was_learnt() -> None:
    found = verdict([(1, 6.26), (14, 6.23)], [(7, 6.25), (14, 6.24)])
    assert (found.kind, "14 steps are few" in found.text) == ("did not learn", True)


@pytest.mark.parametrize("held_out", [[(100, 0.03), (200, 0.0004)], [(100, 0.0004), (200, 0.03)]])
def test_a_task_that_is_learnt_wholly_is_learnt_whatever_the_last_thousandths_do(
    held_out: list[tuple[int, float]],
) -> None:
    train = curve(lambda done: 8 * math.exp(-20 * done))
    assert verdict(train, held_out).kind == "learnt"


@pytest.mark.parametrize("held_out", [[], [(200, 2.2)]])
def test_without_two_held_out_losses_over_fitting_is_left_open(held_out: list[tuple[int, float]]) -> None:
    assert verdict(FALLS, held_out).kind == "unknown"
    assert verdict([], held_out).kind == "unknown"
