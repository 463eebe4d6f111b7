"""What a watchdog has seen of the ranks: whether they hang, and which one they wait for. No files, no clock."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.hangs.shared_view import POLL_S
from cluster.heartbeats.heartbeat import BEAT_S
from cluster.heartbeats.heartbeat_files import PHASES, Beat

LEAST_S = 20.0  # shorter stops in a step are usual: a slow disk, a garbage collection
FIRST_STEPS = 3
ALLOWED_S = {"load": 1800.0, "save": 1800.0, "idle": 600.0}
FIRST_STEPS_S = 600.0
BEHIND_SHARE = 0.2  # of the samples, that make a straggler


@dataclass
class Seen:
    """A rank as this process sees it, times by its own clock: no other host's clock matters."""

    beat: Beat
    moved: float
    counted: float

    @property
    def position(self) -> tuple[int, int]:
        return self.beat.step, PHASES.index(self.beat.phase)

    def update(self, beat: Beat, now: float) -> None:
        if (beat.phase, beat.step) != (self.beat.phase, self.beat.step):
            self.moved = now
        if beat.count != self.beat.count:
            self.counted = now
        self.beat = beat


@dataclass
class Watch:
    """What was seen of all ranks. `look` is told what their files say; the clock is an argument, in seconds.

    `period_s` is how old the news of another host may be at each of the two files that it passes through.
    """

    world_size: int
    hang_timeout_s: float | None
    begun: float
    period_s: float = POLL_S
    ranks: dict[int, Seen] = field(default_factory=dict)
    step_times: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    samples: deque[set[int]] = field(default_factory=deque)
    in_doubt: dict[int, list[set[int]]] = field(default_factory=dict)
    """The samples that a rank belongs to if its next beat shows that it had not moved on: its last one is older."""
    last_look: float | None = None
    step_began: float | None = None
    first_step: int | None = None
    stopped: frozenset[int] = frozenset()

    def look(self, beats: Iterable[Beat], now: float, stopped: Iterable[int] = ()) -> None:
        """Take in a reading of the ranks' files; `stopped` are this host's ranks that a signal has stopped."""
        if self.last_look is not None and now - self.last_look > max(10 * POLL_S, 5 * self.period_s):
            self.restart_clocks(now)  # it was this process that stopped, or the one that it hears of the others from
        self.last_look = now
        self.stopped = frozenset(stopped)
        before = self.slowest_step()
        for beat in beats:
            if beat.rank in self.ranks:
                self.ranks[beat.rank].update(beat, now)
            else:
                self.ranks[beat.rank] = Seen(beat, now, now)
        phases = {seen.beat.phase for seen in self.ranks.values()}
        if self.first_step is None and len(self.ranks) == self.world_size and "load" not in phases:
            self.first_step = self.slowest_step()
        if self.slowest_step() > before:
            if self.step_began is not None:
                self.step_times.append((now - self.step_began) / (self.slowest_step() - before))
            self.step_began = now
        self.samples.append(set(self.stopped))
        self.add_late(self.samples[-1], now)
        while len(self.samples) > self.window():
            self.samples.popleft()

    def add_late(self, sample: set[int], now: float) -> None:
        """Add the ranks that the others wait for, those that are known to be late; the rest once it is known."""
        late = [rank for rank in self.behind() if now - self.ranks[rank].moved > self.stale_s()]
        self.in_doubt = {rank: self.in_doubt.get(rank, []) for rank in late}
        for rank, samples in self.in_doubt.items():
            samples.append(sample)
            age_s = now - self.ranks[rank].counted
            if (age_s == 0 and len(samples) > 1) or age_s > self.stale_s():
                for one in samples:
                    one.add(rank)
                samples.clear()

    def restart_clocks(self, now: float) -> None:
        """Count all waiting from now on: what was not seen is no rank's fault."""
        for seen in self.ranks.values():
            seen.moved = seen.counted = now
        self.step_began = None
        self.samples.clear()
        self.in_doubt.clear()

    def stale_s(self) -> float:
        """Return how old a beat may be when it is seen: written each BEAT_S, then passed on by two files."""
        return max(2 * BEAT_S, BEAT_S + 2 * self.period_s)

    def is_under_way(self) -> bool:
        """Return whether the first steps are over: they compile, connect and fill caches."""
        return self.first_step is not None and self.slowest_step() - self.first_step >= FIRST_STEPS

    def slowest_step(self) -> int:
        return min((seen.beat.step for seen in self.ranks.values()), default=0)

    def limit_s(self) -> float:
        """Return how long all ranks may stay where they are in a step."""
        if self.hang_timeout_s is not None:
            return max(self.hang_timeout_s, 2 * self.stale_s())
        return max(LEAST_S, 5 * statistics.median(self.step_times or [0.0]))

    def patience_s(self, silent: list[int]) -> float:
        """Return how long the ranks may stay where they are; one without a heartbeat has less.

        One that a signal has stopped loads nothing and compiles nothing, whatever its phase.
        """
        if self.stopped.intersection(silent):
            return self.limit_s()
        phases = {seen.beat.phase for seen in self.ranks.values()}
        if len(self.ranks) < self.world_size or "load" in phases:
            return ALLOWED_S["load"]
        if not self.is_under_way():
            return max([FIRST_STEPS_S, *(ALLOWED_S.get(phase, 0.0) for phase in phases)])
        if silent and "idle" not in phases:
            return self.limit_s()
        return max(ALLOWED_S.get(phase, self.limit_s()) for phase in phases)

    def silent(self, now: float) -> list[int]:
        """Return the ranks whose heartbeat has been missing for long."""
        longest_s = max(self.limit_s() / 2, 3 * BEAT_S, 2 * self.stale_s() - BEAT_S)
        return [rank for rank, seen in sorted(self.ranks.items()) if now - seen.counted > longest_s]

    def behind(self) -> list[int]:
        """Return the ranks that are at an earlier position than others."""
        positions = {rank: seen.position for rank, seen in sorted(self.ranks.items())}
        first, last = min(positions.values(), default=(0, 0)), max(positions.values(), default=(0, 0))
        return [rank for rank, position in positions.items() if position == first != last]

    def culprits(self, now: float) -> list[int] | None:
        """Return None while all is well; else the ranks that the others wait for. An empty list: it could be any."""
        silent = self.silent(now)
        moved = max((seen.moved for seen in self.ranks.values()), default=self.begun)
        if now - moved <= self.patience_s(silent):
            return None
        missing = [rank for rank in range(self.world_size) if rank not in self.ranks]
        return missing or silent or self.behind()

    def window(self) -> int:
        """Return how many samples tell which rank holds the others up: as many as fit into the time limit of a hang."""
        return round(max(self.limit_s(), 10.0) / self.period_s)

    def stragglers(self) -> dict[int, float]:
        """Return the ranks that others had to wait for, each with the share of the samples; empties the samples."""
        if len(self.samples) < self.window() or not self.is_under_way():
            return {}
        shares = {rank: sum(rank in sample for sample in self.samples) / len(self.samples) for rank in self.ranks}
        self.samples.clear()
        return {rank: share for rank, share in shares.items() if share >= BEHIND_SHARE}

    def described(self, rank: int, now: float) -> str:
        if rank not in self.ranks:
            return f"rank {rank} (it never began)"
        seen = self.ranks[rank]
        place = f"phase {seen.beat.phase} of step {seen.beat.step + 1}"
        return (
            f"rank {rank} on {seen.beat.host} (process {seen.beat.pid}) in {place} for {now - seen.moved:.0f} s,"
            f" last heartbeat {now - seen.counted:.0f} s ago"
        )
