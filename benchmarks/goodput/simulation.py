"""A run on many GPUs that fail: event by event, with its saves, its restarts and its spare nodes."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from statistics import mean, stdev

import numpy as np

from training.costs.saving import Saving


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Nodes held ready beside those that compute, None for always enough, and how long a failed one is away."""

    spares: int | None = None
    repair_s: float = 86_400.0


@dataclass
class Simulated:
    """A run while it is simulated. `safe_s`: seconds of training that a checkpoint holds."""

    saving: Saving
    interval_s: float
    fleet: Fleet
    random: np.random.Generator
    now: float = 0.0
    safe_s: float = 0.0
    waited_s: float = 0.0
    failures: int = 0
    returning: list[float] = field(default_factory=list)

    def until(self, horizon_s: float) -> float:
        """Run until then; return the share of the time that a checkpoint holds."""
        while self.now < horizon_s:
            self.attempt()
            self.failures += 1
            self.replace_node()
        return self.safe_s / self.now

    def attempt(self) -> None:
        """Start, train and save until a failure; a save whose files are not yet written is lost with the rest.

        Files are written in less than an interval, so no save meets the one before it.
        """
        failure = self.now + self.random.exponential(self.saving.failure_s)
        clock, done_s = self.now + self.saving.restart_s, self.safe_s
        writing: tuple[float, float] | None = None  # when the files will be whole, and what they hold
        while True:
            clock += self.interval_s
            if clock >= failure:
                break
            done_s += self.interval_s
            if writing is not None:
                self.safe_s = writing[1]
            clock += self.saving.stall_s
            if clock >= failure:
                writing = None
                break
            writing = (clock + self.saving.write_s, done_s)
        if writing is not None and writing[0] <= failure:
            self.safe_s = writing[1]
        self.now = failure

    def replace_node(self) -> None:
        """Put a spare in the place of the failed node, or wait until one has been repaired."""
        if self.fleet.spares is None:
            return
        heapq.heappush(self.returning, self.now + self.fleet.repair_s)
        while self.returning and self.returning[0] <= self.now:
            heapq.heappop(self.returning)
        if len(self.returning) > self.fleet.spares:
            back = heapq.heappop(self.returning)
            self.waited_s += max(0.0, back - self.now)
            self.now = max(self.now, back)


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Mean goodput of simulated runs and the standard error of that mean."""

    mean: float
    error: float
    failures: int
    waited: float

    @property
    def lost(self) -> float:
        return 1 - self.mean


def simulated(
    saving: Saving, interval_s: float, fleet: Fleet, *, runs: int = 24, failures: int = 400, seed: int = 0
) -> Goodput:
    """Return the goodput over runs that are each as long as so many failures are expected to take."""
    found = [
        Simulated(saving, max(interval_s, saving.write_s), fleet, np.random.default_rng([seed, number]))
        for number in range(runs)
    ]
    shares = [one.until(failures * saving.failure_s) for one in found]
    waited = mean(one.waited_s / one.now for one in found)
    return Goodput(
        mean=mean(shares),
        error=stdev(shares) / runs**0.5,
        failures=sum(one.failures for one in found),
        waited=waited,
    )
