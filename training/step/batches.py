"""Row numbers to tensors, up to two steps ahead of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from cluster.splitmix import finalize
from data_prep.shards import Batch, ShardReader
from training.order import BY_WORK, IN_TURN, Division, Order
from training.step.deal import Deal, by_work, in_turn
from training.step.document_attention import starts_of
from training.step.loss import Trained


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One micro batch. Ids, positions and mask are [rows, row_tokens]; positions restart at each document.

    `segments` are the lengths of the documents, row after row, a row's padding being a segment of its own.
    `document_tokens` is the sum of the documents' lengths, `document_squares` that of their squares. `row_check` sums
    up to 0 over the micro batches of all ranks if they have each row of the global batch once.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    loss_mask: torch.Tensor
    trained: Trained
    segments: list[int]
    starts: torch.Tensor  # where each segment begins, and where the last one ends, [segments + 1] int32
    document_tokens: int
    document_squares: int
    index: int  # its place among the micro batches of the global batch
    row_check: int = 0
    part: int = 0  # where its documents have rows of their own: which of its forward passes this is

    def pinned(self) -> MicroBatch:
        """Return it in memory from which a GPU copies while the host goes on."""
        ids, positions, starts = (t.pin_memory() for t in (self.input_ids, self.position_ids, self.starts))
        return replace(self, input_ids=ids, position_ids=positions, starts=starts, trained=self.trained.pinned())


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One rank's share of a step; `rows` and `trained_tokens` are those of the whole global batch."""

    step: int
    rows: list[int]
    micro_batches: list[MicroBatch]
    trained_tokens: int


def micro_batch(batch: Batch, index: int) -> MicroBatch:
    """Return rows as tensors."""
    lengths = [pieces.tolist() for pieces in batch.piece_tokens]
    return micro_batch_of(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.loss_mask), lengths, index)


def micro_batch_of(
    input_ids: torch.Tensor, loss_mask: torch.Tensor, lengths: list[list[int]], index: int, part: int = 0
) -> MicroBatch:
    """Return ids and mask [rows, row_tokens] with what follows from them and the lengths of each row's documents."""
    rests = [input_ids.shape[1] - sum(row) for row in lengths]
    segments = [length for row, rest in zip(lengths, rests, strict=True) for length in (*row, rest) if length]
    return MicroBatch(
        input_ids=input_ids,
        position_ids=torch.cat([torch.arange(length) for length in segments]).reshape(input_ids.shape),
        loss_mask=loss_mask,
        trained=trained_tokens(input_ids, loss_mask),
        segments=segments,
        starts=starts_of(segments),
        document_tokens=sum(map(sum, lengths)),
        document_squares=sum(length**2 for row in lengths for length in row),
        index=index,
        part=part,
    )


def trained_tokens(input_ids: torch.Tensor, loss_mask: torch.Tensor) -> Trained:
    """Return where the trained tokens are predicted, and which they are; the first token of a row never is one."""
    rows, places = loss_mask[:, 1:].nonzero(as_tuple=True)
    return Trained(places=rows * input_ids.shape[1] + places, targets=input_ids[:, 1:][rows, places])


def nothing_of(batch: MicroBatch) -> MicroBatch:
    """Return a micro batch without a trained token, for a rank that has no rows left."""
    mask = torch.zeros_like(batch.loss_mask)
    trained = trained_tokens(batch.input_ids, mask)
    return replace(batch, loss_mask=mask, trained=trained, document_tokens=0, document_squares=0)


def micro_batch_or_nothing(reader: ShardReader, rows: Sequence[int], index: int, *, spare: int) -> MicroBatch:
    """Return rows as tensors; without rows, the row `spare` with nothing trained.

    Every rank must call the model as often as the others. One row is enough for that, and it is one that another rank
    trains: so its zero gradients can only be NaN where the step's are.
    """
    if rows:
        return micro_batch(reader.rows(rows), index)
    return nothing_of(micro_batch(reader.rows([spare]), index))


def one_document_a_row(batch: MicroBatch, border: int | None = None) -> list[MicroBatch]:
    """Return the documents of a micro batch in rows of their own, for models in which those of a row see each other.

    Documents of about a length share a forward pass, which has no more tokens than the micro batch, so it needs no more
    memory. What follows a document in its row is padding with id 0, which a causal model does not look at. Documents
    without a trained token are left out. Those longer than `border` tokens do not share a pass with those that are not.
    """
    documents = sorted(trained_documents(batch), key=lambda document: -len(document[0]))
    longer = sum(len(ids) > border for ids, _ in documents) if border is not None else 0
    parts: list[MicroBatch] = []
    for group in (documents[:longer], documents[longer:]):
        while group:
            together = batch.input_ids.numel() // len(group[0][0])
            chosen, group = group[:together], group[together:]
            parts.append(padded(chosen, batch.index, len(parts)))
    return parts


