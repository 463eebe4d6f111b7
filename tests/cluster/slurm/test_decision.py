"""What follows when the ranks have ended."""

from __future__ import annotations

import pytest

from cluster.slurm.controller import JobFacts
from cluster.slurm.decision import Next, Wishes, back_off_s, decide
from cluster.slurm.step import StepWatch

RUNNING, UNKNOWN = JobFacts("RUNNING", "None"), JobFacts()
ENDING, TIME_LIMIT = JobFacts("COMPLETING", "None"), JobFacts("COMPLETING", "TimeLimit")


@pytest.mark.parametrize(
    ("code", "facts", "following"),
    [
        (0, RUNNING, Next.END),
        (2, RUNNING, Next.END),
        (130, RUNNING, Next.END),
        (1, RUNNING, Next.RESTART),
        (137, UNKNOWN, Next.RESTART),
        (143, ENDING, Next.END),
        (75, RUNNING, Next.REQUEUE),
        (75, UNKNOWN, Next.REQUEUE),
        (75, TIME_LIMIT, Next.REQUEUE),
        (75, ENDING, Next.END),
    ],
)
def test_slurm_decides_about_a_job_that_ends_and_no_answer_is_not_an_end(
    code: int, facts: JobFacts, following: Next
) -> None:
    assert decide(code, facts, Wishes()) is following


@pytest.mark.parametrize("wishes", [Wishes(stop_file=True), Wishes(interrupt=True)])
def test_what_a_person_has_stopped_is_neither_restarted_nor_requeued(wishes: Wishes) -> None:
    assert decide(75, RUNNING, wishes) is Next.STAY_OUT
    assert decide(137, RUNNING, wishes) is Next.END


def test_starts_without_a_new_step_lie_further_and_further_apart() -> None:
    assert [back_off_s(failures) for failures in range(6)] == [0, 10, 30, 60, 120, 120]


def test_a_step_is_gone_only_if_slurm_has_listed_it_and_does_not_for_long_enough() -> None:
    watch = StepWatch(gone_s=30)
    looks = [(0, False), (40, False), (50, True), (60, False), (70, None), (85, False), (90, True), (95, False)]
    assert not any(watch.look(listed, now) for now, listed in looks)
    assert watch.look(False, 125)
