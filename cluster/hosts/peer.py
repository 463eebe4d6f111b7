"""A connection to another host, and a wait for one."""

from __future__ import annotations

import json
import logging
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.environment import patience
from cluster.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED

log = logging.getLogger(__name__)

TOLD_S = 10.0  # a wait that is longer is told
POLL_S = 0.1
SEND_S = 10.0  # that a peer has to take a message
# a host that is silent for a minute is gone: a cable that is out for less ends nothing
KEEP_ALIVE = (("SO_KEEPALIVE", 1), ("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 5))
LINE_BYTES = 1 << 22  # a longer line is not ours: a hello has all settings


@dataclass
class Peer:
    """A connection to another host."""

    connection: socket.socket
    name: str
    ranks: int = 0
    pending: bytes = b""
    lines: list[bytes] = field(default_factory=list)
    """What has come and was not taken yet: a reader may leave off after any message."""
    is_gone: bool = False
    is_cut_off: bool = False
    """Whether it is gone as the network was, so that it may be there still."""

    def __post_init__(self) -> None:
        self.connection.setblocking(False)
        for option, value in KEEP_ALIVE:
            level = socket.SOL_SOCKET if option.startswith("SO_") else socket.IPPROTO_TCP
            self.connection.setsockopt(level, getattr(socket, option), value)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what has come; a peer that has ended, or says what is not ours, is gone."""
        while not self.is_gone:
            try:
                received = self.connection.recv(LINE_BYTES)
            except BlockingIOError:
                break
            except ConnectionResetError:
                received = b""
            except OSError:  # nothing was heard for a minute: which of the two was cut off is not known
                received, self.is_cut_off = b"", True
            self.pending += received
            self.is_gone = not received or (b"\n" not in self.pending and len(self.pending) > LINE_BYTES)
        *lines, self.pending = self.pending.split(b"\n")
        self.lines += lines
        while self.lines:
            try:
                message = json.loads(self.lines.pop(0))
            except ValueError:
                message = None
            if not isinstance(message, dict):
                self.is_gone = True
                return
            yield message

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.connection.settimeout(SEND_S)  # a long message does not fit into the socket's buffer
            self.connection.sendall(json.dumps(message).encode() + b"\n")
            self.connection.setblocking(False)
        except OSError:
            self.is_gone = True

    @property
    def address(self) -> str:
        try:
            return str(self.connection.getpeername()[0]).removeprefix("::ffff:")
        except OSError:
            return "127.0.0.1"

    def close(self) -> None:
        self.connection.close()


@dataclass
class Patience:
    """A wait that ends with a signal or after `limit_s`, and is told once it is long."""

    asked: Sequence[int]
    limit_s: float
    began: float = field(default_factory=time.monotonic)
    told: bool = False

    def pause(self, what: str) -> int | None:
        """Wait a moment; return the exit code that the wait ends with, if it does."""
        waited_s = time.monotonic() - self.began
        if waited_s > self.limit_s:
            log.error("%s: not there within %.0f s", what, self.limit_s)
            return EXIT_FAILED
        if waited_s > TOLD_S * patience() and not self.told:
            self.told = True
            log.info("waiting up to %.0f s for %s", self.limit_s, what)
        time.sleep(POLL_S)
        return stopped_code(self.asked)


def stopped_code(asked: Sequence[int]) -> int | None:
    """Return the exit code for a wait that these signals have ended."""
    if not asked:
        return None
    return EXIT_INTERRUPTED if signal.SIGINT in asked else EXIT_STOPPED
