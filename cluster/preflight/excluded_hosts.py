"""The hosts that a run no longer uses: `excluded_hosts.json` in its folder, and what puts a host there.

Two failures that name the same host exclude it, and so does a preflight that finds it broken, until a person forgives
it. One that gave no answer is used again after some hours, by jobs that do not know of it yet: the job that has left it
does not get it back, as Slurm keeps a job's list of excluded nodes through its requeues.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cluster.disk.atomic_files import write_json
from cluster.errors import EXIT_FAILED, ClusterError
from cluster.paths import RunPaths

VERSION = 1
FAILURES = 2  # attempts that name one host, which exclude it
SILENT_H = 6.0  # for which a host is left out that gave no answer; a broken one is until a person forgives it
MOST_REQUEUES = 3  # to get rid of hosts, in a row without a new step
ENDINGS = ("end", "no-start")
BLAMED = re.compile(r"\branks? (?:[\d,-]+ )?on ([A-Za-z0-9][\w.-]*)|^([A-Za-z0-9][\w.-]*) was lost$")
NOT_BY_HOST = "out of memory"  # the job's limit, and the rank that needs most, are on the same host each time


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Why a host is left out, since when, and until when; None: until a person forgives it."""

    reason: str
    time: str
    until: str | None = None

    def is_over(self) -> bool:
        return self.until is not None and datetime.fromisoformat(self.until) <= datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class ExcludedHosts:
    """`forgiven` holds when a person last forgave each host: failures before that no longer count.

    `requeues` holds the run's step at each requeue that was to get rid of hosts.
    """

    hosts: Mapping[str, Exclusion] = field(default_factory=dict)
    forgiven: Mapping[str, str] = field(default_factory=dict)
    requeues: tuple[int, ...] = ()

    def requeues_without_progress(self, reached: int) -> int:
        """Return how many requeues in a row were not followed by a new step; `reached` is the run's last one."""
        return sum(step >= reached for step in self.requeues)

    def excluding(self, reasons: Mapping[str, str], reached: int, silent: Collection[str] = ()) -> ExcludedHosts:
        """Return the list with these hosts, and one more requeue. A host that is there keeps its first reason.

        But one that was left for some hours is left until it is forgiven once it is not silent alone.

        The `silent` ones are left out for SILENT_H only: a disk or a network that was slow is not always slow.
        """
        until = (datetime.now(UTC) + timedelta(hours=SILENT_H)).isoformat(timespec="seconds")
        new = {
            host: Exclusion(reason=reason, time=now(), until=until if host in silent else None)
            for host, reason in reasons.items()
        }
        for host, why in self.hosts.items():
            if host not in new or why.until is None or new[host].until is not None:
                new[host] = why
        return replace(self, hosts=new, requeues=(*self.requeues, reached))

    def forgiving(self, names: Iterable[str]) -> ExcludedHosts:
        """Return the list without these hosts, and with no requeue counted."""
        names = set(names)
        hosts = {host: why for host, why in self.hosts.items() if host not in names}
        return ExcludedHosts(hosts=hosts, forgiven={**self.forgiven, **dict.fromkeys(names, now())})


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_excluded(paths: RunPaths) -> ExcludedHosts:
    """Return the run's list without what is over; empty without a file. Raises ClusterError for a damaged one."""
    path = paths.excluded_hosts
    if not path.is_file():
        return ExcludedHosts()
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["version"]
        if version == VERSION:
            hosts = {str(host): Exclusion(**why) for host, why in record["hosts"].items()}
            return ExcludedHosts(
                hosts={host: why for host, why in hosts.items() if not why.is_over()},
                forgiven={str(host): moment_of(time) for host, time in record["forgiven"].items()},
                requeues=tuple(int(step) for step in record["requeues"]),
            )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ClusterError(f"{path}: damaged; remove it: all hosts may then be used again") from None
    raise ClusterError(
        f"{path}: version {version!r}, but this Shardline reads {VERSION}; use the newer one, or remove it"
    )


def moment_of(text: str) -> str:
    """Return a time as it is. Raises ValueError if it is none."""
    datetime.fromisoformat(text)
    return text


def write_excluded(paths: RunPaths, excluded: ExcludedHosts) -> None:
    """Write the run's list whole or not at all; without an `until` that is not set, which earlier versions refuse."""
    record = asdict(excluded)
    hosts = {
        host: {key: text for key, text in why.items() if text is not None} for host, why in record["hosts"].items()
    }
    write_json(paths.excluded_hosts, {"version": VERSION, **record, "hosts": hosts})


def named_by_failures(
    events: Sequence[Mapping[str, Any]], excluded: ExcludedHosts, nodes: Sequence[str]
) -> dict[str, str]:
    """Return those of a job's nodes that FAILURES failures or more name, each with the newest reason.

    A failure counts for a host only if it names no other one: two hosts that blame each other are a cable.
    """
    node_of = {node.partition(".")[0]: node for node in nodes}  # a rank knows its host, Slurm may call it otherwise
    reasons: dict[str, list[str]] = {}
    for failures in launches(events):
        named = {host for event in failures for host in hosts_of(event)}
        node = node_of.get(min(named).partition(".")[0]) if len(named) == 1 else None
        if node is None or node in excluded.hosts:
            continue
        newest, forgiven = failures[-1], excluded.forgiven.get(node)
        if forgiven is None or datetime.fromisoformat(newest["time"]) > datetime.fromisoformat(forgiven):
            reasons.setdefault(node, []).append(str(newest["reason"]))
    return {
        node: f"{len(told)} failures named it; the last one: {told[-1]}"
        for node, told in reasons.items()
        if len(told) >= FAILURES
    }


def launches(events: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return the failures of each launch that has some, oldest first; stops and refusals are none."""
    found: list[list[Mapping[str, Any]]] = [[]]
    for event in events:
        if event["event"] == "launch":
            found.append([])
        elif event["event"] in ENDINGS and event["exit_code"] == EXIT_FAILED:
            found[-1].append(event)
    return [failures for failures in found if failures]


def hosts_of(event: Mapping[str, Any]) -> set[str]:
    """Return the hosts that a failure's reason names: those of the ranks that hung or were killed, or lost ones."""
    reason = str(event["reason"])
    if NOT_BY_HOST in reason:
        return set()
    return {rank_host or lost for rank_host, lost in BLAMED.findall(reason)}


def excluded_text(paths: RunPaths) -> str:
    """Return the excluded hosts with their reasons, for a run's status; nothing without any."""
    try:
        hosts = read_excluded(paths).hosts
    except ClusterError as error:
        return str(error)
    return "; ".join(
        f"{host} since {why.time}{'' if why.until is None else f' until {why.until}'}: {why.reason}"
        for host, why in hosts.items()
    )
