"""What the hosts of a run say to each other: who is there, which ranks each gets, how it ends.

The first host listens at PET_MASTER_PORT; the others connect and say who they are. The connections last as long as the
ranks: a host that ends or is lost is known to all of them within seconds, where its peers' collectives would wait.
Messages are lines of JSON: hello, code and end from a host; seats, code and end from the first one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.launching.local_launcher import Seats
from cluster.machine import host_name
from cluster.network.world import HostPlace
from cluster.wording import count_of

MEET_S = 900.0  # that hosts are waited for: they may still be starting, or pulling an image
END_S = 120.0  # from the end of the ranks here to that of the ranks elsewhere
PROTOCOL = 3
SETTINGS_BYTES = 1 << 20  # a hello must stay below the LINE_BYTES of a peer
SHOWN_KEYS, SHOWN_CHARS = 5, 200


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a host says about itself. `run` is what must be the same on all: each setting, the shards, the code."""

    place: HostPlace
    ranks: int
    run: Mapping[str, Any]
    name: str = field(default_factory=host_name)
    token: str = ""
    """What hosts that were started together share: who does not have it is of another start, and is not listened to."""

    def settings(self) -> dict[str, str]:
        """Return `run` with each value as text, of which a long one is a beginning and a digest.

        Of more than a message can hold, there is one digest.
        """
        texts = {key: json.dumps(value, sort_keys=True, default=str) for key, value in self.run.items()}
        texts = {key: text if len(text) <= SHOWN_CHARS else shortened(text) for key, text in texts.items()}
        whole = json.dumps(texts, sort_keys=True)
        if len(whole) <= SETTINGS_BYTES:
            return texts
        return {
            "the YAML": f"{count_of(len(texts), 'setting')} (sha256 {hashlib.sha256(whole.encode()).hexdigest()[:12]})"
        }

    def message(self) -> dict[str, Any]:
        return {
            "shardline": PROTOCOL,
            "host": self.place.number,
            "hosts": self.place.count,
            "ranks": self.ranks,
            "name": self.name,
            "token": self.token,
            "run": self.settings(),
        }


def shortened(text: str) -> str:
    return f"{text[:SHOWN_CHARS]}... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]})"


def other_settings(there: object, here: Mapping[str, str]) -> str:
    """Return each setting that differs from those here, with both values; "" if none does."""
    if not isinstance(there, dict):
        return "it is of another version of Shardline"
    keys = [key for key in here.keys() | there.keys() if there.get(key) != here.get(key)]
    told = [f"{key} is {there.get(key, 'not set')} there, {here.get(key, 'not set')} here" for key in sorted(keys)]
    more = f"; and {count_of(len(told) - SHOWN_KEYS, 'other setting')}" if len(told) > SHOWN_KEYS else ""
    return "; ".join(told[:SHOWN_KEYS]) + more


@dataclass(frozen=True, kw_only=True)
class Met:
    """The ranks of this host in the next start, and two hosts, the first one first, that tell which network to use."""

    seats: Seats
    hosts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the ranks of all hosts have ended, as the first host knows it.

    `cause` tells which rank failed or which host was lost, if that is known. `are_all_there` tells whether every host
    has said how its ranks ended, and is still connected.
    """

    code: int
    cause: str | None
    are_all_there: bool


Decision = Callable[[Ended], bool]


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

    def finish(self, code: int, causes: Sequence[str], decide: Decision) -> tuple[int, bool]:
        """Tell the others this host's exit code; return that of all, and whether all start again: the first decides.

        `causes` are the ranks here that were killed or have said why they failed.
        """
        ...

    def leave(self, cause: str) -> None:
        """Tell the others that this host's ranks have failed, and that its launcher ends too."""
        ...

    def close(self) -> None: ...
