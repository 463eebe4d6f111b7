"""What a job does when its ranks have ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from cluster.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ACTION
from cluster.slurm.controller import JobFacts

FINAL = (EXIT_DONE, EXIT_USER_ACTION, EXIT_INTERRUPTED)
BACK_OFF_S = (10.0, 30.0, 60.0, 120.0)  # before each start that follows one without a new step
SRUN_BACK_OFF_S = (
    *BACK_OFF_S,
    120.0,
    120.0,
    120.0,
)  # before srun is called again after a failure of its own
SPAN_S = 120.0  # from the first failure without a new step to the one that ends the job: a disk may come back


class Next(enum.Enum):
    """END: with the ranks' exit code. RESTART: in this job. REQUEUE: with 75. STAY_OUT: with 75, not requeued."""

    END = "end"
    RESTART = "restart"
    REQUEUE = "requeue"
    STAY_OUT = "stay out of the queue"


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What people have asked for."""

    stop_file: bool = False
    interrupt: bool = False


def decide(code: int, facts: JobFacts, wishes: Wishes) -> Next:
    """Return what follows the ranks' end.

    If the job ends, or has lost a host, Slurm requeues or cancels it by itself. Without an answer from Slurm it runs.
    """
    if code in FINAL:
        return Next.END
    is_unwanted = wishes.stop_file or wishes.interrupt
    if code == EXIT_STOPPED:
        if is_unwanted:
            return Next.STAY_OUT
        return Next.REQUEUE if facts.may_run or facts.reason == "TimeLimit" else Next.END
    return Next.END if is_unwanted or not facts.may_run else Next.RESTART


def back_off_s(failures: int) -> float:
    """Return the pause before the start that follows this many starts without a new step."""
    return BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1] if failures else 0.0
