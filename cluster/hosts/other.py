"""Any host of a run on several hosts but the first one."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.environment import patience
from cluster.errors import EXIT_FAILED
from cluster.hosts.meeting import END_S, MEET_S, Decision, Hello, Met
from cluster.hosts.peer import POLL_S, Patience, Peer
from cluster.launching.exit_codes import combined
from cluster.launching.local_launcher import Seats

log = logging.getLogger(__name__)


@dataclass
class OtherHost:
    """A host that connects to the first one. `asked` holds the signals that came."""

    hello: Hello
    asked: Sequence[int]
    first: Peer | None = None
    code: int | None = None
    end: tuple[int, bool] | None = None

    def meet(self, note: Callable[[], None]) -> Met | int:
        address, port = self.hello.place.master
        waiting = Patience(self.asked, MEET_S * patience())
        problem = ""
        while True:
            if self.first is None:
                self.code = self.end = None
                problem = self.connect()
            if self.first is not None:
                met = self.answer(self.first)
                if met is not None:
                    return met
                if self.first.is_gone:
                    self.close()
            code = waiting.pause(f"the first host at {address}:{port} ({problem})")
            if code is not None:
                return code

    def connect(self) -> str:
        """Connect to the first host; return why that did not work."""
        try:
            connection = socket.create_connection(self.hello.place.master, timeout=2.0)
        except OSError as error:
            return str(error)
        self.first = Peer(connection, self.hello.place.master[0])
        self.first.send(self.hello.message())
        return "it waits for other hosts"

    def answer(self, first: Peer) -> Met | int | None:
        """Return what the first host has answered; None before it has."""
        for message in first.messages():
            if "why" in message:
                log.error("the first host has ended: %s", message["why"])
                return int(message["end"])
            if "seats" not in message:  # of the start before
                continue
            found = message["seats"]
            seats = Seats(
                first=int(found["first"]),
                size=int(found["size"]),
                master=(self.hello.place.master[0], int(found["port"])),
            )
            first_rank, last_rank = seats.first, seats.first + self.hello.ranks - 1
            here = str(first_rank) if first_rank == last_rank else f"{first_rank} to {last_rank}"
            log.info("all %d hosts are there; ranks here: %s", self.hello.place.count, here)
            return Met(seats=seats, hosts=message["hosts"])
        return None

    def elsewhere(self) -> int | None:
        assert self.first is not None
        for message in self.first.messages():
            if "code" in message:
                self.code = int(message["code"])
            elif "end" in message:
                self.end = (int(message["end"]), bool(message["again"]))
        if self.first.is_gone and self.code is None and self.end is None:
            self.code = EXIT_FAILED
            log.warning("the first host (%s) is gone", self.first.name)
        return self.code if self.end is None else self.end[0]

    def finish(self, code: int, causes: Sequence[str], decide: Decision) -> tuple[int, bool]:
        assert self.first is not None
        self.first.send({"code": code, "causes": list(causes)})
        deadline = time.monotonic() + 1.25 * END_S * patience()
        while self.end is None and not self.first.is_gone and time.monotonic() < deadline:
            self.elsewhere()
            time.sleep(POLL_S)
        total, again = self.end or (combined([code, EXIT_FAILED]), False)
        if self.end is None:
            log.warning("the first host did not say how the run has ended")
        self.close()
        return total, again

    def leave(self, cause: str) -> None:
        if self.first is not None:
            self.first.send({"code": EXIT_FAILED, "causes": [cause], "leaves": True})

    def close(self) -> None:
        if self.first is not None:
            self.first.close()
        self.first = None
