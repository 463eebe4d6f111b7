"""`shardline submit`: put a run into Slurm's queue as a chain of jobs, each starting when the one before is done."""

from __future__ import annotations

import argparse
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.disk.lock_holder import Holder
from cluster.disk.locks import LockFile, hold_lock
from cluster.disk.run_lock import hold_run
from cluster.errors import EXIT_DONE, EXIT_USER_ACTION, ClusterError, ConfigError
from cluster.preflight.excluded_hosts import read_excluded
from cluster.submission.config import STAGES, ClusterConfig, job_request
from cluster.submission.jobs_of_run import submitted_jobs
from cluster.submission.queue import cancel, queued, submit
from cluster.submission.sbatch import Job, excluding, make_job
from cluster.versions import ROOT, versions
from data_prep.shards import MANIFEST
from launch.arguments import add_run
from launch.config import RunConfig
from launch.jobs.stages import scripts, stages_to_do, unprepared
from launch.jobs.submission import Record, Snapshot
from launch.runs.check import check_run, check_source
from launch.runs.train import check_resumes
from launch.saved_config import load
from launch.wording import as_typed, say
from training.zero import ds_config

log = logging.getLogger(__name__)

SUBMITTING = "shardline submit"
LOOK_S = 4.0  # for Slurm's reason why the first job waits
EXAMPLE = "cluster: {partition: gpu, nodes: 2, gpus_per_node: 8, memory: all, time: '12:00:00'}"


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument("--dry-run", action="store_true", help="print the commands; submit and write nothing")
    stages = command.add_mutually_exclusive_group()
    stages.add_argument("--only", choices=STAGES, help="submit this stage alone, also if it is done")
    stages.add_argument(
        "--from", dest="start", choices=STAGES, help="submit this stage and those after it, also if they are done"
    )


def run(options: argparse.Namespace) -> int:
    """Check everything, then submit what is left to do of the run."""
    run = load(options)
    if run.cluster is None:
        raise ConfigError(f"cluster: missing; it says what the jobs ask Slurm for, for example:\n  {EXAMPLE}")
    stages = stages_to_do(run, options.only, options.start)
    if not stages:
        say(f"nothing to do: {', '.join(STAGES)} are done; to do one again: --only STAGE, or --from STAGE")
        return EXIT_DONE
    if not options.dry_run:
        check_not_submitted(run)
    check(run, run.cluster, stages)
    snapshot = Snapshot.of(run)
    jobs = make_jobs(run, run.cluster, stages, snapshot)
    if options.dry_run:
        say(as_script(jobs, stages))
        return EXIT_DONE
    numbers = submit_all(run, snapshot, jobs)
    say(told(options, run, jobs, numbers, stages))
    will_start = wait_for_word({number: job.name for number, job in zip(numbers, jobs, strict=True)})
    return EXIT_DONE if will_start else EXIT_USER_ACTION


def check(run: RunConfig, cluster: ClusterConfig, stages: Mapping[str, str]) -> None:
    """Raise what can be known before a job waits in the queue for hours, and warn of the rest."""
    ranks = job_request(cluster, "train").ranks
    if "prepare" in stages and (run.shards / MANIFEST).exists() and unprepared(run):
        from data_prep.preview.survey import survey

        ds_config.read_template(run.train.deepspeed)
        check_source(run)
        lines = survey(run.data, run.model.path, may_add_tokens=run.model.may_add_tokens)
    else:
        lines = check_run(run, ranks)
    for line in lines:
        if line.startswith("WARNING"):
            log.warning("%s", line.removeprefix("WARNING").strip())
    if "train" in stages and "prepare" not in stages:
        check_resumes(run)
    if versions()["dirty"]:
        log.warning("%s has changes that are not committed; each job runs the code as it is when the job starts", ROOT)


def check_not_submitted(run: RunConfig) -> None:
    """Raise ClusterError if a job of this run waits or runs, or another process works in its folder."""
    check_queue(run)
    with hold_run(run.paths, Holder.here(SUBMITTING)):
        pass


def check_queue(run: RunConfig) -> None:
    """Raise ClusterError if a job of this run waits or runs."""
    found = queued(submitted_jobs(run.paths))
    if found:
        ids = [one.job for one in found]
        raise ClusterError(
            f"{run.paths.root}: already in the queue: {', '.join(map(str, found))}; wait for it"
            f" (squeue --jobs={','.join(ids)}), or remove it with: scancel {' '.join(ids)}"
        )


