"""The first host of a run on several hosts: the others connect to it, and it decides for all of them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.environment import is_under_srun, patience
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, ClusterError, exit_code_of
from cluster.hosts.meeting import END_S, MEET_S, Decision, Ended, Hello, Met, other_settings
from cluster.hosts.peer import POLL_S, Patience, Peer
from cluster.launching.exit_codes import combined, first_cause
from cluster.launching.local_launcher import Seats
from cluster.machine import hold_port

log = logging.getLogger(__name__)

WISHES = (signal.SIGUSR1, signal.SIGUSR2)  # not TERM, which srun sends to all tasks after one has failed


@dataclass
class FirstHost:
    """The host that the others connect to, and that decides for all of them. `asked` holds the signals that came."""

    hello: Hello
    asked: Sequence[int]
    server: socket.socket | None = None
    strangers: list[Peer] = field(default_factory=list)
    peers: dict[int, Peer] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    """The hosts whose launchers have ended."""
    told: int | None = None
    """The exit code that the others know."""
    held: socket.socket | None = None
    """Holds the port where the ranks meet, until these have ended."""
    causes: list[str] = field(default_factory=list)
    """Which ranks were killed and which hosts were lost, in the order in which it was heard."""

    def __post_init__(self) -> None:
        place = self.hello.place
        if place.count > 1:
            self.server = listen(place.master[1])

    def meet(self, note: Callable[[], None]) -> Met | int:
        waiting = Patience(self.asked, MEET_S * patience())
        while True:
            try:
                self.welcome()
                if not self.missing():
                    note()
                    return self.seat()
            except BaseException as error:
                self.tell({"end": exit_code_of(error), "why": str(error) or type(error).__name__})
                raise
            code = waiting.pause(f"hosts {', '.join(map(str, self.missing()))} of {self.hello.place.count}")
            if code is not None:
                self.tell({"end": code, "why": "it was stopped, or not all hosts came"})
                return code

    def missing(self) -> list[int]:
        return [number for number in range(1, self.hello.place.count) if number not in self.peers]

    def welcome(self) -> None:
        """Take in the hosts that have connected, and forget those that have gone. Raises ClusterError."""
        while self.server is not None:
            try:
                connection, address = self.server.accept()
            except BlockingIOError:
                break
            self.strangers.append(Peer(connection, str(address[0])))
        for peer in list(self.strangers):
            for message in peer.messages():
                self.strangers.remove(peer)
                self.take(peer, message)
                break
            else:
                if peer.is_gone:  # a port that is probed
                    self.strangers.remove(peer)
                    peer.close()
        for number, peer in list(self.peers.items()):
            list(peer.messages())
            if peer.is_gone:
                log.warning("host %d (%s) has left; waiting for it to come back", number, peer.name)
                self.peers.pop(number).close()

    def take(self, peer: Peer, message: dict[str, Any]) -> None:
        """Seat a host that has said hello. Raises ClusterError if it is not one of this run."""
        if message.get("shardline") is None or not isinstance(message.get("ranks"), int):
            peer.close()
            return
        peer.name = str(message.get("name"))
        if message.get("token") != self.hello.token:
            log.warning("%s (%s) connected to this port, but was not started with this host", peer.name, peer.address)
            peer.close()
            return
        why = self.refusal(message)
        number = message.get("host")
        earlier = None if why else self.peers.pop(int(message["host"]), None)
        if earlier is not None and earlier.name != peer.name:
            why = f"two hosts say PET_NODE_RANK={number}: {earlier.name} and {peer.name}"
            self.strangers.append(earlier)
        if why:
            self.strangers.append(peer)
            raise ClusterError(why)
        peer.ranks = int(message["ranks"])
        self.peers[int(message["host"])] = peer

    def refusal(self, message: dict[str, Any]) -> str:
        """Return why a host cannot take part; "" if it can."""
        own, name = self.hello.message(), message.get("name")
        other = other_settings(message.get("run"), own["run"])
        if message.get("shardline") != own["shardline"] or other:
            return (
                f"host {message.get('host')} ({name}) starts another run than host 0 ({own['name']}):"
                f" {other or 'it is of another version of Shardline'}; start the same checkout with the same YAML and"
                " folder on all hosts"
            )
        if message.get("hosts") != own["hosts"] or message.get("host") not in range(1, own["hosts"]):
            return (
                f"{name} is host {message.get('host')} of {message.get('hosts')}, but {own['name']} is host 0 of"
                f" {own['hosts']}; see PET_NODE_RANK and PET_NNODES on both"
            )
        return ""

    def seat(self) -> Met:
        """Tell each host its ranks; return this host's."""
        self.codes, self.told, self.causes, self.left = {}, None, [], set()
        place = self.hello.place
        ranks = [self.hello.ranks, *(self.peers[number].ranks for number in range(1, place.count))]
        self.held = hold_port()
        master = (place.master[0], int(self.held.getsockname()[1]))
        hosts = [place.master[0], self.peers[1].address] if self.peers else [place.master[0]]
        for number, peer in self.peers.items():
            first = sum(ranks[:number])
            peer.send({"seats": {"first": first, "size": sum(ranks), "port": master[1]}, "hosts": hosts})
        if self.peers:
            log.info("all %d hosts are there; ranks: %s", place.count, ", ".join(map(str, ranks)))
        return Met(seats=Seats(first=0, size=sum(ranks), master=master), hosts=hosts)

    def elsewhere(self) -> int | None:
        for number, peer in self.peers.items():
            for message in peer.messages():
                if "code" in message:
                    self.codes[number] = int(message["code"])
                    self.left |= {number} if message.get("leaves") else set()
                    self.causes += [str(cause) for cause in message.get("causes", [])]
            if peer.is_gone and number not in self.codes:
                self.codes[number] = EXIT_FAILED
                self.causes.append(f"{'the connection to ' if peer.is_cut_off else ''}{peer.name} was lost")
                log.warning("host %d (%s) is gone", number, peer.name)
        worst = combined(list(self.codes.values()))
        if worst == EXIT_DONE:
            return None
        self.tell_code(worst)
        return worst

    def finish(self, code: int, causes: Sequence[str], decide: Decision) -> tuple[int, bool]:
        self.causes += causes
        if code != EXIT_DONE:
            self.tell_code(code)
        deadline = time.monotonic() + END_S * patience()
        while len(self.codes) < len(self.peers) and time.monotonic() < deadline:
            self.elsewhere()
            time.sleep(POLL_S)
        silent = set(self.peers) - set(self.codes)
        for number in silent:
            log.warning("the ranks of host %d (%s) have not ended", number, self.peers[number].name)
            self.codes[number] = EXIT_FAILED
        total = combined([code, *self.codes.values()])
        if total == EXIT_FAILED and any(number in WISHES for number in self.asked):
            log.warning("the ranks failed after they were asked to stop: the next start has the newest checkpoint")
            total = EXIT_STOPPED  # else who asked for it finds the run going on
        are_all_there = not silent and not self.left and not any(peer.is_gone for peer in self.peers.values())
        again = decide(Ended(code=total, cause=first_cause(self.causes), are_all_there=are_all_there))
        self.tell({"end": total, "again": again})
        self.forget()
        return total, again

    def leave(self, cause: str) -> None:
        self.tell_code(EXIT_FAILED)

    def tell_code(self, code: int) -> None:
        if code != self.told:
            self.told = code
            self.tell({"code": code})

    def tell(self, message: dict[str, Any]) -> None:
        for peer in (*self.peers.values(), *self.strangers):
            peer.send(message)

    def forget(self) -> None:
        for peer in (*self.peers.values(), *self.strangers):
            peer.close()
        self.peers, self.strangers = {}, []
        if self.held is not None:
            self.held.close()
            self.held = None

    def close(self) -> None:
        self.forget()
        if self.server is not None:
            self.server.close()


def listen(port: int) -> socket.socket:
    """Listen on all addresses of this host, IPv6 too where it has it. Raises ClusterError."""
    both = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
        )
    except OSError as error:
        why = f"this host cannot listen there ({os.strerror(error.errno or 0)})"
        if is_under_srun():
            raise ClusterError(f"port {port}: {why}; the next start takes another port") from None
        raise ClusterError(f"PET_MASTER_PORT={port}: {why}; set a port that is free on it") from None
    server.setblocking(False)
    return server
