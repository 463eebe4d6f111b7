"""Row numbers to tensors, one step ahead of the engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from data_prep.shards import Batch, ShardReader
from training.order import Order


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Tensors of one micro batch, all [rows, row_tokens]: positions restart at each piece of a document."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    loss_mask: torch.Tensor
    index: int  # its place among the micro batches of the global batch


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One rank's share of a step; `rows` and `trained_tokens` are those of the whole global batch."""

    step: int
    rows: list[int]
    micro_batches: list[MicroBatch]
    trained_tokens: int


def position_ids(piece_tokens: list[npt.NDArray[np.int32]], row_tokens: int) -> npt.NDArray[np.int64]:
    """Return positions [rows, row_tokens] that restart at each piece; padding is a piece of its own."""
    result = np.empty((len(piece_tokens), row_tokens), dtype=np.int64)
    for row, lengths in enumerate(piece_tokens):
        used = int(lengths.sum())
        lengths_with_padding = [*lengths.tolist(), row_tokens - used]
        result[row] = np.concatenate([np.arange(length) for length in lengths_with_padding])
    return result


def micro_batch(batch: Batch, index: int) -> MicroBatch:
    """Return rows as tensors."""
    return MicroBatch(
        input_ids=torch.from_numpy(batch.input_ids),
        position_ids=torch.from_numpy(position_ids(batch.piece_tokens, batch.input_ids.shape[1])),
        loss_mask=torch.from_numpy(batch.loss_mask),
        index=index,
    )


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of one rank: arithmetic decides the rows, memory-mapped shards hold them."""

    reader: ShardReader
    order: Order
    rank: int
    world_size: int
    micro_batch_rows: int
    held_out: ShardReader | None = None
    held_out_rows: int = 0

    def for_step(self, step: int) -> StepBatch:
        """Return this rank's batch of a step; depends on nothing but the data, the seed and the step."""
        dealt = self.order.micro_batches(step, self.rank, self.world_size, self.micro_batch_rows)
        rows = self.order.rows_of_step(step)
        return StepBatch(
            step=step,
            rows=rows,
            micro_batches=[
                micro_batch(self.reader.rows(rows), index=number * self.world_size + self.rank)
                for number, rows in enumerate(dealt)
            ],
            trained_tokens=self.reader.trained_tokens(rows),
        )

    def steps(self, first: int, stop: int) -> Iterator[StepBatch]:
        """Yield the batches of steps first..stop, the next one being read on a thread meanwhile."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
            ahead = [thread.submit(self.for_step, step) for step in range(first, min(first + 2, stop))]
            for step in range(first, stop):
                if step + 2 < stop:
                    ahead.append(thread.submit(self.for_step, step + 2))
                yield ahead.pop(0).result()

    def validation(self) -> Iterator[MicroBatch]:
        """Yield this rank's share of the held-out rows, the same micro batches for every world size.

        Every rank has as many, since all must call the model equally often: some may have nothing to score.
        """
        if self.held_out is None:
            return
        starts = range(0, self.held_out_rows, self.micro_batch_rows)
        for index in range(self.rank, math.ceil(len(starts) / self.world_size) * self.world_size, self.world_size):
            start = starts[index] if index < len(starts) else 0
            rows = range(start, min(start + self.micro_batch_rows, self.held_out_rows))
            batch = micro_batch(self.held_out.rows(rows), index)
            yield batch if index < len(starts) else replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
