"""What a job tries again for some minutes: a disk that is away may come back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from cluster.errors import EXIT_USER_ACTION, ShardlineError, TrainingError, exit_code_of
from cluster.slurm.decision import BACK_OFF_S

log = logging.getLogger(__name__)
Result = TypeVar("Result")


def tried_again(
    attempt: Callable[[], Result],
    pause: Callable[[float], None],
    *,
    is_first: bool,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Result | None:
    """Return what `attempt` returns, after up to four pauses in which what made it fail may pass; None if stopped.

    `pause` waits for so many seconds. The first time, a person is told at once what is wrong; later, what is missing
    was there before. A failure of the training itself is never tried again.
    """
    for pause_s in (*BACK_OFF_S, None):
        try:
            return attempt()
        except TrainingError:
            raise
        except (ShardlineError, OSError) as error:
            if pause_s is None or (is_first and exit_code_of(error) == EXIT_USER_ACTION):
                raise
            log.warning("%s; trying again", error)
            pause(pause_s)
            if is_stopping():
                return None
    return None
