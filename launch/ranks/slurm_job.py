"""`shardline train --under-slurm`, which launch/train.sh becomes in a Slurm job: start the ranks until the run ends."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.environment import (
    DEVICE,
    END_TIME,
    GPU,
    LAUNCHER,
    MEETING,
    RANKS,
    SRUN,
    patience,
    rank_names,
    rank_words,
    slurm_variables,
)
from cluster.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_USER_ACTION,
    ClusterError,
)
from cluster.paths import RunPaths
from cluster.restart_limit import note_launch
from cluster.slurm.controller import FEW, TRIES, Controller
from cluster.slurm.decision import FINAL, SPAN_S, SRUN_BACK_OFF_S, Next, Wishes, back_off_s, decide
from cluster.slurm.job import SlurmJob, read_job
from cluster.slurm.layout import Layout, plan_layout
from cluster.slurm.srun_output import BEGINS
from cluster.slurm.step import StepEnd, StopSignals, run_step
from cluster.wording import count_of
from launch.config import RunConfig
from launch.preflight.host_guard import HostGuard
from launch.ranks.news import log_of_newest
from launch.ranks.patience import tried_again
from launch.ranks.run_record import RunRecord

log = logging.getLogger(__name__)

UNDER_SLURM = "--under-slurm"
LOOKED_AFTER = 4  # failures of srun itself in a row, two minutes: then the hosts are examined again
# Run by sh on each host. Until Python is up, a signal that asks it to stop would kill it. A folder or a Python
# that is not there is a failure, and srun's own exit code for it, 2, would mean that a person must act.
ENTER = f'echo "{BEGINS}" >&2; trap "" TERM USR1 USR2; cd -- "$0" || exit 127; exec "$@"'


def train_in_job(paths: RunPaths, note: Callable[[Callable[[], None]], None], guard: HostGuard) -> int:
    """Start the ranks of this job, again after failures, and requeue the job where that is meant; return its exit code.

    `note` checks what can be known before ranks are started, and calls its argument while it holds the run.
    """
    job = read_job(slurm_variables(), ask=lambda number: Controller(str(number), patience()).record())
    launcher = Launcher(paths, note, job, Controller(job.name, patience()), patience(), guard=guard)
    with launcher.signals.installed():
        return launcher.run()


def load_in_job(load: Callable[[], RunConfig]) -> RunConfig:
    """Return the job's run; in one that was requeued, a disk that is away is waited for."""
    was_requeued = slurm_variables().get("SLURM_RESTART_COUNT", "0") != "0"
    run = tried_again(load, lambda seconds: time.sleep(seconds * patience()), is_first=not was_requeued)
    assert run is not None  # nothing stops it
    return run


