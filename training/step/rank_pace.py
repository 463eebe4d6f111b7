"""Which rank computes slowest, and by how much: from the time that each rank's decoder layers take in a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Shares = npt.NDArray[np.float64]
MANY_STEPS = 50  # whose running mean tells a slow rank from one with a slow step
SLOW = 0.10  # beyond the median rank's time
MOSTLY = 0.8  # of the steps: noise alone makes every rank slower than the median in half of them
MOST = 2.0  # of one step in the mean: a garbage collection of seconds must not make a slow rank


class Ranks(Protocol):
    """What tells a rank's number to all the others."""

    def largest_and_each(self, value: int, own: int, /) -> tuple[int, Sequence[int]]:
        """Return the largest of all ranks' values, and each rank's `own` number, in one all-reduce."""
        ...


@dataclass
class RankPace:
    """The ranks' times of the steps so far. They travel with the question whether to stop, asked after each step."""

    means: Shares | None = None  # of each rank: the running mean of its time over the median's
    slower: Shares | None = None  # and of whether it was slower
    steps: int = 0
    newest: tuple[int, float] | None = None
    told: set[int] = field(default_factory=set)

    def all_reduce_max(self, ranks: Ranks, layers_s: float | None, value: int) -> int:
        """Return the largest of all ranks' values, and take in their times of the step just taken. Collective."""
        largest, times_us = ranks.largest_and_each(value, round((layers_s or 0.0) * 1e6))
        self.note(times_us)
        return largest

    def note(self, times_us: Sequence[int]) -> None:
        """Take in each rank's time of a step; a step that some rank has not measured tells nothing."""
        if len(times_us) < 2 or min(times_us) <= 0:
            self.newest = None
            return
        times = np.asarray(times_us, dtype=np.float64)
        shares = times / median_low(times)
        slowest = int(shares.argmax())
        self.newest = slowest, float(shares[slowest]) - 1
        self.steps += 1
        self.means = self.running(self.means, np.minimum(shares, MOST))
        self.slower = self.running(self.slower, (shares > 1).astype(np.float64))

    def running(self, means: Shares | None, values: Shares) -> Shares:
        """Return running means with a further value each."""
        return values if means is None else means + (values - means) / min(self.steps, MANY_STEPS)

    def as_record(self) -> Mapping[str, Any]:
        """Return the slowest rank of the step noted last, and by what share of the median's time it was slower.

        Of two ranks, the faster one is the median. Each step is returned once.
        """
        newest, self.newest = self.newest, None
        return {} if newest is None else {"slowest_rank": newest[0], "slowest_by": round(newest[1], 4)}

    def slow_ranks(self) -> dict[int, float]:
        """Return the ranks that have been slow over many steps and were not returned before, each with its excess."""
        if self.steps < MANY_STEPS or self.means is None or self.slower is None:
            return {}
        excess = self.means / median_low(self.means) - 1  # where all have slow steps, none is the slow rank
        found = np.flatnonzero((excess > SLOW) & (self.slower > MOSTLY)).tolist()
        slow = {rank: float(excess[rank]) for rank in found if rank not in self.told}
        self.told.update(slow)
        return slow


def median_low(values: Shares) -> float:
    """Return the median; of an even number of values the lower one in the middle."""
    middle = (len(values) - 1) // 2
    return float(np.partition(values, middle)[middle])
