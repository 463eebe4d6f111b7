"""Facts of the Slurm job that this process is in, and what may be wrong with them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

from cluster.environment import variables
from cluster.errors import ClusterError
from cluster.preflight.findings import Finding, Hosts, Problem, answered, failure, judge_each, or_ok, warning

SCONTROL_S = 20.0
LEFT_OVER = (  # options of srun that an outer srun or salloc has set, and that the next srun would take for its own
    "SLURM_CPU_BIND",
    "SLURM_MEM_BIND",
    "SLURM_GPU_BIND",
    "SLURM_GPUS_PER_TASK",
    "SLURM_NTASKS_PER_GPU",
    "SLURM_TRES_BIND",
    "SLURM_TRES_PER_TASK",
    "SLURM_DISTRIBUTION",
    "SLURM_HINT",
)
OF_THE_ALLOCATION = (
    "SLURM_GPUS",
    "SLURM_NTASKS",
    "SLURM_CPUS_PER_",
    "SLURM_MEM_PER_",
    "SLURM_NPROCS",
    "SLURM_EXPORT_ENV",
)
LITTLE_S = 600.0  # a start, a few steps and a save take minutes


def scontrol(*words: str) -> str:
    """Return what scontrol answers. Raises ClusterError if it fails or does not answer."""
    try:
        result = subprocess.run(
            ["scontrol", *words],
            capture_output=True,
            text=True,
            timeout=SCONTROL_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise ClusterError(
            "scontrol is not on PATH, though this is a Slurm job; add Slurm's bin folder to PATH"
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"Slurm's controller did not answer within {SCONTROL_S:g} s; try again") from None
    if result.returncode:
        raise ClusterError(
            f"scontrol {' '.join(words)}: {result.stderr.strip()}; try again when the controller answers"
        )
    return result.stdout


def job_hosts() -> list[str]:
    """Return the names of the job's hosts; none outside of Slurm."""
    names = variables("SLURM_JOB_NODELIST").get("SLURM_JOB_NODELIST")
    return scontrol("show", "hostnames", names).split() if names else []


def tasks_of_step() -> int:
    """Return how many tasks srun has started together with this process; 1 outside of a step."""
    count = variables("SLURM_STEP_NUM_TASKS").get("SLURM_STEP_NUM_TASKS", "1")
    return int(count) if count.isdecimal() else 1


def without_left_overs() -> dict[str, str | None]:
    """Return changes to the environment that take an outer srun's options away from an srun that sets its own."""
    return dict.fromkeys(variables(*LEFT_OVER, *OF_THE_ALLOCATION), None)


def probe_slurm() -> dict[str, Any]:
    """Return what Slurm says of this job, and the options of srun that are left over in the environment."""
    job = variables("SLURM_JOB_ID")["SLURM_JOB_ID"]
    try:
        told = scontrol("--oneliner", "show", "job", job).splitlines()[0]
    except ClusterError as error:  # the job goes on while the controller restarts
        return {"job": job, "problem": str(error)}
    values = dict(word.split("=", 1) for word in told.split() if "=" in word)
    return {
        "job": job,
        "problem": None,
        "is_batch": values.get("BatchFlag") == "1",
        "may_requeue": values.get("Requeue") == "1",
        "left_s": left_s(values.get("TimeLimit", ""), values.get("RunTime", "")),
        "left_over": sorted(variables(*LEFT_OVER)),
    }


def left_s(limit: str, ran: str) -> float | None:
    """Return the seconds until the time limit; None where there is none or Slurm does not tell."""
    total, used = seconds_of(limit), seconds_of(ran)
    return None if total is None or used is None else total - used


def seconds_of(text: str) -> float | None:
    """Return the seconds of Slurm's [days-]hours:minutes:seconds; None for UNLIMITED and the like."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in [*parts, days or "0"]):
        return None
    hours, minutes, seconds = (int(part) for part in parts)
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def check_slurm(hosts: Hosts) -> list[Finding]:
    """Judge the job as its first host knows it."""
    asked = {host: facts for host, facts in hosts.items() if "slurm" in facts}
    first = next(iter(answered("slurm", asked).values()), None)
    ok = ""
    if first is not None and not first["problem"]:
        again = "may be requeued" if first["is_batch"] else "is interactive"
        left = "no time limit" if first["left_s"] is None else f"{first['left_s'] / 60:,.0f} minutes left"
        ok = f"job {first['job']} {again}; {left}"
    return or_ok("slurm", judge_each("slurm", asked, judge_slurm), ok)


def judge_slurm(facts: dict[str, Any]) -> Iterator[Problem]:
    if facts["problem"]:
        yield warning(facts["problem"], "an answer of Slurm's controller", "look at it again: scontrol ping")
        return
    if facts["left_over"]:
        yield warning(
            f"{', '.join(facts['left_over'])} set: options of an outer srun or salloc, which the next srun takes for"
            " its own",
            "none of them in a job's environment",
            f"unset {' '.join(facts['left_over'])}",
        )
    if facts["is_batch"] and not facts["may_requeue"]:
        yield warning(
            f"job {facts['job']} may not be requeued: it ends with the first host that fails, and at its time limit",
            "Requeue=1",
            f"scontrol update jobid={facts['job']} requeue=1, or sbatch --requeue; else chain jobs",
        )
    if facts["left_s"] is not None and facts["left_s"] < LITTLE_S:
        problem = failure if facts["left_s"] <= 0 else warning
        yield problem(
            f"the time limit ends this job in {max(0.0, facts['left_s']):,.0f} s",
            f"{LITTLE_S:g} s or more for a start, steps and a save",
            "submit with a longer --time",
        )
