"""The places of ranks and hosts in a run: who this process is among all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's rank and the size of its world. `master` is the host and port where the ranks meet."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    master: tuple[str, int]

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True, kw_only=True)
class HostPlace:
    """This host's place among the hosts of a run that the same command starts on each of them.

    `ranks` is how many it gets, None where that follows from its GPUs. `master` is where the hosts meet, on the first.
    """

    number: int
    count: int
    ranks: int | None
    master: tuple[str, int]


def rank_variables(world: World) -> dict[str, str]:
    """Return the variables that torch and DeepSpeed read."""
    return {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_WORLD_SIZE": str(world.local_size),
        "LOCAL_SIZE": str(world.local_size),
        "MASTER_ADDR": world.master[0],
        "MASTER_PORT": str(world.master[1]),
    }
