"""What Slurm's queue says about a run's jobs, and the jobs that a run has had."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.errors import DataError, ShardlineError
from cluster.paths import RANK_FILE, RunPaths

if TYPE_CHECKING:
    from cluster.submission.queue import Queued

ANSWER_S = 10.0
PERIOD_S = 30.0  # between two questions of one status that is shown again and again


@dataclass
class QueueState:
    """Asks about the jobs of one run, seldom enough for a controller that many ask."""

    paths: RunPaths
    told: str = ""
    asked_at: float = field(default=-PERIOD_S)

    def text(self) -> str:
        """Return the jobs that wait or run; nothing without Slurm, or without any."""
        if time.monotonic() - self.asked_at >= PERIOD_S and shutil.which("squeue"):
            self.told, self.asked_at = self.asked(), time.monotonic()
        return self.told

    def asked(self) -> str:
        from cluster.submission.queue import queued  # here, as it imports what checks a configuration

        try:
            jobs: dict[str, str | None] = {**launched_jobs(self.paths), **submitted_jobs(self.paths)}
            return ", ".join(map(described, queued(jobs, ANSWER_S)))
        except (ShardlineError, OSError) as error:
            return f"unknown: {error}"


def submitted_jobs(paths: RunPaths) -> dict[str, str]:
    """Return the name of each job that was ever submitted for a run. Raises DataError for a damaged record."""
    found: dict[str, str] = {}
    for path in sorted(paths.submissions.glob("*.json")):
        try:
            jobs = json.loads(path.read_text(encoding="utf-8"))["jobs"]
            found |= {str(job["job"]): str(job["name"]) for job in jobs}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: damaged ({error!r}), so whether its jobs are still there is unknown; look with"
                " `squeue --me`, and remove the file once none of them is"
            ) from None
    return found


def described(job: Queued) -> str:
    return str(job) if job.reason in ("None", "") else f"job {job.job} ({job.name}, {job.state}: {job.reason})"


def launched_jobs(paths: RunPaths) -> dict[str, None]:
    """Return the Slurm jobs whose ranks have written logs, which are named after them."""
    names = (RANK_FILE.fullmatch(path.name) for path in paths.logs.glob("*-rank*.log"))
    jobs = (match[1].partition("-")[0] for match in names if match)
    return dict.fromkeys(job for job in jobs if job.isdecimal())
