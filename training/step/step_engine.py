"""One optimizer step at a time, with an honest loss, whichever backend computes gradients and updates weights."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from cluster.environment import World
from training.step.batches import MicroBatch, nothing_of
from training.step.isolation import IsolationCheck, check_isolation
from training.step.loss import StepStats
from training.step.packed_model import Isolation, Loss, PackedModel


class StepEngine(ABC):
    """Loss, seeds and validation of a run. A backend adds gradients and updates. Methods are collective if they say so.

    A backend sets `model` and `device` when it has built the model.
    """

    model: PackedModel
    device: torch.device

    def __init__(self, world: World, seed: int, row_tokens: int) -> None:
        self.world, self.run_seed, self.row_tokens = world, seed, row_tokens

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
    def gradient_norm(self) -> float:
        """Return the norm of the whole gradient; inf if it is not finite. Collective."""

    @abstractmethod
    def update(self, step: int, *, discard: bool) -> None:
        """Update the weights, or discard the gradients and change nothing. Collective."""

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
        """
        self.set_learning_rate(learning_rate)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # of the tokens' losses, of the routers'
        passes = self.forward_passes(batches)
        for number, batch in enumerate(passes, start=1):
            self.seed(step, batch)
            loss = self.loss(batch)
            sums += loss.sums()
            self.add_gradients(loss.trained(), trained_tokens, is_last=number == len(passes))
        dist.all_reduce(sums)
        token_loss, auxiliary_loss = (sums / trained_tokens).tolist()
        stats = StepStats(
            loss=token_loss,
            gradient_norm=self.gradient_norm(),
            auxiliary_loss=None if self.model.auxiliary_weight is None else auxiliary_loss,
        )
        reason = skip_reason(stats)
        self.update(step, discard=bool(reason))
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
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

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
