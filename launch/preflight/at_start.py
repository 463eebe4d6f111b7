"""The preflight of a job: all hosts are asked at once before ranks are started, and a fault is looked at twice."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.environment import patience, rank_words
from cluster.preflight.findings import Facts, Finding, Hosts, error_of
from cluster.preflight.gpu_checks import check_gpus, check_torch
from cluster.preflight.host_checks import check_code, check_files, check_folder, check_limits, check_name
from cluster.preflight.meeting import meeting_in, unseen_in
from cluster.preflight.one_step import ask_together
from cluster.preflight.verdict import Verdict, decide, of_working_checks, told
from cluster.slurm.layout import Layout
from cluster.submission.config import job_request
from cluster.wording import count_of
from launch.config import RunConfig
from launch.preflight.examine import PEERS, START, own_words
from launch.preflight.host_guard import HostGuard

log = logging.getLogger(__name__)

FIRST_S, SECOND_S = 30.0, 20.0  # for all hosts; once more for those that failed or did not answer
OWN_SHARE = 0.85  # of that time, which a host has once its Python is up
PAUSE_S = 2.0  # a rank of the attempt before, or a disk, may need a moment
CHECKS: Mapping[str, Callable[[Hosts], list[Finding]]] = {
    "code": check_code,
    "gpus": check_gpus,
    "torch": check_torch,
    "limits": check_limits,
    "name": check_name,
    "files": check_files,
}
OF_GPUS = ("gpus", "torch")  # a job to which Slurm has given none trains on CPUs, whatever its hosts have


@dataclass(frozen=True)
class Preflight:
    """Asks the hosts of this job, as `options` of `shardline train` name the run."""

    run: RunConfig
    options: argparse.Namespace

    def verdict(self, layout: Layout, is_stopping: Callable[[], bool]) -> Verdict:
        """Examine the job's hosts, log what is wrong, and return what follows; nothing once the job is to stop."""
        began = time.monotonic()
        hosts, checks = layout.hosts, [name for name in CHECKS if layout.has_gpus or name not in OF_GPUS]
        facts: dict[str, Facts] = {}
        unseen: list[str] = []
        again: Sequence[str] = hosts
        for within_s in (FIRST_S, SECOND_S):
            if again is not hosts:
                time.sleep(PAUSE_S * patience())
            more, silent, more_unseen = self.ask(again, within_s, is_stopping)
            if is_stopping():
                return Verdict()
            facts |= more
            silent = {host: why for host, why in silent.items() if host not in facts}
            unseen = [host for host in unseen if host not in again] + more_unseen
            verdict = decide(findings := judge(facts, unseen, checks), hosts, silent)
            if not (again := [*hosts] if verdict.refusal else [*verdict.broken, *verdict.silent]):
                break
        tell(findings, silent)
        log.info("preflight of %s: %.1f s", count_of(len(hosts), "host"), time.monotonic() - began)
        # a container may still be on its way to a host
        options, python = rank_words()
        return replace(verdict, silent={}) if options or len(python) > 1 else verdict

    def ask(
        self, hosts: Sequence[str], within_s: float, is_stopping: Callable[[], bool]
    ) -> tuple[dict[str, Facts], dict[str, str], list[str]]:
        """Return the facts of the hosts, why others gave none, and whose file in the run's folder is not seen here."""
        options, python = rank_words()
        with meeting_in(self.run.paths.root) as meeting:
            words = ["--part", START, "--part-within", f"{within_s * OWN_SHARE:g}", "--peers", ",".join(hosts[:PEERS])]
            words += [] if meeting is None else ["--meeting", str(meeting)]
            command = [*python, *own_words(self.options, words)]
            answers = ask_together(hosts, options, command, within_s, is_stopping)
            unseen = unseen_in(meeting, answers.facts)
        facts = {host: answers.facts[host] for host in hosts if host in answers.facts}
        return facts, {host: answers.problem(host, within_s) for host in hosts if host not in facts}, unseen


def guard_of(run: RunConfig, options: argparse.Namespace) -> HostGuard:
    """Return what keeps a job of this run off bad hosts."""
    least = None if run.cluster is None else job_request(run.cluster, "train").min_nodes
    return HostGuard(run.paths, Preflight(run, options).verdict, least)


def tell(findings: Sequence[Finding], silent: Mapping[str, str]) -> None:
    """Log what is wrong."""
    for finding in findings:
        is_known = finding.check == "name"  # the ranks find the interface that leads to the other hosts
        if finding.level == "failure" or (finding.level == "warning" and not is_known):
            log.warning("preflight: %s", told(finding))
    for host, why in silent.items():
        log.warning("preflight: %s gave no facts: %s", host, why)


def judge(hosts: Mapping[str, Facts], unseen: Sequence[str], checks: Sequence[str]) -> list[Finding]:
    """Return what these checks, and that of the run's folder, find about hosts that gave facts."""
    working, mistakes = of_working_checks(hosts)
    room = next((facts["room"] for facts in hosts.values() if facts.get("room") is not None), None)
    findings = list(mistaken(mistakes))
    if having := {host: facts for host, facts in working.items() if "folder" in facts}:
        found = check_folder(having, None, unseen)
        lacking = [one for one in check_folder(having, None if error_of(room) else room, unseen) if one not in found]
        # a run may come to its end with less room than all of its checkpoints would take
        findings += [*found, *(replace(one, level="warning") for one in lacking if one.level == "failure")]
    for name in checks:
        if having := {host: facts for host, facts in working.items() if name in facts}:
            findings += CHECKS[name](having)
    return findings


def mistaken(mistakes: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Yield a warning for each check that failed by itself, which says nothing about the hosts."""
    for check, errors in mistakes.items():
        yield Finding(
            check=check,
            level="warning",
            hosts=tuple(errors),
            found=f"this could not be checked: {next(iter(errors.values()))}",
            expected="an answer; the ranks are started without it",
            next_step="`shardline doctor` with the run's YAML says more",
        )
