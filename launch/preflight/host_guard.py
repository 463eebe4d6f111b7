"""What a job does about bad hosts: excludes them from the run and starts on others, if there are some.

Nothing here may lose a job that would have trained: in doubt the ranks are started, and how they end decides.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from cluster.environment import wants_preflight
from cluster.errors import EXIT_STOPPED, EXIT_USER_ACTION, ClusterError
from cluster.journal.records import read_events, write_event
from cluster.paths import RunPaths
from cluster.preflight.excluded_hosts import MOST_REQUEUES, named_by_failures, read_excluded, write_excluded
from cluster.preflight.verdict import Verdict
from cluster.slurm.bad_hosts import NoAnswerError, requeue_without, why_no_others
from cluster.slurm.controller import Controller
from cluster.slurm.layout import Layout

log = logging.getLogger(__name__)

REMEDY = (
    "`shardline doctor RUN.yaml` says more; SHARDLINE_PREFLIGHT=off in launch/site.env starts the ranks all the same"
)


@dataclass(frozen=True)
class Refusal:
    """Why the ranks cannot start, and what to do."""

    text: str


@dataclass(frozen=True)
class HostGuard:
    """Keeps one job off bad hosts.

    `examine` is the preflight, which ends early once its second argument says that the job is to stop. `least_hosts` is
    how few hosts the job may have; None if that is not known.
    """

    paths: RunPaths
    examine: Callable[[Layout, Callable[[], bool]], Verdict]
    least_hosts: int | None = None

    def before_ranks(
        self, controller: Controller, layout: Layout, reached: int, is_stopping: Callable[[], bool]
    ) -> int | None:
        """Return the job's exit code if it was requeued for other hosts; None to start the ranks here.

        `reached` is the run's last step. Raises ClusterError if the ranks cannot start here, and nowhere else.
        """
        try:
            outcome: int | Refusal | None = self.excluded_before(controller, layout, reached)
            if outcome is None and wants_preflight() and (layout.has_gpus or len(layout.hosts) > 1):
                outcome = self.follow(self.examine(layout, is_stopping), controller, layout, reached)
        except (ClusterError, OSError) as error:
            log.warning("no preflight: %s; the ranks are started without it", error)
            return None
        except Exception:  # a mistake in it says nothing about the hosts
            log.exception("the preflight itself failed: the ranks are started without it")
            return None
        if isinstance(outcome, Refusal):
            self.record("no-start", step=reached, reason=outcome.text, exit_code=EXIT_USER_ACTION)
            raise ClusterError(outcome.text)
        return outcome

    def after_failure(self, controller: Controller, layout: Layout, reached: int) -> int | None:
        """Return the job's exit code if it was requeued without a host that failures name; None to continue here."""
        if len(layout.hosts) == 1:
            return None  # whatever the cause, no other host could be named
        try:
            bad = named_by_failures(read_events(self.paths), read_excluded(self.paths), layout.hosts)
            return self.leave_if_possible(bad, controller, layout, reached)
        except (ClusterError, OSError) as error:
            log.warning("whether a host is to blame is not known: %s", error)
            return None

    def excluded_before(self, controller: Controller, layout: Layout, reached: int) -> int | None:
        """Leave hosts that the run has excluded before, which a new job does not know of, or that failures name."""
        listed = read_excluded(self.paths).hosts
        bad = {host: listed[host].reason for host in layout.hosts if host in listed}
        if bad:
            silent = [host for host in bad if listed[host].until is not None]
            return self.leave_if_possible(bad, controller, layout, reached, silent)
        return self.after_failure(controller, layout, reached)

    def follow(self, verdict: Verdict, controller: Controller, layout: Layout, reached: int) -> int | Refusal | None:
        """Act on what the preflight has found."""
        if verdict.refusal:
            return Refusal(f"preflight: {verdict.refusal}. {REMEDY}")
        silent = {host: f"no facts: {why}" for host, why in verdict.silent.items() if host not in verdict.broken}
        bad = {host: f"preflight: {why}" for host, why in {**silent, **verdict.broken}.items()}
        if not verdict.broken:
            return self.leave_if_possible(bad, controller, layout, reached, silent)
        try:
            why_not = self.leave(bad, controller, layout, reached, silent)
        except NoAnswerError as error:
            log.warning("%s: the ranks are started on the hosts that there are", error)
            return None
        if not why_not:
            return EXIT_STOPPED
        names = ",".join(verdict.broken)
        return Refusal(
            f"preflight: {told(verdict.broken)}; the job gets no other hosts: {why_not}. Have {names} repaired, or"
            f" submit again with --exclude={names}. {REMEDY}"
        )

    def leave_if_possible(
        self,
        bad: Mapping[str, str],
        controller: Controller,
        layout: Layout,
        reached: int,
        silent: Collection[str] = (),
    ) -> int | None:
        """Return the job's exit code if it was requeued without these hosts; None to use them all the same."""
        if not bad:
            return None
        try:
            why_not = self.leave(bad, controller, layout, reached, silent)
        except NoAnswerError as error:
            why_not = str(error)
        if why_not:
            log.warning("%s; used all the same: %s", told(bad), why_not)
        return None if why_not else EXIT_STOPPED

    def leave(
        self,
        bad: Mapping[str, str],
        controller: Controller,
        layout: Layout,
        reached: int,
        silent: Collection[str] = (),
    ) -> str:
        """Exclude hosts from the run and requeue the job; return why that cannot be, nothing if it is done.

        The `silent` ones are excluded for some hours. Raises NoAnswerError.
        """
        excluded = read_excluded(self.paths)
        if excluded.requeues_without_progress(reached) >= MOST_REQUEUES:
            return f"the run was requeued {MOST_REQUEUES} times for other hosts without a new step"
        excluded = excluded.excluding(bad, reached, silent)
        least = min(self.least_hosts or len(layout.hosts), len(layout.hosts))
        if why_not := why_no_others(controller, layout.hosts, excluded.hosts, least):
            return why_not
        write_excluded(self.paths, excluded)  # before the requeue: the next start reads it
        for host, reason in bad.items():
            log.warning("%s is excluded from this run: %s", host, reason)
            self.record("host-excluded", host=host, reason=reason)
        if not requeue_without(controller, excluded.hosts):
            return "Slurm refused to requeue it"
        times = excluded.requeues_without_progress(reached)
        log.warning(
            "job %s is requeued for other hosts (%d of %d times without a new step)",
            controller.job,
            times,
            MOST_REQUEUES,
        )
        log.warning("to use a host again: shardline doctor %s --forgive HOST", shlex.quote(str(self.paths.root)))
        self.record("no-start", step=reached, reason=f"requeued: {told(bad)}", exit_code=EXIT_STOPPED)
        return ""

    def record(self, event: str, **facts: object) -> None:
        """Write an event of the run; where the disk fails, the log has it."""
        try:
            write_event(self.paths, event, **facts)
        except OSError as error:
            log.warning("%s: %s", self.paths.attempts, error.strerror)


def told(bad: Mapping[str, str]) -> str:
    return "; ".join(f"{host}: {reason}" for host, reason in bad.items())
