"""Slurm's queue: submit a job, ask which are there, remove them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.environment import child_environment
from cluster.errors import ClusterError
from cluster.submission.sbatch import Job

ANSWER_S = 120.0  # the controller of a large cluster can take this long
JOB_ID = re.compile(r"(\d+)(;[\w.-]+)?")
GONE = "Invalid job id"  # what squeue says about a single job that Slurm has forgotten
UNWANTED = (  # variables that would change what is submitted, or hide jobs from the answer
    *("SBATCH_ARRAY_INX", "SBATCH_WAIT", "SQUEUE_ACCOUNT", "SQUEUE_ALL", "SQUEUE_ARRAY", "SQUEUE_FEDERATION"),
    *("SQUEUE_FORMAT", "SQUEUE_FORMAT2", "SQUEUE_LICENSES", "SQUEUE_LOCAL", "SQUEUE_NAMES", "SQUEUE_PARTITION"),
    *("SQUEUE_PRIORITY", "SQUEUE_QOS", "SQUEUE_SIBLING", "SQUEUE_SORT", "SQUEUE_STATES", "SQUEUE_USERS"),
)


NEVER = {  # why a job waits until a person acts; Slurm accepts such jobs
    *(
        "PartitionConfig",
        "PartitionTimeLimit",
        "PartitionNodeLimit",
        "PartitionDown",
        "PartitionInactive",
        "BadConstraints",
    ),
    *("InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed", "JobHeldUser", "JobHeldAdmin"),
}


@dataclass(frozen=True)
class Queued:
    """A job that waits or runs, and why it waits."""

    job: str
    state: str
    reason: str
    name: str

    @property
    def is_undecided(self) -> bool:
        """Whether Slurm has not looked at the job yet."""
        return (self.state, self.reason) == ("PENDING", "None")

    @property
    def never_starts(self) -> bool:
        return self.reason in NEVER

    def __str__(self) -> str:
        return f"job {self.job} ({self.name}, {self.state})"


def submit(job: Job, after: str | None) -> str:
    """Submit a job; return its id. Raises ClusterError if Slurm refuses it, or if its answer has no id."""
    result = ask(job.command(after), job.variables)
    if result.returncode:
        raise ClusterError(
            f"sbatch refused the job of {job.stage} (exit code {result.returncode}): {last_line(result.stderr)};"
            f" correct `cluster` in the YAML{job.hint}, then submit again"
        )
    answer = last_line(result.stdout)
    found = JOB_ID.fullmatch(answer)
    if found is None:
        raise ClusterError(
            f"sbatch answered {answer!r} where a job's id was expected; look for {job.name} with `squeue --me`, and"
            " remove it with `scancel`"
        )
    return found[1]


def queued(jobs: Mapping[str, str | None], within_s: float = ANSWER_S) -> list[Queued]:
    """Return those of these jobs (ids with their names) that wait or run.

    The name is compared if there is one, as a cluster that was set up again gives the same ids. Raises ClusterError
    without an answer: that says nothing about the jobs.
    """
    if not jobs:
        return []
    result = ask(["squeue", "--noheader", f"--jobs={','.join(jobs)}", "--format=%A|%T|%r|%j"], {}, within_s)
    if result.returncode and GONE not in result.stderr:
        raise ClusterError(
            f"squeue did not say whether {', '.join(f'job {job}' for job in jobs)} of this run is still there (exit"
            f" code {result.returncode}): {last_line(result.stderr)}; try again"
        )
    found = [Queued(*line.split("|", 3)) for line in result.stdout.splitlines() if line.count("|") >= 3]
    return sorted((one for one in found if jobs.get(one.job, "") in (None, one.name)), key=lambda one: int(one.job))


def cancel(jobs: Sequence[str]) -> None:
    """Remove jobs. Raises ClusterError that names them if that fails."""
    result = ask(["scancel", *jobs], {})
    if result.returncode:
        raise ClusterError(f"could not remove the jobs: {last_line(result.stderr)}; run: scancel {' '.join(jobs)}")


def ask(
    command: Sequence[str], variables: Mapping[str, str], within_s: float = ANSWER_S
) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands. Raises ClusterError if it is not installed or does not answer."""
    try:
        return subprocess.run(
            command,
            env=child_environment({**dict.fromkeys(UNWANTED), **variables}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
    except FileNotFoundError:
        raise ClusterError(
            f"{command[0]} is not here: submit on a host of the Slurm cluster; `--dry-run` shows the commands anywhere"
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"{command[0]} did not answer within {within_s:.0f} s; see whether it had an effect with `squeue --me`"
        ) from None


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
