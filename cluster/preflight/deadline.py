"""Run probes side by side, each in a process of its own, so that none can hang the others or the command."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cluster.launching.local_launcher import die_with_parent

Probe = Callable[[], Any]  # returns JSON values


@dataclass
class Child:
    """A process that runs a probe, the end of the pipe that it answers through, and what came so far."""

    pid: int
    pipe: int
    received: bytearray = field(default_factory=bytearray)
    has_ended: bool = False


def answers(probes: Mapping[str, Probe], within_s: float) -> dict[str, Any]:
    """Return what each probe returned, or {"error": why} if it raised, died or had not answered after `within_s`.

    A probe that waits for a dead disk or a driver cannot even be killed: it is left behind, and this function returns.
    """
    deadline = time.monotonic() + within_s
    children = {name: start(probe) for name, probe in probes.items()}
    try:
        receive(children, deadline)
    finally:
        for child in children.values():
            if not child.has_ended:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
    return {name: answer_of(child, within_s) for name, child in children.items()}


def start(probe: Probe) -> Child:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        die_with_parent()
        run_as_child(probe, writing)
    os.close(writing)
    with suppress(PermissionError, ProcessLookupError):  # also here, so that the group is there before it is killed
        os.setpgid(pid, pid)
    return Child(pid, reading)


def run_as_child(probe: Probe, writing: int) -> None:
    """Write the probe's answer to the pipe and end this process, without what the parent does at its own exit."""
    silence = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(silence, standard)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        text = json.dumps(probe())
    except BaseException as error:  # noqa: BLE001  # whatever it is, the parent tells it as this check's failure
        text = json.dumps({"error": f"{type(error).__name__}: {error}"})
    with suppress(OSError), os.fdopen(writing, "wb") as pipe:
        pipe.write(text.encode())
    os._exit(0)


def receive(children: Mapping[str, Child], deadline: float) -> None:
    """Read from all pipes until all are closed or the time is over."""
    waiting = {child.pipe: child for child in children.values()}
    while waiting and (left := deadline - time.monotonic()) > 0:
        for pipe in select.select(list(waiting), [], [], left)[0]:
            block = os.read(pipe, 1 << 16)
            waiting[pipe].received += block
            if not block:
                child = waiting.pop(pipe)
                os.waitpid(child.pid, 0)
                child.has_ended = True


def answer_of(child: Child, within_s: float) -> Any:
    os.close(child.pipe)
    if not child.has_ended:
        os.waitpid(child.pid, os.WNOHANG)
        return {"error": f"no answer within {within_s:g} s"}
    try:
        return json.loads(child.received)
    except ValueError:
        return {"error": "it ended without an answer, as after a crash in a library or for want of memory"}
