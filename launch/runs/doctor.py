"""`shardline doctor`: examine this machine, or all hosts of a Slurm job, before a run starts on them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import EXIT_DONE, ClusterError, ConfigError
from cluster.preflight.excluded_hosts import read_excluded, write_excluded
from cluster.preflight.findings import Finding, as_records, as_text, error_of, exit_code_of_findings
from cluster.preflight.gpu_checks import check_gpus, check_torch
from cluster.preflight.host_checks import (
    check_caches,
    check_clocks,
    check_code,
    check_files,
    check_folder,
    check_limits,
    check_name,
)
from cluster.preflight.network_checks import check_network
from cluster.preflight.slurm_facts import check_slurm
from cluster.terminal import size_of
from launch.arguments import add_overrides, not_negative
from launch.config import RunConfig
from launch.preflight.examine import ALONE, Examined, answer_part, examine, facts_here
from launch.saved_config import load
from launch.wording import say

WITHIN_S, LEAST_S = 55.0, 5.0
FLOOR_MB_PER_S = 50.0  # half of what a network of 1 Gbit/s carries
CHECKS = ("code", "gpus", "torch", "limits", "name", "network", "clocks", "folder", "files", "caches", "slurm")


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "run",
        type=Path,
        nargs="?",
        help="the run's YAML file, or its folder; without it, its disk and files are not examined",
    )
    add_overrides(command)
    command.add_argument("--json", action="store_true", help="print one JSON object, for scripts")
    command.add_argument(
        "--hosts", action="store_true", help="all hosts of this Slurm job: the default in one, an error outside"
    )
    command.add_argument("--facts", action="store_true", help="print this host's facts as JSON, for --compare")
    command.add_argument(
        "--compare", type=Path, nargs="+", metavar="FILE", help="examine facts that hosts without Slurm have printed"
    )
    command.add_argument(
        "--skip", action="append", default=[], choices=CHECKS, metavar="CHECK", help=f"leave out: {', '.join(CHECKS)}"
    )
    command.add_argument(
        "--network-floor",
        type=not_negative,
        default=FLOOR_MB_PER_S,
        metavar="MB_PER_S",
        help=f"the least that each host must receive by gloo ({FLOOR_MB_PER_S:g})",
    )
    command.add_argument(
        "--within", type=seconds, default=WITHIN_S, metavar="SECONDS", help=f"time for all checks ({WITHIN_S:g})"
    )
    command.add_argument(
        "--forgive",
        nargs="+",
        metavar="HOST",
        help="let the run's jobs on Slurm use hosts again that they have excluded; `all` for each of them",
    )
    for hidden in ("--part", "--meeting", "--peers"):  # what this command tells itself on each host
        command.add_argument(hidden, help=argparse.SUPPRESS)
    command.add_argument("--from", dest="from_run", type=Path, help=argparse.SUPPRESS)
    command.add_argument("--part-within", type=float, default=WITHIN_S, help=argparse.SUPPRESS)


def seconds(text: str) -> float:
    """Parse the time for all checks."""
    value = not_negative(text)
    if value < LEAST_S:
        raise argparse.ArgumentTypeError(f"{text}: Python itself takes a second to start; give {LEAST_S:g} or more")
    return value


def run(options: argparse.Namespace) -> int:
    """Examine the hosts and say what is right, what is doubtful, and what stops a run. Returns 2 for the last."""
    began = time.monotonic()
    run = None if options.run is None else load(options)
    if options.part:
        return answer_part(run, options)
    if options.forgive:
        return forgive(run, options.forgive)
    if options.facts:
        say(json.dumps(facts_here(run, None, (), options.within * ALONE), indent=1))
        return EXIT_DONE
    examined = examine(run, options)
    findings = judge(examined, options)
    code = exit_code_of_findings(findings)
    took_s = time.monotonic() - began
    if options.json:
        record = {"version": 1, "exit_code": code, "took_s": round(took_s, 1), "findings": as_records(findings)}
        say(json.dumps({**record, "hosts": examined.asked, "facts": examined.hosts}, indent=1))
    else:
        say(as_text(findings, len(examined.asked), took_s, max(60, min(100, size_of(sys.stdout)[0]))))
    return code


def forgive(run: RunConfig | None, names: Sequence[str]) -> int:
    """Take hosts off the run's list of excluded ones. Raises ClusterError if one is not on it."""
    if run is None:
        raise ConfigError("--forgive: name the run as well, before it: its YAML file or its folder")
    excluded = read_excluded(run.paths)
    hosts = list(excluded.hosts) if names == ["all"] else list(names)
    if unknown := [host for host in hosts if host not in excluded.hosts]:
        there = ", ".join(excluded.hosts) or "none"
        raise ClusterError(
            f"--forgive {' '.join(unknown)}: not excluded from {run.paths.root}; excluded there: {there}"
        )
    write_excluded(run.paths, excluded.forgiving(hosts))
    say(f"the run's next jobs may use again: {', '.join(hosts) or 'no host was excluded'}")
    say("for a job that waits in the queue, tell Slurm too: scontrol update JobId=JOB ExcNodeList=")
    return EXIT_DONE


def judge(examined: Examined, options: argparse.Namespace) -> list[Finding]:
    """Return the findings of all checks that were not left out, in their order."""
    hosts, is_job = examined.hosts, bool(examined.skews_s)
    names = list(hosts)
    room = None if error_of(examined.room) else examined.room
    checks = {
        "code": lambda: check_code(hosts),
        "gpus": lambda: check_gpus(hosts),
        "torch": lambda: check_torch(hosts),
        "limits": lambda: check_limits(hosts),
        "name": lambda: check_name(hosts),
        "network": lambda: (
            check_network(names, examined.measured, examined.network_problems, options.network_floor) if is_job else []
        ),
        "clocks": lambda: check_clocks(examined.skews_s) if is_job else [],
        "folder": lambda: check_folder(hosts, room, examined.unseen),
        "files": lambda: check_files(hosts),
        "caches": lambda: check_caches(hosts),
        "slurm": lambda: check_slurm(hosts) if is_job else [],
    }
    without_run = () if any("folder" in facts for facts in hosts.values()) else ("folder", "files")
    left_out = (*options.skip, *without_run)
    findings = [*unanswered(examined.problems), *unknown_room(examined.room)]
    if hosts:
        findings += [finding for name in CHECKS if name not in left_out for finding in checks[name]()]
    return findings


def unanswered(problems: dict[str, str]) -> list[Finding]:
    """Return a failure for each host without facts."""
    return [
        Finding(
            check="hosts",
            level="failure",
            hosts=(host,),
            found=f"it gave no facts: {why}",
            expected="an answer from every host of the job",
            next_step=f"srun --overlap --nodelist={host} hostname; sinfo -R; submit again with --exclude={host}",
        )
        for host, why in problems.items()
    ]


def unknown_room(room: Any) -> list[Finding]:
    """Return a warning if the plan, which says how large checkpoints are, could not be made."""
    why = error_of(room)
    if why is None:
        return []
    return [
        Finding(
            check="plan",
            level="warning",
            found=f"the size of checkpoints is not known: {why}",
            expected="a plan",
            next_step="shardline check RUN.yaml",
        )
    ]
