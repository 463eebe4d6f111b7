"""Give a job other hosts: put it back into the queue with bad ones excluded, if there are others that would do.

Slurm takes a list of excluded nodes only for a job that waits, so the job is requeued first. Slurm then holds it back
(cred_expire, two minutes by default) and gives its script KillWait to end: the list is there before it starts again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from cluster.errors import ClusterError
from cluster.slurm.controller import REFUSAL, Controller, ask

log = logging.getLogger(__name__)

USABLE = ("alloc", "boot", "comp", "idle", "mix", "plnd", "resv")  # how sinfo's short names of states begin
GONE = "*"  # follows the state of a node that does not answer
NOTHING = ("", "(null)", "None", "N/A")
NODES = "--format=%N|%t|%c|%G|%f"  # name, state, CPUs, GPUs, features
TRIES, PAUSE_S = 20, 1.0  # a job that was just requeued may need a moment until it counts as waiting


class NoAnswerError(ClusterError):
    """Slurm has not answered for minutes: what it would have said is not known."""


def why_no_others(controller: Controller, own: Sequence[str], bad: Collection[str], least: int) -> str:
    """Return why the job cannot run on `least` or more hosts without the `bad` ones; nothing if it can.

    `own` are the job's hosts. Only nodes of its partition that have the CPUs, GPUs and features of one of them count:
    whether Slurm would take others is not known, and a job that no node can run waits for ever. Raises NoAnswerError.
    """
    facts = job_facts(controller)
    if facts.get("BatchFlag") != "1":
        return "this is no batch job, which alone can be requeued"
    if facts.get("Requeue") == "0":
        return "it may not be requeued (Requeue=0)"
    if not set(bad).isdisjoint(names_in(controller, facts, "ReqNodeList")):
        return "it was submitted with --nodelist"
    partition = facts.get("Partition", "")
    nodes = nodes_like(own, answer(controller, "sinfo", "--noheader", "--Node", f"--partition={partition}", NODES))
    nodes -= {*bad, *names_in(controller, facts, "ExcNodeList")}
    if (reservation := facts.get("Reservation", "")) not in NOTHING:
        nodes &= reserved_nodes(controller, reservation)
    if len(nodes) >= least:
        return ""
    return f"partition {partition} has {len(nodes)} other usable nodes of its kind, and it needs {least}"


def requeue_without(controller: Controller, bad: Collection[str]) -> bool:
    """Put the job back into the queue, to start on other hosts; return whether Slurm took it back.

    Raises NoAnswerError. If only the list cannot be set, the next start finds itself on an excluded host.
    """
    excluded = {*bad, *names_in(controller, job_facts(controller), "ExcNodeList")}
    requeued = controller.ask_until_answered("scontrol", "requeue", controller.job)
    if requeued is None:
        raise NoAnswerError(f"`scontrol requeue {controller.job}` was not answered")
    if requeued == REFUSAL:
        return False
    change = ("scontrol", "update", f"JobId={controller.job}", f"ExcNodeList={','.join(sorted(excluded))}")
    for tries in range(TRIES):
        if ask(*change, show=tries == TRIES - 1) not in (None, REFUSAL):
            return True
        time.sleep(PAUSE_S * controller.patience)
    log.warning("Slurm did not take the list of excluded nodes: %s", " ".join(change))
    return True


def job_facts(controller: Controller) -> Mapping[str, str]:
    """Return what Slurm says about the job, by its names for it. Raises NoAnswerError."""
    told = answer(controller, "scontrol", "--oneliner", "show", "job", controller.job)
    return dict(part.split("=", 1) for part in told.split() if "=" in part)


def answer(controller: Controller, *command: str) -> str:
    """Return what a command of Slurm answers. Raises NoAnswerError."""
    told = controller.ask_until_answered(*command)
    if told is None or told == REFUSAL:
        raise NoAnswerError(f"`{' '.join(command)}` was not answered")
    return told


def names_in(controller: Controller, facts: Mapping[str, str], key: str) -> list[str]:
    """Return the nodes that a fact about the job lists; none if it lists none."""
    nodes = facts.get(key, "")
    return [] if nodes in NOTHING else controller.hosts(nodes)


def nodes_like(own: Iterable[str], listed: str) -> set[str]:
    """Return the nodes in a state to be used sooner or later, and of the kind of one of `own`."""
    kinds: dict[str, str] = {}
    usable = set()
    for line in listed.splitlines():
        name, state, kind = [*line.strip().split("|", 2), "", ""][:3]
        kinds[name] = kind
        if state.startswith(USABLE) and GONE not in state:
            usable.add(name)
    wanted = {kinds[name] for name in own if name in kinds}
    return {name for name in usable if kinds[name] in wanted}


def reserved_nodes(controller: Controller, reservation: str) -> set[str]:
    told = answer(controller, "scontrol", "--oneliner", "show", "reservation", reservation)
    facts = dict(part.split("=", 1) for part in told.split() if "=" in part)
    return set(names_in(controller, facts, "Nodes"))
