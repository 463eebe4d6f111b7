"""The plan of a run: batches, steps and bytes, computed from the configuration, the data and the world size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from cluster.errors import ConfigError
from cluster.wording import count_of, either_of
from data_prep.shards import Manifest
from training.config import TrainConfig
from training.optimizer_state import STATE_BYTES_PER_PARAMETER
from training.order import BY_WORK, IN_TURN, Division

MOST_EPOCHS_A_STEP = 1000  # beyond it a batch is a slip of the keyboard, and dealing it takes hours


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every step: a linear warm-up to the peak, then constant or decaying to a share of it."""

    peak: float
    kind: str
    final_fraction: float
    warmup_steps: int
    total_steps: int

    @classmethod
    def of(cls, config: TrainConfig, total_steps: int, warmup_steps: int) -> Schedule:
        return cls(
            peak=config.learning_rate,
            kind=config.schedule,
            final_fraction=config.final_learning_rate_fraction,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0)."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        share = 1.0 - done if self.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.peak * (self.final_fraction + (1.0 - self.final_fraction) * share)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of a run at one world size. `trained_tokens` counts those of the training split."""

    world_size: int
    micro_batch_rows: int
    accumulation_steps: int
    global_batch_rows: int
    row_tokens: int
    rows: int
    trained_tokens: int
    total_steps: int
    warmup_steps: int
    parameters: int
    trained_parameters: int
    checkpoint_bytes: int
    seed: int
    data_digest: str
    config: TrainConfig
    deal: int = IN_TURN  # that of a record without it

    @property
    def division(self) -> Division:
        return Division(
            rows=self.global_batch_rows,
            ranks=self.world_size,
            micro_batch_rows=self.micro_batch_rows,
            deal=self.deal,
        )

    @property
    def schedule(self) -> Schedule:
        return Schedule.of(self.config, self.total_steps, self.warmup_steps)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0)."""
        return self.schedule.learning_rate(step)

    def is_save_due(self, steps_done: int) -> bool:
        return steps_done == self.total_steps or steps_done % self.config.save_every_steps == 0

    def is_validation_due(self, steps_done: int) -> bool:
        """Return whether held-out rows are evaluated after so many steps: at each save, and as often as asked."""
        every = self.config.validate_every_steps
        return self.is_save_due(steps_done) or (every is not None and steps_done % every == 0)

    def checkpoints_at_once(self) -> int:
        """Return the largest number of checkpoints on disk at once, including the one being written."""
        saved = [step for step in range(1, self.total_steps + 1) if self.is_save_due(step)]
        every = self.config.keep_every_steps
        return min(len(saved), self.config.keep_last + 1 + len([step for step in saved if every and step % every == 0]))

    def identity(self) -> dict[str, Any]:
        """Return the settings that two attempts at one run must share; see training.run_identity."""
        return {**identity_of(self.config, self.data_digest, self.seed, self.deal), "parameters": self.parameters}

    def as_record(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "config": self.config.model_dump(mode="json")}

    def trained_text(self) -> str:
        trained = self.trained_parameters
        return "" if trained == self.parameters else f", {trained:,} trained ({trained / self.parameters:.2%})"

    def step_lines(self) -> Iterator[str]:
        rows, batch_tokens = count_of(self.global_batch_rows, "row"), self.global_batch_rows * self.row_tokens
        is_even = self.division.empty_places == 0
        ranks, micro = count_of(self.world_size, "rank"), count_of(self.micro_batch_rows, "row")
        yield (
            f"step         {rows}, {batch_tokens:,} tokens {'=' if is_even else 'on'}"
            f" {ranks} x {micro} x {count_of(self.accumulation_steps, 'accumulation step')}"
        )
        if not is_even:
            yield f"             {empty_places_text(self.division)}"

    def as_text(self) -> str:
        """Return the plan as printed before the first step."""
        rows, steps, epochs = self.rows, self.total_steps, self.total_steps * self.global_batch_rows / self.rows
        return "\n".join(
            [
                f"data         {count_of(rows, 'row')} of {self.row_tokens:,} tokens, {self.trained_tokens:,} trained",
                *self.step_lines(),
                f"length       {count_of(steps, 'step')}, {epochs:.2f} epochs,"
                f" warm-up {count_of(self.warmup_steps, 'step')}",
                f"model        {self.parameters:,} parameters{self.trained_text()};"
                f" a checkpoint takes {self.checkpoint_bytes / 1e9:.3f} GB",
            ]
        )


def identity_of(config: TrainConfig, data_digest: str, seed: int, deal: int = BY_WORK) -> dict[str, Any]:
    """Return a run's identity as far as it is known without the model.

    Left out is what changes no result: how many ranks share the batch, when to save, what to keep, when to give up. A
    run that deals its batches in turn has no "deal": there was no other when it began.
    """
    free = {"micro_batch_rows", "cpu_ranks", "deepspeed", "zero_stage", "activation_checkpointing", "deterministic"}
    free |= {"hpz", "compile", "attention", "loss_chunk_tokens"}
    free |= {
        "save_every_steps",
        "validation_rows",
        "validate_every_steps",
        "keep_last",
        "keep_every_steps",
        "save_copy_gb",
    }
    free |= {"max_skipped_steps", "max_rollbacks", "hang_timeout_s"}
    fixed = {f"train.{k}": v for k, v in config.model_dump(mode="json").items() if k not in free}
    return {**fixed, "data": data_digest, "seed": seed, **({} if deal == IN_TURN else {"deal": deal})}


def make_plan(
    config: TrainConfig,
    manifest: Manifest,
    *,
    parameters: int,
    world_size: int,
    seed: int,
    trained_parameters: int | None = None,
) -> Plan:
    """Return the plan of a run that begins now. Raises ConfigError if the data has no rows.

    `trained_parameters` defaults to all `parameters`.
    """
    trained = parameters if trained_parameters is None else trained_parameters
    rows = manifest.rows("train")
    if rows == 0:
        raise ConfigError("data: the training split has no rows; add documents, or lower validation_fraction")
    if config.global_batch_rows > MOST_EPOCHS_A_STEP * rows:
        raise ConfigError(
            f"train.global_batch_rows: {config.global_batch_rows:,} is more than {MOST_EPOCHS_A_STEP:,} times the"
            f" {count_of(rows, 'row')} of the training split; a step needs no row twice"
        )
    total_steps = steps_of(config, rows)
    division = Division(rows=config.global_batch_rows, ranks=world_size, micro_batch_rows=config.micro_batch_rows)
    return Plan(
        world_size=world_size,
        micro_batch_rows=config.micro_batch_rows,
        accumulation_steps=division.accumulation_steps,
        global_batch_rows=config.global_batch_rows,
        row_tokens=manifest.row_tokens,
        rows=rows,
        trained_tokens=manifest.trained_tokens("train"),
        total_steps=total_steps,
        warmup_steps=warmup_steps_of(config, total_steps),
        parameters=parameters,
        trained_parameters=trained,
        checkpoint_bytes=trained * STATE_BYTES_PER_PARAMETER,
        seed=seed,
        data_digest=manifest.content_digest,
        config=config,
        deal=BY_WORK,
    )


def empty_places_text(division: Division) -> str:
    """Return how many places of a step are empty, and what would leave none empty."""
    micro, ranks = division.even_micro_batch(), division.nearest_even_ranks()
    ways = [f"with micro_batch_rows {micro}"] * (micro is not None)
    ways += [f"on {either_of(ranks, 'rank')}"] * bool(ranks)
    even = ", or ".join([*ways, f"with a global batch of {either_of(division.nearest_even_batches(), 'row')}"])
    return f"{division.empty_places} of {division.places} places empty; none would be {even}"


def steps_of(config: TrainConfig, rows: int) -> int:
    if config.steps is not None:
        return config.steps
    return max(1, math.ceil((config.epochs or 1.0) * rows / config.global_batch_rows))


def warmup_steps_of(config: TrainConfig, total_steps: int) -> int:
    return round(total_steps * config.warmup_fraction)


def make_schedule(config: TrainConfig, rows: int) -> Schedule:
    """Return the learning rates of a run over `rows` training rows."""
    total_steps = steps_of(config, rows)
    return Schedule.of(config, total_steps, warmup_steps_of(config, total_steps))