@dataclass
class Launcher:
    """Starts the ranks of one job, and decides what follows when they have ended."""

    paths: RunPaths
    note: Callable[[Callable[[], None]], None]
    job: SlurmJob
    controller: Controller
    patience: float
    guard: HostGuard | None = None
    signals: StopSignals = field(default_factory=StopSignals)
    starts: int = 0
    failures: int = 0
    """Starts without a new step since the last one with one."""
    reached: int = 0
    """The furthest step that was seen."""
    srun_failures: int = 0
    """How often in a row srun failed by itself, without starting the ranks."""

    @property
    def record(self) -> RunRecord:
        return RunRecord(self.paths)

    def run(self) -> int:
        if self.job.restarts and self.record.wants_stop():  # a site can requeue what ends with 75 (RequeueExit)
            log.warning("%s exists: nothing is started; submit again to resume", self.paths.stop_request)
            return EXIT_USER_ACTION
        layout = self.layout()
        self.record.tell_not_requeued()
        self.note_patiently()
        if not self.job.restarts:
            self.paths.stop_request.unlink(missing_ok=True)  # it was meant for an earlier job
        self.reached = self.record.last_step()
        if self.guard and (code := self.guard.before_ranks(self.controller, layout, self.reached, self.is_stopping)):
            return code
        while True:
            end = self.start_ranks(layout)
            code = EXIT_FAILED if end.is_own else end.code
            facts = self.controller.facts()
            wishes = Wishes(stop_file=self.record.wants_stop(), interrupt=self.signals.is_interrupted)
            following = decide(code, facts, wishes)
            if following is not Next.RESTART:
                return self.end(following, code)
            if left := self.leave(layout, end):
                return left
            if end.is_own:
                continue
            logs = log_of_newest(self.paths, "*")
            log.warning("the ranks ended with %d: restarting them%s; their logs: %s", code, self.pause_told(), logs)
            self.pause(back_off_s(self.failures))
            if not self.signals.asked:
                self.note_patiently()

    def leave(self, layout: Layout, end: StepEnd) -> int | None:
        """Return the job's exit code if it was requeued for other hosts; where srun itself has failed, wait first."""
        if end.is_own:
            self.pause(self.srun_pause_s(end))
        if self.guard is None or self.signals.asked:
            return None
        if not end.is_own:
            return self.guard.after_failure(self.controller, layout, self.reached)
        if self.srun_failures == LOOKED_AFTER:  # a host may start nothing any more since the preflight
            return self.guard.before_ranks(self.controller, layout, self.reached, self.is_stopping)
        return None

    def end(self, following: Next, code: int) -> int:
        if following is Next.STAY_OUT:
            reason = "interrupted" if self.signals.is_interrupted else f"{self.paths.stop_request} exists"
            log.warning("%s: not put back into the queue; submit again to resume", reason)
        elif following is Next.REQUEUE and not self.controller.requeue():
            log.warning("not put back into the queue; submit again to resume")
            self.record.note_not_requeued(self.job.name)
        return code

    def layout(self) -> Layout:
        """Return where the ranks run. Raises ClusterError."""
        job = self.job
        hosts = self.controller.hosts(job.node_list)
        # a shell of `salloc` has no variable that tells; where one does, the answer must be waited for
        gpus = self.controller.gpus(tries=TRIES if job.gpus else FEW)
        if job.gpus and not gpus:
            gpus = dict.fromkeys(hosts, job.gpus)
        if job.gpus and not any(gpus.values()):
            told = "the environment tells of %s a host, but Slurm gave this job none: training on CPUs"
            log.warning(told, count_of(job.gpus, "GPU"))
        tasks = self.asked_tasks() or tuple(tasks_in_file(job.task_file, hosts))
        layout = plan_layout(hosts, job.cpus, tasks, gpus)
        if len(set(layout.ranks)) > 1:
            log.info("ranks: %s", ", ".join(f"{n} on {host}" for host, n in zip(hosts, layout.ranks, strict=True)))
        return layout

    def asked_tasks(self) -> tuple[int, ...] | None:
        """Return the tasks of each host that sbatch was told, None if it was told none.

        SLURM_NTASKS may be left over from the job that sbatch was called in, and equal the CPUs of this one by chance.
        """
        tasks = self.job.tasks
        if tasks == ():
            return self.tasks_of_job()
        if tasks is None or max(tasks) == 1 or self.controller.tasks() in (None, sum(tasks)):
            return tasks
        log.warning("SLURM_NTASKS=%d is left over from another job, and not what this one asked for", sum(tasks))
        return None

    def tasks_of_job(self) -> tuple[int, ...] | None:
        """Return the tasks of each host where the variables are those of a step. Raises ClusterError if it is unclear.

        What Slurm knows about a job says how many tasks it has, but not where.
        """
        total, nodes = self.controller.tasks() or 0, self.job.nodes
        if total % nodes or not total:
            raise ClusterError(
                f"this shell is a step of job {self.job.name} (`srun --pty`?), and does not tell how many tasks each of"
                f" its {nodes} hosts has; start it in the shell of `salloc` itself, or submit it with sbatch"
            )
        return (total // nodes,) * nodes

    def start_ranks(self, layout: Layout) -> StepEnd:
        """Run the ranks once; return how they ended, with 75 if they were asked to stop before they could start."""
        if self.signals.asked:
            code = EXIT_INTERRUPTED if self.signals.is_interrupted else EXIT_STOPPED
            self.record.note_stop(code)
            return StepEnd(code=code)
        step = f"shardline-{os.getpid()}-{self.starts}"
        end = run_step(
            self.command(layout, step),
            self.variables(layout),
            self.signals,
            lambda: self.lists(step),
            lambda: self.controller.kill_step(self.job.number, step),
            self.patience,
        )
        self.starts += 1
        if end.is_own and self.record.has_begun():  # srun's options may send what the ranks' shells write elsewhere
            end = replace(end, is_own=False, cause=None)
        if end.is_own:
            self.srun_failures += 1
            return end
        said = self.record.exit_code()  # srun may tell of ranks that it then killed, or that memory once ran out
        if end.code not in FINAL and said in (EXIT_USER_ACTION, EXIT_DONE, EXIT_STOPPED):
            end = replace(end, code=said)
        self.srun_failures = 0
        before, self.reached = self.reached, max(self.reached, self.record.last_step())
        self.failures = 0 if self.reached > before else self.failures + 1
        if self.signals.asked:  # who is killed then did not save in time, or Ctrl-C was pressed twice: no host's fault
            self.record.note_stop(EXIT_INTERRUPTED if self.signals.is_interrupted else end.code)
        elif end.code == EXIT_STOPPED:
            self.record.note_stop(end.code)  # only the ranks were asked, perhaps before they had begun
        elif end.cause and end.code not in FINAL:
            self.record.note_cause(end.cause)
        return end

    def srun_pause_s(self, end: StepEnd) -> float:
        """Return the pause before srun is called again; raise ClusterError once it has failed for ten minutes."""
        if self.srun_failures > len(SRUN_BACK_OFF_S):
            self.record.note_cause(f"srun could not start the ranks: {end.cause}")
            raise ClusterError(
                f"srun failed {self.srun_failures} times without starting the ranks; at last with: {end.cause}. Look at"
                f" the hosts with `sinfo -R`, and at the options in SHARDLINE_SRUN_OPTIONS, then submit again"
            )
        seconds = SRUN_BACK_OFF_S[self.srun_failures - 1]
        told = "srun could not start the ranks (%s): trying again in %.0f s; the run is not to blame"
        log.warning(told, end.cause, seconds * self.patience)
        return seconds

    def lists(self, step: str) -> bool | None:
        listed = self.controller.steps(self.job.number)
        return None if listed is None else step in listed

    def command(self, layout: Layout, step: str) -> list[str]:
        arguments = [argument for argument in sys.argv[1:] if argument != UNDER_SLURM]
        srun = ["srun", "--export=ALL", "--mpi=none", "--overlap", "--kill-on-bad-exit=1", f"--job-name={step}"]
        enter = ["sh", "-c", ENTER, str(Path.cwd())]
        options, python = rank_words()
        return [*srun, *layout.options, *options, *enter, *python, "-m", "launch", *arguments]

    def variables(self, layout: Layout) -> dict[str, str | None]:
        """Return the changes to the environment of srun and its tasks; a port of its own for each start."""
        port = 20000 + (self.job.number * 10 + self.job.restarts + self.starts) % 10000
        end_time = self.controller.end_time()
        return {
            **dict.fromkeys(rank_names()),  # those of a rank that the job was submitted from
            **({} if end_time is None else {END_TIME: str(end_time)}),
            LAUNCHER: SRUN,
            DEVICE: GPU if layout.has_gpus else None,
            MEETING: secrets.token_hex(8),
            RANKS: " ".join(f"{host}:{ranks}" for host, ranks in zip(layout.hosts, layout.ranks, strict=True)),
            "MASTER_ADDR": self.controller.addresses(layout.hosts[:2])[0],
            "MASTER_PORT": str(port),
            "SLURM_GPUS_PER_NODE": None,  # options say it, if there are any
            "SLURM_DISTRIBUTION": None,
            "SLURM_HOSTFILE": None,
        }

    def note_patiently(self) -> None:
        """Record the launch. What a disk that is away for a minute can cause is tried again, not in a first start."""
        tried_again(
            lambda: self.note(self.note_attempt),
            self.pause,
            is_first=not self.starts and not self.job.restarts,
            is_stopping=self.is_stopping,
        )

    def note_attempt(self) -> None:
        note_launch(self.paths, span_s=SPAN_S * self.patience)

    def pause(self, seconds: float) -> None:
        """Wait, unless a signal asks to stop."""
        until = time.monotonic() + seconds * self.patience
        while not self.signals.asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    def pause_told(self) -> str:
        seconds = back_off_s(self.failures) * self.patience
        return f" in {seconds:.0f} s, as they made no new step" if seconds else ""

    def is_stopping(self) -> bool:
        return bool(self.signals.asked)


def tasks_in_file(path: Path | None, hosts: Sequence[str]) -> list[int]:
    """Return how often each host is named in the file of `--distribution=arbitrary`; 1 for each without such a file."""
    if path is None:
        return [1] * len(hosts)
    try:
        named = Counter(path.read_text(encoding="utf-8").split())
    except OSError as error:
        raise ClusterError(f"{path}: {error.strerror}; SLURM_HOSTFILE must be readable inside the job") from None
    if set(named) != set(hosts):
        raise ClusterError(f"{path}: names {', '.join(sorted(named))}, but the job has {', '.join(hosts)}")
    return [named[host] for host in hosts]
