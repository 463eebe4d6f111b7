"""The Slurm job that this process runs in, as its environment and Slurm describe it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.environment import host_counts, number, text
from cluster.errors import ClusterError
from cluster.processes import ancestors

LEFT_OVER = ("SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT")  # Slurm sets them for some jobs, and unsets them for none
GPUS = re.compile(r"(?:.*:)?(\d+)(?:\(x\d+\))?")  # 8, h200:8 or 8(x2)


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """`name` is what scontrol takes for this job alone: ARRAY_TASK for a task of an array, else the job's number.

    `cpus` and `tasks` are of each host, in the order of `node_list`. `tasks` is None where sbatch was told no number,
    and empty in a shell that is a step of the job, in which Slurm tells of that step alone.
    """

    number: int
    name: str
    node_list: str
    nodes: int
    restarts: int
    cpus: tuple[int, ...]
    tasks: tuple[int, ...] | None
    task_file: Path | None
    """One line a task, its host: that of `sbatch --distribution=arbitrary`."""
    gpus: int
    """Of this host, or of each one. 0 without GPUs."""


def read_job(
    values: Mapping[str, str],
    script: str = "train.sh",
    ask: Callable[[int], Mapping[str, str] | None] = lambda job: None,
) -> SlurmJob:
    """Return the job. Raises ClusterError if `script` cannot use its hosts from here.

    `ask` returns what Slurm knows about a job, None without an answer: sbatch passes on what an outer job has in its
    environment.
    """
    check_place(values, script)
    nodes, job = number(values, "SLURM_JOB_NUM_NODES"), number(values, "SLURM_JOB_ID")
    if set(LEFT_OVER) & values.keys() and (record := ask(job)):
        values = {**values, **said_by_slurm(record)}
    array = values.get("SLURM_ARRAY_JOB_ID")
    return SlurmJob(
        number=job,
        name=f"{array}_{text(values, 'SLURM_ARRAY_TASK_ID')}" if array else str(job),
        node_list=text(values, "SLURM_JOB_NODELIST"),
        nodes=nodes,
        restarts=number(values, "SLURM_RESTART_COUNT", default=0),
        cpus=counts(values, "SLURM_JOB_CPUS_PER_NODE", nodes),
        tasks=asked_tasks(values, nodes),
        task_file=Path(values["SLURM_HOSTFILE"]) if values.get("SLURM_DISTRIBUTION") == "arbitrary" else None,
        gpus=gpus_of(values.get("SLURM_GPUS_ON_NODE") or values.get("SLURM_GPUS_PER_NODE") or "0"),
    )


def said_by_slurm(record: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that Slurm would set for a job alone, whatever the shell had in which it was submitted."""
    return {
        "SLURM_ARRAY_JOB_ID": record.get("ArrayJobId", ""),
        "SLURM_ARRAY_TASK_ID": record.get("ArrayTaskId", ""),
        "SLURM_RESTART_COUNT": record.get("Restarts", "0"),
    }


def check_place(values: Mapping[str, str], script: str) -> None:
    """Raise ClusterError in one of several tasks of an srun: each of them would start all that the script starts."""
    tasks = int(values.get("SLURM_STEP_NUM_TASKS") or 1)
    if tasks > 1 and not is_batch_script(ancestors()):
        raise ClusterError(
            f"{script} was started {tasks} times, by srun; it uses all hosts of the job itself: submit it with"
            f" `sbatch launch/{script} RUN.yaml`, or run it once in a shell of `salloc`"
        )


def is_batch_script(commands: Sequence[str]) -> bool:
    """Return whether the nearest slurmstepd above this process runs a batch script.

    The variables cannot tell: sbatch passes on those of the shell that it is called in, even a task's.
    """
    daemon = next((command for command in commands if command.startswith("slurmstepd: [")), "")
    return daemon.endswith(".batch]")


def counts(values: Mapping[str, str], name: str, hosts: int) -> tuple[int, ...]:
    """Return a variable's number for each host."""
    found = host_counts(text(values, name))
    if len(found) != hosts:
        raise ClusterError(f"{name}={values[name]}: expected a number for each host of the job, which has {hosts}")
    return tuple(found)


def asked_tasks(values: Mapping[str, str], hosts: int) -> tuple[int, ...] | None:
    """Return the tasks of each host as sbatch was told; None if it was not: --exclusive alone makes each CPU a task.

    Empty if the variables are those of a step.
    """
    if "SLURM_TASKS_PER_NODE" not in values:
        return None
    tasks = host_counts(values["SLURM_TASKS_PER_NODE"])
    if len(tasks) != hosts:
        return ()
    return tuple(tasks) if str(sum(tasks)) == values.get("SLURM_NTASKS") else None


def gpus_of(spelled: str) -> int:
    """Return the number in 8, h200:8 or 8(x2)."""
    match = GPUS.fullmatch(spelled)
    if match is None:
        raise ClusterError(f"{spelled!r}: expected a number of GPUs from Slurm, as in 8 or h200:8")
    return int(match[1])
