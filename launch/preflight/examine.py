"""Collect the facts that `shardline doctor` judges: of this machine, of a Slurm job's hosts, or from files."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cluster.environment import HOSTS, LAUNCHER, enter_world, read_world, variables
from cluster.errors import EXIT_DONE, ClusterError, ConfigError
from cluster.machine import hold_port, host_name
from cluster.network.world import World, rank_variables
from cluster.preflight.all_hosts import MARK, ask_hosts
from cluster.preflight.deadline import Probe, answers
from cluster.preflight.findings import error_of
from cluster.preflight.gpu_probes import probe_gpus
from cluster.preflight.host_probes import (
    probe_caches,
    probe_clock,
    probe_code,
    probe_files,
    probe_folder,
    probe_limits,
    probe_name,
)
from cluster.preflight.meeting import meeting_in, unseen_in
from cluster.preflight.one_step import printed
from cluster.preflight.slurm_facts import job_hosts, probe_slurm, tasks_of_step
from cluster.progress import Waiting
from cluster.wording import count_of
from data_prep.shards import MANIFEST
from launch.config import RunConfig
from launch.preflight.room import room_needed
from launch.wording import say
from training.torch_probes import measure_network, probe_torch

ALONE, OF_FIRST, OF_HOSTS, OF_NETWORK = 0.9, 0.2, 0.45, 0.35  # shares of the time for all checks
PROBES = 0.6  # the share of a host's time before torch is asked, which must not be seen as another user of a GPU
FACTS_VERSION = 1  # raised when a check asks for facts that an earlier version does not print
START = "start"  # the part that a job asks of its hosts before it starts ranks
PEERS = 3  # so many other hosts are enough to find the interface that leads to them


@dataclass
class Examined:
    """The facts of all hosts, and what only the first one knows."""

    hosts: dict[str, dict[str, Any]]
    asked: list[str]
    problems: dict[str, str] = field(default_factory=dict)  # of hosts without facts
    skews_s: dict[str, float] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)
    room: Any = None  # bytes that checkpoints still need, or {"error": why} if that is not known
    measured: dict[str, Any] = field(default_factory=dict)
    network_problems: dict[str, str] = field(default_factory=dict)


def examine(run: RunConfig | None, options: argparse.Namespace) -> Examined:
    """Return the facts of the files that were named, of the job's hosts, or of this machine."""
    if options.compare:
        hosts = {str(facts["name"]["name"]): facts for facts in map(read_facts, options.compare)}
        if len(hosts) < len(options.compare):
            raise ConfigError("--compare: two files are of the same host; name one file a host")
        return Examined(hosts, list(hosts))
    if tasks_of_step() > 1:
        raise ClusterError(
            f"srun started this command {tasks_of_step()} times; start it once, in the batch script or in salloc: it"
            " reaches the job's hosts by itself"
        )
    names = job_hosts()
    if names:
        return examine_job(run, names, options)
    if options.hosts:
        raise ClusterError("--hosts: this is no Slurm job; without Slurm, use --facts on each host and then --compare")
    with Waiting("examining this machine"):
        facts = facts_here(run, None, (), options.within * ALONE, with_room=True)
    return Examined({host_name(): facts}, [host_name()], room=facts.pop("room", None))


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts in a file. Raises ConfigError if it does not hold any."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        is_ours = facts["version"] == FACTS_VERSION and not error_of(facts["name"])
    except (ValueError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        raise ConfigError(
            f"{path}: no facts of a host by this version; write it again: shardline doctor --facts > {path}"
        )
    return dict(facts)


def facts_as_told(run: RunConfig | None, options: argparse.Namespace, *, with_room: bool = False) -> dict[str, Any]:
    """Return this host's facts for the doctor that has started this process."""
    meeting = None if options.meeting is None else Path(options.meeting)
    peers = (options.peers or "").split(",")
    return facts_here(run, meeting, peers, options.part_within, with_room=with_room)


def facts_here(
    run: RunConfig | None, meeting: Path | None, peers: Sequence[str], within_s: float, *, with_room: bool = False
) -> dict[str, Any]:
    """Return this host's facts: each probe in a process of its own, none for longer than its share of the time."""
    began = time.monotonic()
    probes: dict[str, Probe] = {
        "code": probe_code,
        "gpus": probe_gpus,
        "limits": probe_limits,
        "name": partial(probe_name, peers),
        "caches": probe_caches,
    }
    if run is not None:
        probes["folder"] = partial(probe_folder, run.paths.root, meeting)
        probes["files"] = partial(probe_files, run.model.path, (run.shards / MANIFEST).absolute())
        if with_room:
            probes["room"] = partial(room_needed, run)
    facts = answers(probes, within_s * PROBES)
    facts |= answers({"torch": probe_torch}, max(1.0, within_s - (time.monotonic() - began)))
    return {"version": FACTS_VERSION, **facts, "clock": probe_clock()}


def examine_job(run: RunConfig | None, names: list[str], options: argparse.Namespace) -> Examined:
    """Return the facts of all hosts of this Slurm job, and what they measure together."""
    within_s = options.within
    first: dict[str, Probe] = {"slurm": probe_slurm} | ({} if run is None else {"room": partial(room_needed, run)})
    known = answers(first, within_s * OF_FIRST)
    with nullcontext() if run is None else meeting_in(run.paths.root) as meeting:
        words = [
            "--part",
            "facts",
            "--part-within",
            f"{within_s * OF_HOSTS * ALONE:g}",
            "--peers",
            ",".join(names[:PEERS]),
        ]
        words += [] if meeting is None else ["--meeting", str(meeting)]
        with Waiting(f"asking {count_of(len(names), 'host')}"):
            hosts, problems, times = ask_hosts(names, own_command(options, words), within_s * OF_HOSTS)
        examined = Examined(hosts, names, {host: why for host, why in problems.items() if host not in hosts})
        examined.unseen = unseen_in(meeting, hosts)
    examined.skews_s = {host: facts["clock"] - times[host] for host, facts in hosts.items()}
    examined.room = known.get("room")
    if hosts:
        hosts[next(iter(hosts))]["slurm"] = known["slurm"]
    if len(hosts) > 1 and "network" not in options.skip:
        measure_together(examined, options)
    return examined


def own_command(options: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """Return this command for another host, with `words` added."""
    return [sys.executable, *own_words(options, words)]


def own_words(options: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """Return what follows Python in `shardline doctor` about the run that `options` name, with `words` added."""
    overrides = [word for override in options.overrides for word in ("-o", override)]
    named = [] if options.run is None else [str(options.run), *overrides]
    other = getattr(options, "from_run", None)  # of `shardline train`: the model and the shards are that run's
    return ["-m", "launch", "doctor", *named, *([] if other is None else ["--from", str(other)]), *words]


def measure_together(examined: Examined, options: argparse.Namespace) -> None:
    """Have the hosts that answered meet by gloo, and note what they measured."""
    names = list(examined.hosts)

    def variables_of(number: int) -> dict[str, str | None]:
        master = (names[0], int(held.getsockname()[1]))
        world = World(rank=number, size=len(names), local_rank=0, local_size=1, master=master)
        return {**rank_variables(world), LAUNCHER: None, HOSTS: " ".join(names[:2])}

    words = ["--part", "network", "--part-within", f"{options.within * OF_NETWORK * ALONE:g}"]
    with hold_port() as held, Waiting(f"measuring the network of {count_of(len(names), 'host')}"):
        measured, problems, _ = ask_hosts(names, own_command(options, words), options.within * OF_NETWORK, variables_of)
    examined.measured, examined.network_problems = measured, problems
    if len(measured) == len(names):  # read at the same moment: better than when the facts arrived
        base = measured[names[0]]["clock"]
        examined.skews_s = {host: facts["clock"] - base for host, facts in measured.items()}


def answer_part(run: RunConfig | None, options: argparse.Namespace) -> int:
    """Print the facts that another doctor, which has started this one on a host, has asked for."""
    if options.part == "facts":
        say(MARK + json.dumps(facts_as_told(run, options)))
        return EXIT_DONE
    if options.part == START:
        node = variables("SLURMD_NODENAME", "SLURM_NODEID")
        facts = facts_as_told(run, options, with_room=node.get("SLURM_NODEID") == "0")
        say("\n".join(printed(node.get("SLURMD_NODENAME", host_name()), facts)))
        return EXIT_DONE
    return print_network(options)


def print_network(options: argparse.Namespace) -> int:
    """Measure the network as one of several hosts, and print each state of the facts."""
    world = read_world()
    if world is None:
        raise ClusterError("--part is for this command's own use; start: shardline doctor")
    enter_world(world)  # as a rank does, with the interface that leads to the other hosts
    for facts in measure_network(world, options.part_within):
        say(MARK + json.dumps(facts))
        sys.stdout.flush()
    return EXIT_DONE
