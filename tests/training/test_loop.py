"""The loop, with everything around it small enough to be killed a thousand times."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import TrainingError
from training.config import TrainConfig
from training.guards import STREAK_STEPS, USUAL_STEPS
from training.loop import BATCHES_A_QUESTION, Outcome, SkipReason, train
from training.plan import Plan
from training.step.batches import MicroBatch, StepBatch
from training.step.isolation import IsolationCheck
from training.step.loss import LogitRule, StepStats
from training.step.packed_model import Isolation
from training.train_state import TrainState

CHECK = IsolationCheck(
    isolation=Isolation.BY_ATTENTION, leak=0, alone=0, loss=0, rule=LogitRule(), why=None, passes=1, tokens=1
)
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

    saved: dict[int, tuple[TrainState, list[Taken]]] = field(default_factory=dict)
    saves: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    skips: list[tuple[int, str]] = field(default_factory=list)
    validations: dict[int, float] = field(default_factory=dict)
    rollbacks: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class FakeEngine:
    """An engine whose weights are all that it was ever given; the losses of some steps are poisoned.

    Once it has taken a ruinous step, every loss is poisoned.
    """

    life: Life
    weights: list[Taken] = field(default_factory=list)
    poison: dict[int, float] = field(default_factory=dict)
    ruinous: frozenset[int] = frozenset()
    tried: list[int] = field(default_factory=list)

    def step(
        self,
        step: int,
        batches: Sequence[MicroBatch],
        trained_tokens: int,
        learning_rate: float,
        skip_reason: SkipReason,
    ) -> StepStats:
        self.life.moment()
        self.tried.append(step)
        ruined = any(taken[0] in self.ruinous for taken in self.weights)
        loss = math.nan if ruined else self.poison.get(step, 1.0 + step % 3 / 10)
        stats = StepStats(loss=loss, gradient_norm=1.0)
        reason = skip_reason(stats)
        if reason is None:
            self.weights.append((step, trained_tokens, learning_rate))
        self.life.moment()
        return replace(stats, skipped=reason)

    def check_isolation(self, examples: Sequence[MicroBatch]) -> IsolationCheck:
        return CHECK

    def validation_loss(self, batches: Iterable[MicroBatch]) -> float | None:
        list(batches)
        return float(len(self.weights)) or None

    def all_reduce_max(self, value: int) -> int:
        return value

    def largest_and_each(self, value: int, own: int) -> tuple[int, list[int]]:
        return value, [own]


@dataclass(frozen=True)
class FakeBatches:
    held_out: int = 0
    """Micro batches of held-out rows."""

    def for_step(self, step: int) -> StepBatch:
        return StepBatch(step=step, rows=[step], micro_batches=[], trained_tokens=1)

    def steps(self, first: int, stop: int) -> Iterator[StepBatch]:
        for step in range(first, stop):
            yield StepBatch(step=step, rows=[step], micro_batches=[], trained_tokens=step * 7919 % 1009 + 1)

    def validation(self) -> list[Any]:
        return [None] * self.held_out


@dataclass
class FakeCheckpoints:
    disk: Disk
    life: Life

    def restore(self, engine: FakeEngine, before: int | None = None) -> TrainState:
        for step in [step for step in self.disk.saved if before is not None and step >= before]:
            del self.disk.saved[step]
        state, weights = self.disk.saved.get(max(self.disk.saved, default=0), (TrainState(), []))
        engine.weights[:] = weights
        return state

    def offer(self, engine: FakeEngine, state: TrainState, *, due: bool) -> None:
        if due:
            self.complete(engine, state)

    def complete(self, engine: FakeEngine, state: TrainState) -> None:
        if state.steps_done in self.disk.saved:
            return
        self.life.moment()
        written = json.loads(json.dumps(state.as_record()))
        self.disk.saved[state.steps_done] = (TrainState.from_record(written), list(engine.weights))
        self.disk.saves.append(state.steps_done)
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

    def begin(self, first_step: int, total_steps: int) -> None:
        self.disk.begins.append(first_step)

    def isolation_checked(self, text: str, record: dict[str, Any]) -> None:
        pass

    def phase(self, name: str, step: int) -> None:
        pass

    def step(self, record: dict[str, Any]) -> None:
        self.life.moment()

    def slow_rank(self, rank: int, excess: float, steps: int) -> None:
        raise AssertionError("a rank alone is no slow one")

    def skip(self, step: int, reason: str, rows: Sequence[int]) -> None:
        assert list(rows) == [step - 1]
        self.disk.skips.append((step, reason))

    def held_out_loss(self, step: int, loss: float) -> None:
        self.disk.validations[step] = loss

    def roll_back(self, to_step: int, failed_step: int, excluded: Sequence[int]) -> None:
        self.disk.rollbacks.append((failed_step, to_step))


def plan_of(steps: int, save_every: int, **train: Any) -> Plan:
    numbers: dict[str, Any] = dict.fromkeys(
        ("world_size", "micro_batch_rows", "accumulation_steps", "global_batch_rows", "row_tokens", "rows"), 1
    )
    return Plan(
        **numbers,
        trained_tokens=1,
        total_steps=steps,
        warmup_steps=2,
        parameters=1,
        trained_parameters=1,
        checkpoint_bytes=12,
        seed=0,
        data_digest="",
        config=TrainConfig(save_every_steps=save_every, **train),
    )


def run(
    plan: Plan,
    disk: Disk,
    *,
    life: Life | None = None,
    stop_after: int | None = None,
    held_out: int = 0,
    **engine_facts: Any,
) -> tuple[Outcome, list[Taken]]:
    """Train on a disk until the end, a stop or a kill; return how it ended, and the weights."""
    life = life or Life()
    engine = FakeEngine(life, **engine_facts)
    checkpoints, journal = FakeCheckpoints(disk, life), FakeJournal(disk, life)
    batches = FakeBatches(held_out)
    return train(plan, engine, batches, checkpoints, FakeStop(stop_after), journal), engine.weights


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
    assert (outcome, disk.saves, weights) == (Outcome.FINISHED, saves, disk.saved[5][1])


def test_each_step_is_told_to_the_journal_before_it_can_be_saved() -> None:
    lines: list[dict[str, Any]] = []

    class Told(FakeJournal):
        def step(self, record: dict[str, Any]) -> None:
            assert int(record["step"]) not in self.disk.saved
            lines.append(record)

    disk, plan = Disk(), plan_of(3, save_every=1)
    train(plan, FakeEngine(Life()), FakeBatches(), FakeCheckpoints(disk, Life()), FakeStop(), Told(disk, Life()))
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["learning_rate"] for line in lines] == [plan.learning_rate(step) for step in range(3)]


POISON = st.dictionaries(st.integers(0, 39), st.sampled_from([math.nan, math.inf, 1e9]), max_size=12)
NO_BOUND = {"max_skipped_steps": 1000, "max_rollbacks": 1000}


@given(poison=POISON, ruinous=st.frozensets(st.integers(0, 39), max_size=2), kills=st.lists(st.integers(0, 150)))
def test_a_run_killed_between_bad_steps_takes_the_decisions_of_one_never_killed(
    poison: dict[int, float], ruinous: frozenset[int], kills: list[int]
) -> None:
    plan, disk, whole = plan_of(40, 5, **NO_BOUND), Disk(), Disk()
    expected = run(plan, whole, poison=poison, ruinous=ruinous)
    for moments in kills:
        with suppress(Killed):
            run(plan, disk, life=Life(moments), poison=poison, ruinous=ruinous)
    assert run(plan, disk, poison=poison, ruinous=ruinous) == expected
    assert disk.saved[40][0] == whole.saved[40][0]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e9])
def test_a_bad_step_changes_no_weight_and_is_named_with_its_rows(loss: float) -> None:
    disk, bad = Disk(), USUAL_STEPS + 2
    outcome, weights = run(plan_of(30, 10), disk, poison={bad: loss})
    assert outcome is Outcome.FINISHED
    assert [step for step, _, _ in weights] == [step for step in range(30) if step != bad]
    assert [step for step, _ in disk.skips] == [bad + 1]
    assert disk.saved[30][0].skipped == (bad,) and disk.saved[30][0].updates == 29


def test_steps_that_ruin_the_weights_are_excluded_after_a_rollback() -> None:
    disk = Disk()
    outcome, weights = run(plan_of(40, 5), disk, ruinous=frozenset({23}))
    assert outcome is Outcome.FINISHED
    assert disk.rollbacks == [(27, 20)]
    assert [step for step, _, _ in weights] == [*range(21), *range(27, 40)]


def test_a_rollback_passes_over_a_checkpoint_of_ruined_weights() -> None:
    disk = Disk()
    outcome, weights = run(plan_of(40, 5), disk, ruinous=frozenset({24}))
    assert outcome is Outcome.FINISHED
    assert disk.rollbacks == [(28, 20)]  # that of step 25 holds the ruined weights
    assert 24 not in [step for step, _, _ in weights]


def test_a_run_that_is_poisoned_for_ever_ends_for_a_person_to_look() -> None:
    plan = plan_of(10**6, 10)
    poison = dict.fromkeys(range(12, 1000), math.nan)
    engine = FakeEngine(Life(), poison=poison)
    disk = Disk()
    with pytest.raises(
        TrainingError, match=r"rolled back 3 times, but train.max_rollbacks is 3.*inspect RUN.yaml --step 2\d"
    ):
        train(plan, engine, FakeBatches(), FakeCheckpoints(disk, Life()), FakeStop(), FakeJournal(disk, Life()))
    assert sum(step in poison for step in engine.tried) == (3 + 1) * STREAK_STEPS


def test_scattered_bad_steps_end_the_run_once_there_are_too_many() -> None:
    poison = dict.fromkeys(range(0, 40, 4), math.nan)
    with pytest.raises(TrainingError, match=r"skipped 5 steps and rolled back 0 times.*is 4"):
        run(plan_of(40, 5, max_skipped_steps=4), Disk(), poison=poison)


def test_each_save_that_is_due_carries_the_loss_of_the_held_out_rows() -> None:
    disk = Disk()
    run(plan_of(10, 4), disk)
    assert disk.validations == {4: 4.0, 8: 8.0, 10: 10.0}  # the engine's loss counts its updates
    assert {step: state.validation_loss for step, (state, _) in disk.saved.items()} == disk.validations


@given(every=st.integers(1, 12), save_every=st.integers(1, 12), stop_after=st.integers(1, 12))
def test_held_out_rows_are_evaluated_between_saves_without_another_step_or_save(
    every: int, save_every: int, stop_after: int
) -> None:
    disk, resumed, seldom = Disk(), Disk(), Disk()
    often = plan_of(12, save_every, validate_every_steps=every)
    assert run(often, disk) == run(plan_of(12, save_every), seldom)
    assert disk.saves == seldom.saves
    assert list(disk.validations) == [n for n in range(1, 13) if n % every == 0 or n % save_every == 0 or n == 12]
    run(often, resumed, stop_after=stop_after)
    assert run(often, resumed) == run(often, Disk())
    assert resumed.validations == disk.validations


HELD_OUT = 3 * BATCHES_A_QUESTION


@given(steps=st.integers(1, 12), save_every=st.integers(1, 5), stops=st.lists(st.integers(1, 30), max_size=5))
def test_a_wish_to_stop_ends_an_evaluation_which_the_next_start_makes_up_for(
    steps: int, save_every: int, stops: list[int]
) -> None:
    plan, disk, whole = plan_of(steps, save_every), Disk(), Disk()
    expected = run(plan, whole)
    for after in stops:
        run(plan, disk, stop_after=after, held_out=HELD_OUT)
    assert run(plan, disk, held_out=HELD_OUT) == expected
    assert disk.validations == whole.validations
    assert disk.saved[steps][0] == whole.saved[steps][0]


def test_a_stop_in_an_evaluation_or_before_it_saves_at_once_and_takes_no_further_step() -> None:
    for agreed in (4, 5, 6, 7):  # at the step itself, or at one of three questions within the evaluation
        disk = Disk()
        outcome, weights = run(plan_of(10, 4), disk, stop_after=agreed, held_out=HELD_OUT)
        assert (outcome, len(weights), disk.saves, disk.validations) == (Outcome.STOPPED, 4, [4], {})
        assert disk.saved[4][0].validation_owed
        run(plan_of(10, 4), disk, held_out=HELD_OUT)
        assert disk.validations == {4: 4.0, 8: 8.0, 10: 10.0}


def test_a_rollback_to_a_checkpoint_that_owed_its_evaluation_does_not_stop_the_run() -> None:
    disk = Disk()
    run(plan_of(20, 4), disk, stop_after=4, held_out=HELD_OUT)
    assert disk.saved[4][0].validation_owed
    outcome, _ = run(plan_of(20, 4, **NO_BOUND), disk, held_out=HELD_OUT, ruinous=frozenset({5}))
    assert (outcome, disk.rollbacks[0][1], list(disk.validations)) == (Outcome.FINISHED, 4, [4, 8, 12, 16, 20])


def test_the_time_of_an_evaluation_is_part_of_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowEngine(FakeEngine):
        def step(self, *given: Any) -> StepStats:
            now[0] += 1.0
            return super().step(*given)

        def validation_loss(self, batches: Iterable[MicroBatch]) -> float | None:
            now[0] += 100.0
            return 1.0

    class TellingJournal(FakeJournal):
        def step(self, record: dict[str, Any]) -> None:
            told.append((record["step_s"], record["data_wait_s"]))

    now: list[float] = [0.0]
    told: list[tuple[float, float]] = []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    disk, life = Disk(), Life()
    plan = plan_of(4, 4, validate_every_steps=2)
    train(plan, SlowEngine(life), FakeBatches(), FakeCheckpoints(disk, life), FakeStop(), TellingJournal(disk, life))
    assert told == [(1.0, 0.0)] * 4
