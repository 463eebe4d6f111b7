"""The loop, with everything around it small enough to be killed a thousand times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from training.batches import MicroBatch, StepBatch
from training.config import TrainConfig
from training.loop import Outcome, train
from training.loss import StepStats
from training.plan import Plan
from training.progress import Progress

Taken = tuple[int, int, float]  # what one optimizer step was given: step, trained tokens, learning rate


class Killed(Exception):  # noqa: N818
    """The power is gone."""


@dataclass
class Life:
    """Counts down the moments until the power goes; None: never."""

    moments: int | None = None

    def moment(self) -> None:
        if self.moments is not None:
            self.moments -= 1
            if self.moments < 0:
                raise Killed


@dataclass
class Disk:
    """What outlives a kill."""

    saved: dict[int, list[Taken]] = field(default_factory=dict)
    saves: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)


@dataclass
class FakeEngine:
    """An engine whose weights are all that it was ever given."""

    life: Life
    weights: list[Taken] = field(default_factory=list)

    def step(self, step: int, batches: Sequence[MicroBatch], trained_tokens: int, learning_rate: float) -> StepStats:
        self.life.moment()
        self.weights.append((step, trained_tokens, learning_rate))
        self.life.moment()
        return StepStats(loss=1.0, gradient_norm=1.0)

    def all_reduce_max(self, value: int) -> int:
        return value


class FakeBatches:
    def steps(self, first: int, stop: int) -> Iterator[StepBatch]:
        for step in range(first, stop):
            yield StepBatch(step=step, micro_batches=[], trained_tokens=step * 7919 % 1009 + 1)


@dataclass
class FakeCheckpoints:
    disk: Disk
    life: Life

    def restore(self, engine: FakeEngine) -> Progress:
        newest = max(self.disk.saved, default=0)
        engine.weights[:] = self.disk.saved.get(newest, [])
        return Progress(steps_done=newest)

    def offer(self, engine: FakeEngine, progress: Progress, *, due: bool) -> None:
        if due:
            self.complete(engine, progress)

    def complete(self, engine: FakeEngine, progress: Progress) -> None:
        if progress.steps_done in self.disk.saved:
            return
        self.life.moment()
        self.disk.saved[progress.steps_done] = list(engine.weights)
        self.disk.saves.append(progress.steps_done)
        self.life.moment()


@dataclass
class FakeStop:
    """Agrees to stop once so many questions were asked."""

    after: int | None = None

    def agreed(self, all_reduce_max: Callable[[int], int]) -> bool:
        if self.after is None:
            return False
        self.after -= 1
        return self.after <= 0


@dataclass
class FakeJournal:
    disk: Disk
    life: Life

    def begin(self, first_step: int) -> None:
        self.disk.begins.append(first_step)

    def step(self, record: dict[str, float]) -> None:
        self.life.moment()


def plan_of(steps: int, save_every: int) -> Plan:
    numbers: dict[str, Any] = dict.fromkeys(
        ("world_size", "micro_batch_rows", "accumulation_steps", "global_batch_rows", "row_tokens", "rows"), 1
    )
    return Plan(
        **numbers,
        trained_tokens=1,
        total_steps=steps,
        warmup_steps=2,
        parameters=1,
        checkpoint_bytes=12,
        seed=0,
        data_digest="",
        config=TrainConfig(save_every_steps=save_every),
    )


def run(
    plan: Plan, disk: Disk, *, life: Life | None = None, stop_after: int | None = None
) -> tuple[Outcome, list[Taken]]:
    """Train on a disk until the end, a stop or a kill; return how it ended, and the weights."""
    life = life or Life()
    engine = FakeEngine(life)
    checkpoints, journal = FakeCheckpoints(disk, life), FakeJournal(disk, life)
    return train(plan, engine, FakeBatches(), checkpoints, FakeStop(stop_after), journal), engine.weights


@given(steps=st.integers(1, 20), save_every=st.integers(1, 25), kills=st.lists(st.integers(0, 60), max_size=5))
def test_a_run_killed_anywhere_and_started_again_takes_the_steps_of_one_never_killed(
    steps: int, save_every: int, kills: list[int]
) -> None:
    plan, disk = plan_of(steps, save_every), Disk()
    for moments in kills:
        with suppress(Killed):
            run(plan, disk, life=Life(moments))
    assert run(plan, disk) == run(plan, Disk())


@given(steps=st.integers(2, 20), save_every=st.integers(1, 25), stops=st.lists(st.integers(1, 20), max_size=4))
def test_a_run_stopped_anywhere_and_started_again_takes_the_steps_of_one_never_stopped(
    steps: int, save_every: int, stops: list[int]
) -> None:
    plan, disk = plan_of(steps, save_every), Disk()
    for after in stops:
        run(plan, disk, stop_after=after)
    assert run(plan, disk) == run(plan, Disk())
    assert len(set(disk.begins)) == len(disk.begins) or steps in disk.begins  # no start took a step again


@given(steps=st.integers(2, 20), save_every=st.integers(1, 25), data=st.data())
def test_stopping_saves_once_at_the_agreed_step_and_asks_to_be_put_back_in_the_queue(
    steps: int, save_every: int, data: st.DataObject
) -> None:
    agreed = data.draw(st.integers(1, steps - 1), label="agreed")
    disk = Disk()
    outcome, weights = run(plan_of(steps, save_every), disk, stop_after=agreed)
    assert (outcome, outcome.value) == (Outcome.STOPPED, 75)
    assert disk.saves == [step for step in range(1, agreed) if step % save_every == 0] + [agreed]
    assert [step for step, _, _ in weights] == list(range(agreed))


def test_a_wish_to_stop_at_the_very_last_step_finds_the_run_finished() -> None:
    disk = Disk()
    outcome, _ = run(plan_of(5, save_every=10), disk, stop_after=5)
    assert (outcome, outcome.value, disk.saves) == (Outcome.FINISHED, 0, [5])


def test_a_finished_run_that_is_started_again_does_nothing_and_is_finished() -> None:
    plan, disk = plan_of(5, save_every=2), Disk()
    run(plan, disk)
    saves = list(disk.saves)
    outcome, weights = run(plan, disk, life=Life(moments=0))
    assert (outcome, disk.saves, weights) == (Outcome.FINISHED, saves, disk.saved[5])


def test_each_step_is_told_to_the_journal_before_it_can_be_saved() -> None:
    lines: list[dict[str, float]] = []

    class Told(FakeJournal):
        def step(self, record: dict[str, float]) -> None:
            assert int(record["step"]) not in self.disk.saved
            lines.append(record)

    disk, plan = Disk(), plan_of(3, save_every=1)
    train(plan, FakeEngine(Life()), FakeBatches(), FakeCheckpoints(disk, Life()), FakeStop(), Told(disk, Life()))
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["learning_rate"] for line in lines] == [plan.learning_rate(step) for step in range(3)]
