"""Which rows are in step N, for any number of rows, seed, step and rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from training.order import BY_WORK, IN_TURN, Division, Order

seeds = st.integers(0, 2**32 - 1)
digests = st.text("0123456789abcdef", min_size=1, max_size=64)
epochs = st.integers(0, 10**12)


def order_of(row_count: int, batch: int, seed: int = 0, digest: str = "data") -> Order:
    return Order(row_count=row_count, global_batch_rows=batch, seed=seed, data_digest=digest)


@given(row_count=st.integers(1, 3000), seed=seeds, digest=digests, epoch=epochs)
def test_every_epoch_is_a_permutation_of_the_rows(row_count: int, seed: int, digest: str, epoch: int) -> None:
    epoch_a_step = order_of(row_count, row_count, seed, digest)
    assert sorted(epoch_a_step.rows_of_step(epoch)) == list(range(row_count))


@given(row_count=st.integers(1, 200), batch=st.integers(1, 500), seed=seeds)
def test_batches_go_over_an_epochs_end_without_a_gap(row_count: int, batch: int, seed: int) -> None:
    order, steps = order_of(row_count, batch, seed), 3 * row_count // batch + 1
    stream = list(chain.from_iterable(order.rows_of_step(step) for step in range(steps)))
    for first in range(0, len(stream) - row_count + 1, row_count):
        assert sorted(stream[first : first + row_count]) == list(range(row_count))


@given(row_count=st.integers(1, 200), batch=st.integers(1, 50), far=st.integers(10**12, 10**13), seed=seeds)
def test_a_step_far_away_continues_the_same_stream(row_count: int, batch: int, far: int, seed: int) -> None:
    first = far * batch
    single_rows = order_of(row_count, 1, seed)
    expected = [single_rows.rows_of_step(number)[0] for number in range(first, first + batch)]
    assert order_of(row_count, batch, seed).rows_of_step(far) == expected


@given(rows=st.integers(1, 300), ranks=st.integers(1, 40), micro_batch_rows=st.integers(1, 40))
def test_no_rank_takes_more_micro_batches_than_needed(rows: int, ranks: int, micro_batch_rows: int) -> None:
    division = Division(rows=rows, ranks=ranks, micro_batch_rows=micro_batch_rows)
    assert 0 <= division.empty_places < ranks * micro_batch_rows
    assert division.most_rows <= replace(division, deal=IN_TURN).most_rows


@given(
    rows=st.integers(1, 60),
    ranks=st.integers(1, 12),
    micro_batch_rows=st.integers(1, 12),
    deal=st.sampled_from([IN_TURN, BY_WORK]),
)
def test_what_is_advised_against_empty_places_leaves_none_and_is_the_nearest(
    rows: int, ranks: int, micro_batch_rows: int, deal: int
) -> None:
    division = Division(rows=rows, ranks=ranks, micro_batch_rows=micro_batch_rows, deal=deal)

    def is_even(**changed: int) -> bool:
        return replace(division, **changed).empty_places == 0

    def nearest(here: int, even: Callable[[int], bool]) -> list[int]:
        below, above = range(here - 1, 0, -1), range(here + 1, here + 145)
        return [next(filter(even, numbers)) for numbers in (below, above) if any(map(even, numbers))]

    if division.empty_places:
        assert division.nearest_even_batches() == nearest(rows, lambda number: is_even(rows=number))
        assert division.nearest_even_ranks() == nearest(ranks, lambda number: is_even(ranks=number))
        smaller = [size for size in range(1, micro_batch_rows) if is_even(micro_batch_rows=size)]
        assert division.even_micro_batch() == max(smaller, default=None)
    faster = division.faster()
    most = [replace(division, micro_batch_rows=size).most_rows for size in range(1, micro_batch_rows)]
    assert min(most, default=rows) >= (faster or division).most_rows
    assert faster is None or faster.idle_share < division.idle_share


@given(row_count=st.integers(50, 500), epoch=epochs, seed=seeds, digest=digests)
def test_another_seed_other_data_and_another_epoch_have_another_order(
    row_count: int, epoch: int, seed: int, digest: str
) -> None:
    rows = order_of(row_count, row_count, seed, digest).rows_of_step(epoch)
    assert order_of(row_count, row_count, seed + 1, digest).rows_of_step(epoch) != rows
    assert order_of(row_count, row_count, seed, digest + "0").rows_of_step(epoch) != rows
    assert order_of(row_count, row_count, seed, digest).rows_of_step(epoch + 1) != rows


def test_the_order_of_a_run_is_the_same_in_every_version_of_this_program() -> None:
    order = order_of(100, 12, seed=7, digest="abc")
    assert order.rows_of_step(0) == [81, 33, 30, 1, 72, 34, 31, 10, 5, 75, 43, 99]
    assert order.rows_of_step(10**12) == [98, 80, 82, 46, 44, 1, 30, 15, 67, 49, 9, 27]
