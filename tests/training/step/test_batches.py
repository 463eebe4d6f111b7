"""From row numbers to tensors, the same for every world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shards import ShardReader, read_manifest
from training.order import BY_WORK, IN_TURN, Order
from training.step.batches import Batches, MicroBatch, micro_batch_of, nothing_of, one_document_a_row

ROWS, GLOBAL_BATCH = 30, 24  # rows in the data; in a step


@pytest.fixture(scope="module")
def reader(uneven_shards: Callable[[int], Path]) -> ShardReader:
    folder = uneven_shards(ROWS)
    return ShardReader(folder, read_manifest(folder), "train")


def order_of(rows: int) -> Order:
    return Order(row_count=rows, global_batch_rows=GLOBAL_BATCH, seed=3, data_digest="data")


def batches_of(reader: ShardReader, rank: int = 0, world_size: int = 1, micro_batch_rows: int = 2) -> Batches:
    return Batches(
        reader=reader,
        order=order_of(len(reader)),
        rank=rank,
        world_size=world_size,
        micro_batch_rows=micro_batch_rows,
    )


def same(left: MicroBatch, right: MicroBatch) -> bool:
    tensors = ("input_ids", "position_ids", "loss_mask")
    return left.index == right.index and all(torch.equal(getattr(left, t), getattr(right, t)) for t in tensors)


@given(
    rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=3),
    padding=st.integers(0, 7),
)
def test_positions_restart_at_each_piece_and_where_padding_begins(rows: list[list[int]], padding: int) -> None:
    row_tokens = max(sum(lengths) for lengths in rows) + padding
    ids = torch.zeros(len(rows), row_tokens, dtype=torch.long)
    positions = micro_batch_of(ids, ids > 0, rows, index=0).position_ids
    for row, lengths in enumerate(rows):
        starts = {0, *np.cumsum(lengths).tolist()}
        for place in range(row_tokens):
            assert positions[row, place] == (0 if place in starts else positions[row, place - 1] + 1)


def test_a_micro_batch_holds_the_rows_that_the_order_names(reader: ShardReader) -> None:
    batch = batches_of(reader, micro_batch_rows=GLOBAL_BATCH).for_step(5).micro_batches[0]
    rows = reader.rows(order_of(ROWS).rows_of_step(5))
    assert np.array_equal(batch.input_ids.numpy(), rows.input_ids)
    assert np.array_equal(batch.loss_mask.numpy(), rows.loss_mask)
    assert sum(batch.segments) == batch.input_ids.numel()


@given(first=st.integers(0, 10**6), count=st.integers(0, 6))
def test_reading_ahead_gives_the_batches_that_each_step_has_by_itself(
    reader: ShardReader, first: int, count: int
) -> None:
    batches = batches_of(reader, rank=1, world_size=2)
    ahead = list(batches.steps(first, first + count))
    assert [batch.step for batch in ahead] == list(range(first, first + count))
    for batch in ahead:
        alone = batches.for_step(batch.step)
        assert batch.trained_tokens == alone.trained_tokens
        assert all(map(same, batch.micro_batches, alone.micro_batches))


@given(step=st.integers(0, 10**6), world_size=st.integers(1, 14))
def test_every_rank_knows_how_many_tokens_the_whole_global_batch_trains(
    reader: ShardReader, step: int, world_size: int
) -> None:
    shares = [batches_of(reader, rank, world_size).for_step(step) for rank in range(world_size)]
    masks = [micro.loss_mask for share in shares for micro in share.micro_batches]
    assert {share.trained_tokens for share in shares} == {int(torch.cat(masks).sum())}


@given(step=st.integers(0, 10**6), world_size=st.integers(2, 30))
def test_the_ranks_together_take_each_row_once_and_in_worlds_that_divide_the_same_micro_batches(
    reader: ShardReader, step: int, world_size: int
) -> None:
    alone = batches_of(reader).for_step(step).micro_batches
    shares = [batches_of(reader, rank, world_size).for_step(step).micro_batches for rank in range(world_size)]
    together = sorted((micro for share in shares for micro in share), key=lambda micro: micro.index)
    assert [micro.index for micro in together] == list(range(len(together)))
    if GLOBAL_BATCH % (2 * world_size) == 0:
        assert all(map(same, together, sorted(alone, key=lambda micro: micro.index)))
    assert rows_in(together[:GLOBAL_BATCH]) == rows_in(alone)
    assert not any(micro.loss_mask.any() for micro in together[GLOBAL_BATCH:])


def rows_in(micro_batches: list[MicroBatch]) -> list[bytes]:
    return sorted(row.numpy().tobytes() for micro in micro_batches for row in micro.input_ids)


@given(step=st.integers(0, 10**6), world_size=st.integers(2, 14), deal=st.sampled_from([IN_TURN, BY_WORK]))
def test_the_checks_of_the_rows_sum_up_to_nothing_unless_a_rank_deals_in_another_way(
    reader: ShardReader, step: int, world_size: int, deal: int
) -> None:
    ranks = [replace(batches_of(reader, rank, world_size), deal=deal) for rank in range(world_size)]
    checks = [sum(micro.row_check for micro in rank.for_step(step).micro_batches) for rank in ranks]
    assert sum(checks) == 0 and float(max(checks)) == max(checks)
    other = sum(micro.row_check for micro in replace(ranks[1], rank=0).for_step(step + 1).micro_batches)
    assert other + sum(checks[1:]) != 0


def test_a_run_that_began_in_turn_keeps_its_micro_batches(reader: ShardReader) -> None:
    rows = order_of(ROWS).rows_of_step(5)
    for rank in range(3):
        found = replace(batches_of(reader, rank, 3), deal=IN_TURN).for_step(5).micro_batches
        for number, micro in enumerate(found):
            first = (3 * number + rank) * 2
            assert micro.index == 3 * number + rank
            assert np.array_equal(micro.input_ids.numpy(), reader.rows(rows[first : first + 2]).input_ids)


def test_a_rank_without_rows_has_one_row_of_the_step_with_nothing_trained(reader: ShardReader) -> None:
    ranks = [batches_of(reader, rank, GLOBAL_BATCH + 2).for_step(5).micro_batches for rank in range(GLOBAL_BATCH + 2)]
    idle = [micro for (micro,) in ranks if micro.index >= GLOBAL_BATCH]
    assert [len(micro.input_ids) for (micro,) in ranks] == [1] * len(ranks) and len(idle) == 2
    first = reader.rows(order_of(ROWS).rows_of_step(5)[:1]).input_ids
    assert all(np.array_equal(micro.input_ids.numpy(), first) and not micro.loss_mask.any() for micro in idle)


def test_an_error_while_reading_ahead_reaches_the_loop(reader: ShardReader) -> None:
    missing_rows = order_of(ROWS + 10**6)
    batches = Batches(reader=reader, order=missing_rows, rank=0, world_size=1, micro_batch_rows=2)
    with pytest.raises(IndexError):
        list(batches.steps(0, 3))


EPOCH, STEPS = 1003, 59  # a prime number of rows in each step: no world but 1 divides it


def test_resumed_at_every_step_in_worlds_of_1_to_9_an_epoch_has_every_row_once_in_the_same_steps(
    uneven_shards: Callable[[int], Path],
) -> None:
    folder = uneven_shards(EPOCH)
    manifest = read_manifest(folder)
    every_row = ShardReader(folder, manifest, "train").rows(range(EPOCH)).input_ids
    number_of = {ids.tobytes(): number for number, ids in enumerate(every_row)}
    order = Order(row_count=EPOCH, global_batch_rows=EPOCH // STEPS, seed=3, data_digest=manifest.content_digest)

    def seen(reader: ShardReader, step: int, world_size: int, micro_batch_rows: int) -> list[int]:
        """The rows of a step as the ranks of such a world read them."""
        dealt: dict[str, Any] = {"order": order, "world_size": world_size, "micro_batch_rows": micro_batch_rows}
        ranks = [Batches(reader=reader, rank=rank, **dealt) for rank in range(world_size)]
        micro_batches = [micro for rank in ranks for micro in rank.for_step(step).micro_batches]
        micro_batches.sort(key=lambda micro: micro.index)
        ids, masks = (torch.cat([getattr(m, name) for m in micro_batches]) for name in ("input_ids", "loss_mask"))
        assert not masks[order.global_batch_rows :].any()  # these rows stand in empty places
        return sorted(number_of[row.numpy().tobytes()] for row in ids[: order.global_batch_rows])

    epoch = [row for step in range(STEPS) for row in sorted(order.rows_of_step(step))]
    assert sorted(epoch) == list(range(EPOCH))
    for world_size in range(1, 10):
        reader = ShardReader(folder, manifest, "train")
        rows = [row for step in range(STEPS) for row in seen(reader, step, world_size, (step + world_size) % 7 + 1)]
        assert rows == epoch, world_size


@pytest.mark.parametrize("rows", [1, 5, 8, 30])
def test_the_held_out_rows_are_scored_once_in_every_world_by_as_many_calls_of_each_rank(
    reader: ShardReader, rows: int
) -> None:
    for world_size in range(1, 6):
        ranks = []
        for rank in range(world_size):
            batches = replace(batches_of(reader, rank, world_size, 3), held_out=reader, held_out_rows=rows)
            ranks.append(list(batches.validation()))
        assert len({len(batches) for batches in ranks}) == 1
        scored = sorted((b for batches in ranks for b in batches if b.loss_mask.any()), key=lambda batch: batch.index)
        ids = torch.cat([batch.input_ids for batch in scored]).numpy()
        assert np.array_equal(ids, reader.rows(range(rows)).input_ids)


def test_without_held_out_rows_nothing_is_scored(reader: ShardReader) -> None:
    assert list(batches_of(reader).validation()) == []


@given(
    rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=3),
    padding=st.integers(0, 7),
    seed=st.integers(0, 99),
)
def test_in_rows_of_their_own_the_same_tokens_are_trained_after_the_same_tokens(
    rows: list[list[int]], padding: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    row_tokens = max(sum(lengths) for lengths in rows) + padding
    ids = torch.randint(1, 10**6, (len(rows), row_tokens), generator=generator)
    mask = torch.rand(ids.shape, generator=generator) < 0.5
    packed = micro_batch_of(ids, mask & first_of_documents_left_out(rows, row_tokens), rows, index=4)
    parts = one_document_a_row(packed)
    assert sorted(predictions(packed)) == sorted(pair for part in parts for pair in predictions(part))
    assert all(part.input_ids.numel() <= packed.input_ids.numel() for part in parts)
    assert [(part.index, part.part) for part in parts] == [(4, number) for number in range(len(parts))]


def first_of_documents_left_out(rows: list[list[int]], row_tokens: int) -> torch.Tensor:
    """Nothing precedes the first token of a document, and padding is never trained."""
    mask = torch.zeros(len(rows), row_tokens, dtype=torch.bool)
    for row, lengths in enumerate(rows):
        mask[row, : sum(lengths)] = True
        mask[row, [0, *np.cumsum(lengths)[:-1].tolist()]] = False
    return mask


def predictions(batch: MicroBatch) -> list[tuple[int, ...]]:
    """Return each trained token, after all that stands before it in its document."""
    ids, positions = batch.input_ids.flatten().tolist(), batch.position_ids.flatten().tolist()
    found = []
    for place, target in zip(batch.trained.places.tolist(), batch.trained.targets.tolist(), strict=True):
        found.append((*ids[place - positions[place] : place + 1], target))
    return found


def test_a_batch_of_which_nothing_is_left_trains_no_token(reader: ShardReader) -> None:
    batch = nothing_of(batches_of(reader).for_step(0).micro_batches[0])
    assert len(batch.trained.targets) == 0 and not batch.loss_mask.any()