def trained_documents(batch: MicroBatch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ids and mask [tokens] of each document that has a trained token."""
    ids, masks = (torch.split(rows.flatten(), batch.segments) for rows in (batch.input_ids, batch.loss_mask))
    return ((document, mask) for document, mask in zip(ids, masks, strict=True) if mask.any())


def padded(documents: Sequence[tuple[torch.Tensor, torch.Tensor]], index: int, part: int) -> MicroBatch:
    """Return documents as rows as long as the longest."""
    ids, masks = zip(*documents, strict=True)
    return micro_batch_of(
        pad_sequence(list(ids), batch_first=True),
        pad_sequence(list(masks), batch_first=True),
        [[len(document)] for document in ids],
        index,
        part,
    )


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of one rank: arithmetic decides the rows, memory-mapped shards hold them."""

    reader: ShardReader
    order: Order
    rank: int
    world_size: int
    micro_batch_rows: int
    deal: int = BY_WORK
    held_out: ShardReader | None = None
    held_out_rows: int = 0
    pin: bool = False
    """Whether the batches of `steps` lie in pinned memory, for a GPU."""

    def for_step(self, step: int) -> StepBatch:
        """Return this rank's batch of a step; depends on nothing but the data, the seed, the step and the world."""
        rows = self.order.rows_of_step(step)
        checks = row_checks(rows)
        micro_batches: list[MicroBatch] = []
        # By work, the first share has the heaviest micro batch: ranks take turns, or one would always look slow.
        turn = self.rank if self.deal == IN_TURN else (self.rank + step) % self.world_size
        for share in self.dealt(rows).of_rank(turn):
            mine = [rows[place] for place in share.places]
            check = sum(checks[place] for place in share.places)
            if self.rank == 0 and not micro_batches:
                check -= sum(checks)
            micro = micro_batch_or_nothing(self.reader, mine, share.number, spare=rows[0])
            micro_batches.append(replace(micro, row_check=check))
        return StepBatch(
            step=step, rows=rows, micro_batches=micro_batches, trained_tokens=self.reader.trained_tokens(rows)
        )

    @property
    def division(self) -> Division:
        return Division(
            rows=self.order.global_batch_rows,
            ranks=self.world_size,
            micro_batch_rows=self.micro_batch_rows,
            deal=self.deal,
        )

    def dealt(self, rows: Sequence[int]) -> Deal:
        """Return the micro batches of a global batch, those of all ranks."""
        if self.deal == IN_TURN:
            return in_turn(self.division)
        return by_work(self.reader.attention_work(rows), self.reader.trained_tokens_of(rows), self.division)

    def steps(self, first: int, stop: int) -> Iterator[StepBatch]:
        """Yield the batches of steps first..stop; a thread reads the next two meanwhile."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
            ahead = [thread.submit(self.pinned, step) for step in range(first, min(first + 2, stop))]
            for step in range(first, stop):
                if step + 2 < stop:
                    ahead.append(thread.submit(self.pinned, step + 2))
                yield ahead.pop(0).result()

    def pinned(self, step: int) -> StepBatch:
        batch = self.for_step(step)
        if not self.pin:
            return batch
        return replace(batch, micro_batches=[micro.pinned() for micro in batch.micro_batches])

    def validation(self) -> Iterator[MicroBatch]:
        """Yield this rank's share of the held-out rows, the same micro batches for every world size.

        Every rank has as many, since all must call the model equally often: some may have nothing to score.
        """
        if self.held_out is None:
            return
        micro = self.micro_batch_rows
        division = replace(self.division, rows=self.held_out_rows)
        for start in range(self.rank * micro, division.places, division.unit):
            rows = range(start, min(start + micro, self.held_out_rows))
            yield micro_batch_or_nothing(self.held_out, rows, start // micro, spare=0)


def row_checks(rows: Sequence[int]) -> list[int]:
    """Return a number of 32 bits for each row: sums of up to two million of them are exact in fp64."""
    checks: list[int] = (finalize(np.asarray(rows, dtype=np.uint64)) >> np.uint64(32)).tolist()
    return checks