def make_jobs(run: RunConfig, cluster: ClusterConfig, stages: Mapping[str, str], snapshot: Snapshot) -> list[Job]:
    """Return the jobs of these stages."""
    root = snapshot.path.parents[1]
    folders = [ROOT, Path.cwd(), root, run.shards.absolute()]
    jobs = []
    for stage in stages:
        script = scripts(stage)
        words = [*script, str(snapshot.path), *stage_options(cluster, stage)]
        job = make_job(cluster, stage, f"{run.name}-{stage}", root / "logs", words, folders)
        if stage == "train":
            job = without_bad_hosts(run, job)
        jobs.append(job)
    return jobs


def without_bad_hosts(run: RunConfig, job: Job) -> Job:
    """Return a training's job that does not get the hosts that the run has excluded, and say which.

    Not those that were silent and are left for hours: the job may wait longer than that, and Slurm never forgets them.
    """
    bad = {host: why for host, why in read_excluded(run.paths).hosts.items() if why.until is None}
    options = excluding(job.options, bad)
    if options == job.options:
        return job
    forgive = f"shardline doctor {shlex.quote(str(run.paths.root))} --forgive HOST"
    told = "; ".join(f"{host}: {why.reason}" for host, why in bad.items())
    log.warning(
        "the training is submitted without the hosts that the run has excluded (to use one: %s): %s", forgive, told
    )
    hint = f", or use a host again that the run has excluded ({', '.join(bad)}): {forgive}"
    return replace(job, options=options, hint=hint)


def stage_options(cluster: ClusterConfig, stage: str) -> list[str]:
    """Return the options of a stage's verb: an evaluation on several GPUs partitions the models over them."""
    gpus = job_request(cluster, stage).gpus
    return [f"--ranks={gpus}"] if stage == "evaluate" and gpus > 1 else []


def submit_all(run: RunConfig, snapshot: Snapshot, jobs: Sequence[Job]) -> list[str]:
    """Submit the jobs, each after the one before it; return their ids. If one is refused, none stays in the queue."""
    run.paths.logs.mkdir(parents=True, exist_ok=True)
    run.paths.submissions.mkdir(exist_ok=True)
    numbers: list[str] = []
    with hold_lock(LockFile(run.paths.submissions / "submit.lock", holder=Holder.here(SUBMITTING))):
        check_queue(run)
        snapshot.write()
        record = Record.begin(snapshot)
        try:
            for job in jobs:
                after = numbers[-1] if numbers else None
                numbers.append(submit(job, after))
                record.add(job, numbers[-1], after)
        except BaseException:
            if numbers:
                cancel(numbers)
                log.warning("removed again: %s", ", ".join(f"job {number}" for number in numbers))
            raise
    return numbers


def wait_for_word(jobs: Mapping[str, str]) -> bool:
    """Return False if Slurm has accepted jobs that it will not start as they are. It needs a moment to say so."""
    try:
        deadline = time.monotonic() + LOOK_S
        while (found := queued(jobs)) and found[0].is_undecided and time.monotonic() < deadline:
            time.sleep(LOOK_S / 8)
    except ClusterError as error:
        log.warning("submitted, but %s", error)
        return True
    stuck = [one for one in found if one.never_starts]
    for one in stuck:
        log.warning("%s will not start: %s", one, one.reason)
    if stuck:
        log.warning("take all out (scancel %s), correct `cluster`, and submit again", " ".join(jobs))
    return not stuck


def as_script(jobs: Sequence[Job], stages: Mapping[str, str]) -> str:
    """Return the commands as a script; each line keeps the id that the next one needs."""
    lines = []
    for place, job in enumerate(jobs):
        after = jobs[place - 1].stage if place else None
        lines += [f"# {job.stage}: {stages[job.stage]}", job.shell_line(after)]
    return "\n".join(lines)


def told(
    options: argparse.Namespace, run: RunConfig, jobs: Sequence[Job], numbers: Sequence[str], stages: Mapping[str, str]
) -> str:
    """Return what was submitted and what to type next."""
    width = max(len(job.stage) for job in jobs)
    lines = []
    for place, (job, number) in enumerate(zip(jobs, numbers, strict=True)):
        after = f"after job {numbers[place - 1]}" if place else stages[job.stage]
        lines.append(f"{job.stage:{width}}  job {number}, {after}")
    return "\n".join(
        [
            *lines,
            f"logs:    {shlex.quote(str(run.paths.logs))}/",
            f"follow:  shardline status {as_typed(options)} --watch",
            f"queue:   squeue --jobs={','.join(numbers)}",
            f"cancel:  scancel {' '.join(numbers)}",
        ]
    )
