"""The fork server's side of cluster/launching/fork_server.py: it forks ranks that are as those that are started afresh.

A rank's parent is the launcher: the process between the server and the rank ends at once, and the launcher adopts the
rank. So the launcher gets its exit code, and the rank dies with the launcher and not with the server.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cluster.environment import replace_environment
from cluster.errors import EXIT_DONE, EXIT_FAILED
from cluster.launching.fork_server import ANSWER_S, CHECK, MOST_BYTES, USABLE
from cluster.launching.local_launcher import die_with_parent

FORK_SERVER_NAME = "fork-server"
SET_APART = {  # from the ranks
    Path("/proc/self/oom_score_adj"): "1000",  # where memory runs out, the kernel ends the server before anything else
    Path("/proc/self/comm"): FORK_SERVER_NAME,  # as `top` shows it
}
THREAD_END_S = 1.0
MADE_ANEW = "jemalloc_bg_thd"  # pyarrow's, after a fork too


def set_apart() -> dict[Path, str]:
    """Set this process apart from ranks for the kernel and whoever looks; return what to write to be a rank again."""
    before = {path: path.read_text().strip() for path in SET_APART}
    for path, value in SET_APART.items():
        path.write_text(value)
    return before


def lasting_threads() -> list[str]:
    """Return the threads beside the first one, which a fork would lose; those that are just ending have a moment."""
    deadline = time.monotonic() + THREAD_END_S
    while (found := threads()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def threads() -> list[str]:
    named = {str(thread.native_id): thread.name for thread in threading.enumerate()}
    found = []
    for path in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            name = (path / "comm").read_text().strip()
            found += [named.get(path.name, name)] if path.name != str(os.getpid()) and name != MADE_ANEW else []
    return found


def become_ranks(control: socket.socket, changed: Callable[[], str], before: Mapping[Path, str]) -> None:
    """Fork a rank each time that the launcher asks for one. Returns in each rank; the server itself ends here.

    `changed` tells in words what is no longer as it was when it was imported, "" if nothing is; `before` is what
    `set_apart` has returned.
    """
    launcher = os.getppid()
    control.send(USABLE)
    while True:
        message, descriptors, *_ = socket.recv_fds(control, MOST_BYTES, 1)
        if not message:  # the launcher has ended, or needs no server any more
            os._exit(EXIT_DONE)
        if message == CHECK:
            control.send(told_change(changed).encode()[:MOST_BYTES] or USABLE)
            continue
        if is_rank():
            control.close()
            enter(socket.socket(fileno=descriptors[0]), launcher)
            for path, value in before.items():
                path.write_text(value)
            return
        os.close(descriptors[0])


def told_change(changed: Callable[[], str]) -> str:
    try:
        return changed()
    except OSError as error:
        return f"whether the code has changed cannot be told: {error}"


def is_rank() -> bool:
    """Fork twice; return True in the second process, which the launcher adopts as soon as the first has ended."""
    try:
        between = os.fork()
    except OSError:  # no process or memory for it: the launcher hears nothing of a rank, and starts one
        return False
    if between:
        os.waitpid(between, 0)
        return False
    try:
        is_second = os.fork() == 0
    except OSError:
        is_second = False
    if not is_second:
        os._exit(EXIT_DONE)
    return True


def enter(own: socket.socket, launcher: int) -> None:
    """Be what `start_rank` would have started: a child of the launcher that dies with it, in its own process group.

    Takes the environment from the launcher, once that has this rank's number; without one, nobody waits for this rank.
    """
    deadline = time.monotonic() + ANSWER_S
    while os.getppid() != launcher and time.monotonic() < deadline:
        time.sleep(0.001)
    os.setpgid(0, 0)
    die_with_parent()
    if os.getppid() != launcher:
        os._exit(EXIT_FAILED)
    try:
        with own, own.makefile("rb") as stream:
            own.sendall(str(os.getpid()).encode())
            environment = json.loads(stream.read())
    except (OSError, ValueError):  # the launcher waits for this rank no longer
        os._exit(EXIT_FAILED)
    replace_environment(environment)
