"""Which rank holds the others up: decided from what their files say and a clock that is an argument."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.hangs.hang_detection import Watch
from cluster.hangs.hang_report import named, waits_in_collective
from cluster.hangs.shared_view import POLL_S
from cluster.hangs.watchdog import duration
from cluster.heartbeats.heartbeat_files import Beat
from cluster.journal.records import write_event
from cluster.paths import RunPaths


@dataclass
class Ranks:
    """Some ranks whose files are read every half second, and the watch over them."""

    size: int = 3
    hang_timeout_s: float | None = None
    now: float = 0.0
    place: list[tuple[str, int]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.place = [("load", 0)] * self.size
        self.counts = [0] * self.size
        self.watch = Watch(self.size, self.hang_timeout_s, begun=0.0)

    def look(self, silent: Set[int] = frozenset(), stopped: Set[int] = frozenset()) -> list[int] | None:
        """Let half a second go by."""
        self.now += POLL_S
        self.counts = [count + (rank not in silent) for rank, count in enumerate(self.counts)]
        beats = [
            Beat(launch="", rank=rank, host="h", pid=rank, started=0, phase=phase, step=step, count=self.counts[rank])
            for rank, (phase, step) in enumerate(self.place)
        ]
        self.watch.look(beats, self.now, stopped)
        return self.watch.culprits(self.now)

    def train(self, steps: int, step_s: float = 2.0) -> None:
        """Take steps together, without anything to complain about."""
        first = max(step for _, step in self.place)
        for step in range(first, first + steps):
            for phase in ("data", "forward-backward", "step", "save"):
                self.place = [(phase, step)] * self.size
                for _ in range(max(1, round(step_s / 4 / POLL_S))):
                    assert self.look() is None
        self.place = [("forward-backward", first + steps)] * self.size
        self.look()

    def wait(self, seconds: float, **facts: set[int]) -> tuple[float, list[int] | None]:
        """Let time go by until there is a verdict; return after how long, and it."""
        begun = self.now
        while self.now - begun < seconds:
            culprits = self.look(**facts)
            if culprits is not None:
                return self.now - begun, culprits
        return self.now - begun, None


@pytest.fixture
def ranks() -> Ranks:
    trained = Ranks()
    trained.train(10)
    return trained


def test_a_rank_that_has_no_heartbeat_is_named_within_half_a_minute(ranks: Ranks) -> None:
    after_s, culprits = ranks.wait(60, silent={1})
    assert culprits == [1] and after_s < 30


def test_a_rank_that_lives_but_is_behind_is_named(ranks: Ranks) -> None:
    ranks.place = [("forward-backward", 10), ("forward-backward", 10), ("data", 10)]
    after_s, culprits = ranks.wait(60)
    assert culprits == [2] and after_s < 30


def test_a_damaged_record_costs_a_verdict_its_duration_alone(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    write_event(paths, "launch", reached=0)
    write_event(paths, "start", step=0, world_size=1)
    assert duration(paths)["seconds"] >= 0
    paths.attempts.write_text("no JSON\n" + paths.attempts.read_text())
    assert duration(paths) == {}


def test_ranks_that_hang_in_the_same_phase_are_told_apart_by_their_stacks(ranks: Ranks) -> None:
    _, culprits = ranks.wait(60)
    assert culprits == []
    waiting = 'Thread 0x1 (most recent call first):\n  File "x/torch/distributed/distributed_c10d.py", line 1 in wait\n'
    busy = 'Thread 0x1 (most recent call first):\n  File "x/model.py", line 1 in forward\n'
    assert waits_in_collective(waiting) and not waits_in_collective(busy)
    assert named([], {0: waiting, 1: busy, 2: waiting}) == [1]
    assert named([], {0: waiting, 1: waiting}) == named([], {0: busy, 1: busy}) == []


def test_long_steps_are_given_more_time() -> None:
    ranks = Ranks()
    ranks.train(10, step_s=60.0)
    after_s, culprits = ranks.wait(600, silent={0})
    assert culprits == [0] and 250 < after_s < 350


@pytest.mark.parametrize("phase", ["load", "save"])
def test_a_slow_load_or_save_is_no_hang_but_one_that_never_ends_is(ranks: Ranks, phase: str) -> None:
    ranks.place = [("data", 10), (phase, 9), ("data", 10)]
    assert ranks.wait(1700)[1] is None
    assert ranks.wait(200)[1] == [1]


def test_a_rank_that_is_stopped_while_it_saves_is_not_given_the_time_of_a_slow_save(ranks: Ranks) -> None:
    ranks.place = [("save", 9)] * 3
    after_s, culprits = ranks.wait(60, silent={1})
    assert culprits == [1] and after_s < 30


def test_the_first_steps_may_take_long() -> None:
    fresh = Ranks()
    fresh.train(2)
    assert fresh.wait(500, silent={1})[1] is None
    assert fresh.wait(200)[1] is not None


def test_a_timeout_that_was_asked_for_is_kept() -> None:
    ranks = Ranks(hang_timeout_s=90.0)
    ranks.train(10)
    after_s, culprits = ranks.wait(200, silent={2})
    assert culprits == [2] and 85 < after_s < 95


def test_ranks_that_make_steps_are_left_alone_however_slowly() -> None:
    ranks = Ranks(hang_timeout_s=15.0)
    ranks.train(20, step_s=40.0)
    assert ranks.look() is None


def test_a_watch_that_was_stopped_itself_blames_nobody(ranks: Ranks) -> None:
    ranks.now += 3600
    assert ranks.look() is None
    assert ranks.wait(15)[1] is None


def test_a_rank_that_never_began_is_missed() -> None:
    watch = Watch(2, None, begun=0.0)
    watch.look([], now=0.0)
    assert watch.culprits(1700.0) is None and watch.culprits(1900.0) == [0, 1]


@pytest.mark.parametrize("way", ["stopped", "behind"])
def test_a_rank_that_holds_the_others_up_is_reported_and_not_taken_for_a_hang(ranks: Ranks, way: str) -> None:
    ranks.watch.samples.clear()
    for step in range(10, 14):
        for moment in range(40):
            held_up = moment < 18
            late = ("data", step) if held_up and way == "behind" else ("forward-backward", step)
            ranks.place = [late, ("forward-backward", step), ("forward-backward", step)]
            assert ranks.look(stopped={0} if held_up and way == "stopped" else set()) is None
    ((rank, share),) = ranks.watch.stragglers().items()
    assert rank == 0 and 0.3 <= share <= 0.5


def test_ranks_that_keep_together_have_no_straggler(ranks: Ranks) -> None:
    ranks.train(30)
    assert ranks.watch.stragglers() == {}


def test_a_rank_is_not_taken_for_late_because_its_last_beat_is_older_than_that_of_another() -> None:
    ranks = Ranks(size=2)
    ranks.train(10)
    for step in range(10, 20):
        for moment in range(8):  # steps of 4 s, a beat each second: rank 0's new one is seen 1 s after rank 1's
            ranks.place = [("forward-backward", step + (moment >= 2)), ("forward-backward", step + 1)]
            assert ranks.look(silent={0, 1} if moment % 2 else set()) is None
    assert ranks.watch.stragglers() == {}


@pytest.mark.parametrize("phase", ["load", "save", "forward-backward"])
def test_a_rank_that_a_signal_has_stopped_is_named_at_once_though_others_may_load_for_long(phase: str) -> None:
    ranks = Ranks(hang_timeout_s=5.0)
    ranks.place = [(phase, 0)] * ranks.size
    ranks.look()
    seconds, culprits = ranks.wait(60, silent={1}, stopped={1})
    assert culprits == [1] and seconds < 10
