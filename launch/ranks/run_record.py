"""A run's folder as the job sees it that starts the ranks: on a disk that may be away, which must not end the job."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from cluster.errors import ShardlineError
from cluster.journal.records import last_step, newest_not_requeued, write_event
from cluster.paths import RunPaths
from cluster.restart_limit import ENDINGS, code_that_ranks_recorded, newest_launch, note_stop
from launch.ranks.news import note_if_possible

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """Reads and adds to what a run has recorded; what cannot be read is as if it were not there."""

    paths: RunPaths

    def has_begun(self) -> bool:
        """Return whether the ranks have recorded anything since they were launched."""
        return any(event["event"] in ("start", *ENDINGS) for event in self.newest())

    def exit_code(self) -> int | None:
        """Return the exit code that the ranks have recorded since they were launched; None without any."""
        try:
            return code_that_ranks_recorded(self.paths)
        except (OSError, ShardlineError):
            return None

    def newest(self) -> list[dict[str, Any]]:
        """Return the events since the newest launch."""
        try:
            return newest_launch(self.paths)
        except (OSError, ShardlineError):
            return []

    def last_step(self) -> int:
        try:
            return last_step(self.paths.metrics)
        except (OSError, ShardlineError):
            return 0  # no step is counted

    def wants_stop(self) -> bool:
        """Return whether a person has left a file STOP."""
        try:
            return self.paths.stop_request.exists()
        except OSError:
            return False

    def tell_not_requeued(self) -> None:
        """Say that this start takes over from a job that should have come back itself."""
        if job := newest_not_requeued(self.newest()):
            log.info("job %s has stopped, and Slurm did not put it back into the queue: continuing here", job)

    def note_cause(self, cause: str) -> None:
        note_if_possible(self.paths, cause)

    def note_stop(self, code: int) -> None:
        try:
            note_stop(self.paths, code)
        except (OSError, ShardlineError) as error:
            log.warning("the stop is not recorded: %s", error)

    def note_not_requeued(self, job: str) -> None:
        """Leave a note for people who ask for the run's status, and for the next start."""
        try:
            write_event(self.paths, "not-requeued", job=job)
        except (OSError, ShardlineError) as error:
            log.warning("that is not recorded: %s", error)
