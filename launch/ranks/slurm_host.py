"""One host of a Slurm job, as the task of srun that launch/train.sh starts there: it starts and restarts its ranks.

After a failure the ranks of all hosts start again in place, from the fork servers where there are some, if the
attempt made new steps and every host is still there. All else is for the job to decide, in slurm_job.py: these tasks
then end with the ranks' exit code, and srun with them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from cluster.environment import gpu_count, meeting_token, needs_gpus, patience, ranks_of_hosts, slurm_host, slurm_job
from cluster.errors import EXIT_FAILED, ClusterError, ShardlineError
from cluster.hosts.meeting import Hello
from cluster.hosts.ranks import run_on_hosts
from cluster.journal.log import set_up_logging
from cluster.journal.records import last_step, read_events
from cluster.launching.fork_server import fork_server_for
from cluster.launching.stop_request import ignore_signals
from cluster.machine import cpu_count
from cluster.network.world import HostPlace
from cluster.paths import RunPaths
from cluster.preflight.excluded_hosts import named_by_failures, read_excluded
from cluster.restart_limit import code_that_ranks_recorded, fruitless_launches, note_launch
from cluster.slurm.decision import SPAN_S
from cluster.versions import versions
from cluster.wording import count_of
from launch.ranks.news import news_of
from launch.ranks.this_command import this_command

log = logging.getLogger(__name__)


class LeftToTheJobError(Exception):
    """The ranks are not started again in place; the job, which waits for what passes by itself, decides."""


def train_on_slurm_host(
    paths: RunPaths, place: HostPlace, ranks: int, note: Callable[[Callable[[], None]], None]
) -> int:
    """Train with the other hosts of this Slurm job; return the exit code that all of them end with.

    `note` is that of slurm_job.py: it checks what can be known before ranks are started, and holds the run meanwhile.
    Raises ClusterError if this task has fewer GPUs than ranks.
    """
    check_gpus(ranks)
    same = {"version of Shardline": versions()["shardline"], "job": slurm_job(), "folder": str(paths.root.resolve())}
    hello = Hello(place=place, ranks=ranks, run=same, name=slurm_host(), token=meeting_token())
    launches = Launches(paths, note)
    command = this_command()
    set_up_logging(host=slurm_host(), is_first=place.number == 0)
    if (cpus := cpu_count()) < ranks:
        log.warning(
            "%s may run on %s only; look at the CPUs that the job asks for, and at options in"
            " SHARDLINE_SRUN_OPTIONS or the site's that bind tasks to CPUs",
            count_of(ranks, "rank"),
            count_of(cpus, "CPU"),
        )
    ignore_signals()  # before and after the ranks: srun sends TERM to the others when the first task ends with 75
    try:
        with fork_server_for(command, ranks, restart=True) as server:
            news = news_of(paths, slurm_host())
            return run_on_hosts(command, hello, launches.begin, restart=launches.may_follow, news=news, server=server)
    except (LeftToTheJobError, ClusterError, OSError) as error:  # a port in use: the next start takes another
        log.warning("the ranks are not started here: %s", error)
        return EXIT_FAILED


def check_gpus(ranks: int) -> None:
    if needs_gpus() and (gpus := gpu_count()) < ranks:
        raise ClusterError(
            f"{slurm_host()} has {count_of(ranks, 'rank')} of this job, but srun showed its task"
            f" {count_of(gpus, 'GPU')}: one task a host starts all ranks there; take what binds tasks to GPUs"
            " (--gpus-per-task, --gpu-bind) out of SHARDLINE_SRUN_OPTIONS"
        )


@dataclass
class Launches:
    """The launches of a run from one srun: the job has noted the first one."""

    paths: RunPaths
    note: Callable[[Callable[[], None]], None]
    count: int = 0
    named: Collection[str] = ()
    """The hosts that failures had named by the first one, about which the job has decided."""

    def begin(self) -> None:
        """Record a launch. Raises LeftToTheJobError."""
        if not self.count:
            self.named = self.named_hosts()
        else:
            try:
                self.note(lambda: note_launch(self.paths, span_s=SPAN_S * patience()))
            except (ShardlineError, OSError) as error:
                raise LeftToTheJobError(str(error)) from None
        self.count += 1

    def may_follow(self, are_all_there: bool) -> bool:
        """Return whether the ranks start again in place: after new steps, with no host lost, and none to be left.

        Not if they have recorded another end than a failure: a rank of a run that is done may crash as it ends.
        """
        try:
            if not are_all_there or self.paths.stop_request.exists():
                return False
            if code_that_ranks_recorded(self.paths) not in (None, EXIT_FAILED):
                return False
            if fruitless_launches(read_events(self.paths), last_step(self.paths.metrics)):
                return False
        except (ShardlineError, OSError) as error:
            log.warning("%s", error)
            return False
        return self.named_hosts() <= set(self.named)

    def named_hosts(self) -> set[str]:
        """Return the hosts that enough failures name to leave them, if the job has another one."""
        hosts = list(ranks_of_hosts())
        try:
            return (
                set(named_by_failures(read_events(self.paths), read_excluded(self.paths), hosts))
                if hosts[1:]
                else set()
            )
        except (ShardlineError, OSError) as error:
            log.warning("%s", error)
            return set()
