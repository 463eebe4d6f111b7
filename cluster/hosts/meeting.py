"""What the hosts of a run say to each other: who is there, which ranks each gets, how it ends.

The first host listens at PET_MASTER_PORT; the others connect and say who they are. The connections last as long as the
ranks: a host that ends or is lost is known to all of them within seconds, where its peers' collectives would wait.
Messages are lines of JSON: hello and code from a host; seats, code and end from the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.environment import HostPlace, host_name
from cluster.launching.local_launcher import Seats

MEET_S = 900.0  # that hosts are waited for: they may still be starting, or pulling an image
END_S = 120.0  # from the end of the ranks here to that of the ranks elsewhere
PROTOCOL = 1


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a host says about itself. `run` is a digest of what must be the same on all: configuration, shards, code."""

    place: HostPlace
    ranks: int
    run: str

    def message(self) -> dict[str, Any]:
        return {
            "shardline": PROTOCOL,
            "host": self.place.number,
            "hosts": self.place.count,
            "ranks": self.ranks,
            "name": host_name(),
            "run": self.run,
        }


@dataclass(frozen=True, kw_only=True)
class Met:
    """The ranks of this host in the next start, and two hosts, the first one first, that tell which network to use."""

    seats: Seats
    hosts: Sequence[str]


class Meeting(Protocol):
    """One host's side of it."""

    def meet(self, note: Callable[[], None]) -> Met | int:
        """Wait for all hosts; return this one's ranks, or the exit code of a start that does not come about.

        `note` is called on the first host, once all are there: what it raises ends all of them.
        """
        ...

    def elsewhere(self) -> int | None:
        """Return the exit code other than 0 that another host has ended with, if one has."""
        ...

    def finish(self, code: int, is_again: Callable[[int], bool]) -> tuple[int, bool]:
        """Tell the others this host's exit code; return that of all, and whether all start again: the first decides."""
        ...

    def close(self) -> None: ...
