"""Which hosts answer over the network? Asked when the ranks hang: the disk that they share may be on another one."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Sequence

ANSWER_S = 3.0
NO_WAY = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}


def unreachable(hosts: Sequence[str], port: int, timeout_s: float = ANSWER_S) -> list[str]:
    """Return the hosts that nothing comes back from; one that refuses the connection has answered.

    A name that cannot be looked up, or not in time, says nothing about its host.
    """
    silent: set[str] = set()
    threads = [threading.Thread(target=ask, args=(host, port, timeout_s, silent), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 2 * timeout_s  # looking up a name has no timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [host for host in hosts if host in silent]


def ask(host: str, port: int, timeout_s: float, silent: set[str]) -> None:
    """Add the host to `silent` if it does not answer."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except TimeoutError:
        silent.add(host)
    except OSError as error:
        if error.errno in NO_WAY:
            silent.add(host)
