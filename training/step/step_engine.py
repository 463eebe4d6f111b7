"""One optimizer step at a time, with an honest loss, whichever backend computes gradients and updates weights."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist

from cluster.errors import DataError
from cluster.network.world import World
from training.step.batches import MicroBatch, nothing_of
from training.step.isolation import IsolationCheck, check_isolation
from training.step.loss import StepStats
from training.step.packed_model import Isolation, Loss, PackedModel
from training.step.step_times import Laps, LayerClock, Profile

DEALT_APART = (
    "the ranks do not have each row of the global batch once, so they do not read the same data: run `shardline verify`"
    " on its folder on every host"
)


class StepEngine(ABC):
    """Loss, seeds and validation of a run. A backend adds gradients and updates. Methods are collective if they say so.

    A backend sets `model` and `device` when it has built the model.
    """

    model: PackedModel
    device: torch.device
    host_group: dist.ProcessGroup | None = None
    """For what the hosts agree on among themselves, without waiting for their GPUs; None: the default group."""
    profile: Profile | None = None
    """Which steps to trace."""
    last_update: Laps | None = None
    layer_clock: LayerClock | None = None
    """Measures the decoder layers in the first forward pass of a step."""

    def __init__(self, world: World, seed: int, row_tokens: int, *, is_even: bool = True) -> None:
        """`is_even` says that the ranks' micro batches have no empty places."""
        self.world, self.run_seed, self.row_tokens, self.is_even = world, seed, row_tokens, is_even

    @abstractmethod
    def set_training(self, training: bool) -> None:
        """Switch between training and evaluation, as torch.nn.Module.train(training) does."""

    @abstractmethod
    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next update."""

    @abstractmethod
    def add_gradients(self, loss_sum: torch.Tensor, total_weight: int, *, is_last: bool) -> None:
        """Add the gradients of loss_sum / total_weight to the step's, which sums those of all ranks. Collective."""

    @abstractmethod
    def gradient_norms(self) -> torch.Tensor:
        """Return the norms of the whole gradient's groups [groups], on the device; negative or inf: not finite.

        Collective.
        """

    @abstractmethod
    def update(self, step: int, norms: torch.Tensor, *, discard: bool) -> None:
        """Update the weights, or discard the gradients and change nothing. Collective.

        `norms` are those that `gradient_norms` returned, on the CPU, so that nobody computes them again.
        """

    def step(
        self,
        step: int,
        batches: Sequence[MicroBatch],
        trained_tokens: int,
        learning_rate: float,
        skip_reason: Callable[[StepStats], str | None],
    ) -> StepStats:
        """Take one optimizer step on this rank's micro batches; `trained_tokens` counts those of the global batch.

        The loss is the sum over the trained tokens of the global batch divided by their number, whatever the number of
        ranks and accumulation steps. `skip_reason` sees it and the gradient norm before the weights change: if it
        returns a reason, the gradients are discarded, and neither weights nor moments nor Adam's step counter change.
        Collective.

        A GPU computes while the host goes on. The host waits for it once, in `tolist`, to decide by loss and norm. So
        the time of an update is known a step later.
        """
        with nullcontext() if self.profile is None else self.profile.around(step):
            return self.taken_step(step, batches, trained_tokens, learning_rate, skip_reason)

    def taken_step(
        self,
        step: int,
        batches: Sequence[MicroBatch],
        trained_tokens: int,
        learning_rate: float,
        skip_reason: Callable[[StepStats], str | None],
    ) -> StepStats:
        """Do what `step` promises, traced or not."""
        self.set_learning_rate(learning_rate)
        if not self.is_even:
            self.check_total(step, batches, trained_tokens)
        laps = Laps(self.device)
        sums = torch.tensor([0.0, 0.0, *counts_of(batches)], dtype=torch.float64).to(self.device, non_blocking=True)
        passes = self.forward_passes(batches)
        for number, batch in enumerate(passes, start=1):
            self.seed(step, batch)
            with self.layer_clock.measuring() if self.layer_clock and number == 1 else nullcontext():
                loss = self.loss(batch)
            sums[:2] += loss.sums()
            laps.lap("forward_s")
            self.add_gradients(loss.trained(), trained_tokens, is_last=number == len(passes))
            laps.lap("backward_s")
        dist.all_reduce(sums)
        norms = self.gradient_norms()
        told = torch.cat([sums[:2] / trained_tokens, sums[2:], norms.to(sums)]).tolist()
        token_loss, auxiliary_loss, row_check, document_tokens, document_squares, *group_norms = told
        if row_check != 0:
            raise DataError(f"step {step + 1}: {DEALT_APART}")
        norms = torch.tensor(group_norms, dtype=norms.dtype)  # fp64 has held their bits
        stats = StepStats(
            loss=token_loss,
            gradient_norm=whole_norm(norms),
            auxiliary_loss=None if self.model.auxiliary_weight is None else auxiliary_loss,
            document_tokens=int(document_tokens),
            document_squares=int(document_squares),
            times={
                **laps.seconds(),
                **(self.layer_clock.seconds() if self.layer_clock else {}),
                **(self.last_update.seconds() if self.last_update else {}),
            },
        )
        reason = skip_reason(stats)
        self.last_update = Laps(self.device)
        self.update(step, norms, discard=bool(reason))
        self.last_update.lap("update_s")
        return replace(stats, skipped=reason)

    def loss(self, batch: MicroBatch) -> Loss:
        """Return the loss of one forward pass."""
        return self.model.loss(batch)

    def check_isolation(self, examples: Sequence[MicroBatch]) -> IsolationCheck:
        """Check that documents of a row do not attend to each other, and choose how they are kept apart. Collective.

        `examples` are the micro batches from which the cost of each way is estimated. Raises TrainingError if the model
        cannot be trained on packed rows.
        """
        self.set_training(False)
        check = check_isolation(self.model, self.row_tokens, examples, self.largest)
        self.set_training(True)
        return check

    def check_total(self, step: int, batches: Sequence[MicroBatch], trained_tokens: int) -> None:
        """Raise RuntimeError if the ranks do not have the trained tokens of the global batch between them. Collective.

        A row that two ranks train, or none, would change the loss too little to be noticed.
        """
        found = torch.tensor(sum(len(batch.trained.targets) for batch in batches))
        dist.all_reduce(found, group=self.host_group)
        if int(found) != trained_tokens:
            raise RuntimeError(f"step {step}: the ranks have {int(found)} trained tokens, the batch {trained_tokens}")

    def largest(self, values: Sequence[float]) -> list[float]:
        """Return the largest value of all ranks at each index. Collective."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return list(tensor.tolist())

    def forward_passes(self, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """Return what the model is called with for these micro batches, as often on every rank. Collective.

        In ZeRO-3 all ranks must call the model equally often; documents in rows of their own take as many calls as
        their lengths need.
        """
        passes = [part for batch in batches for part in self.model.parts(batch)]
        if self.model.isolation is not Isolation.ONE_A_ROW:
            return passes
        missing = self.all_reduce_max(len(passes)) - len(passes)
        return [*passes, *[nothing_of((passes or batches)[0])] * missing]

    @torch.no_grad()
    def validation_loss(self, batches: Iterable[MicroBatch]) -> float | None:
        """Return the mean loss of a trained token in held-out micro batches; None if there are none. Collective.

        Each rank gives its share of the batches.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # nats, tokens
        self.set_training(False)
        for batch in batches:
            for part in self.forward_passes([batch]):
                loss = self.loss(part)
                sums[0] += loss.summed
                sums[1] += loss.tokens
        self.set_training(True)
        dist.all_reduce(sums)
        nats, tokens = sums.tolist()
        return nats / tokens if tokens else None

    def all_reduce_max(self, value: int) -> int:
        """Return the largest of all ranks' values. Collective."""
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.host_group)
        return int(tensor.item())

    def largest_and_each(self, value: int, own: int) -> tuple[int, list[int]]:
        """Return the largest of all ranks' values, and each rank's `own` number from 0, in one all-reduce.

        Collective.
        """
        tensor = torch.zeros(1 + self.world.size, dtype=torch.int64)
        tensor[0], tensor[1 + self.world.rank] = value, own
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.host_group)
        largest, *each = tensor.tolist()
        return largest, each

    def broadcast_from_rank0(self, make: Callable[[], str]) -> str:
        """Return what the first rank makes. Collective."""
        made = [make() if self.world.is_first else ""]
        dist.broadcast_object_list(made, src=0)
        return made[0]

    def seed(self, step: int, batch: MicroBatch) -> None:
        """Seed dropout from (seed, step, micro batch): random state is arithmetic, so a checkpoint carries none."""
        part = f".{batch.part}" if batch.part else ""
        digest = hashlib.sha256(f"{self.run_seed}/{step}/{batch.index}{part}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def whole_norm(norms: torch.Tensor) -> float:
    """Return the norm of the whole gradient from those of its groups, inf if one is negative or not a number."""
    return float(torch.linalg.vector_norm(norms.float())) if bool((norms >= 0).all()) else math.inf


def counts_of(batches: Sequence[MicroBatch]) -> tuple[int, int, int]:
    """Return the sums over a rank's micro batches that the ranks add up: row checks, documents' tokens and squares."""
    return (
        sum(batch.row_check for batch in batches),
        sum(batch.document_tokens for batch in batches),
        sum(batch.document_squares for batch in batches),
    )
