"""How the rows of a batch are dealt: each once, to ranks that have the same to do."""

from __future__ import annotations

from itertools import chain
from statistics import mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.order import IN_TURN, Division
from training.step.balance import difference
from training.step.deal import SLACK, Deal, Integers, Share, by_work, in_turn

worlds, sizes = st.integers(1, 17), st.integers(1, 9)
rows_of_a_batch = st.lists(st.tuples(st.integers(1, 10**10), st.integers(0, 4096)), min_size=1, max_size=150)


@given(batch=rows_of_a_batch, ranks=worlds, micro_batch_rows=sizes)
def test_every_row_is_dealt_once_and_no_rank_or_micro_batch_has_two_rows_more_than_another(
    batch: list[tuple[int, int]], ranks: int, micro_batch_rows: int
) -> None:
    division = Division(rows=len(batch), ranks=ranks, micro_batch_rows=micro_batch_rows)
    dealt = shares_of(by_work(*columns(batch), division))
    assert [len(shares) for shares in dealt] == [division.accumulation_steps] * ranks
    shares = list(chain.from_iterable(dealt))
    assert sorted(share.number for share in shares) == list(range(division.micro_batches))
    assert sorted(chain.from_iterable(share.places for share in shares)) == list(range(len(batch)))
    rows = [len(share.places) for share in shares]
    assert max(rows) - min(rows) <= 1 and max(rows) <= micro_batch_rows
    of_rank = [sum(len(share.places) for share in mine) for mine in dealt]
    assert max(of_rank) - min(of_rank) <= 1 and max(of_rank) == division.most_rows


@given(batch=rows_of_a_batch, ranks=worlds, micro_batch_rows=sizes)
def test_ranks_differ_by_no_more_work_than_the_heaviest_row_or_half_a_percent_of_a_share(
    batch: list[tuple[int, int]], ranks: int, micro_batch_rows: int
) -> None:
    """By three such rows if micro batches differ in rows. So by 1 % at most where no row is 1 % of a rank's share."""
    work, trained = columns(batch)
    division = Division(rows=len(batch), ranks=ranks, micro_batch_rows=micro_batch_rows)
    of_ranks = by_work(work, trained, division).sums(work).sum(axis=1)
    heaviest = max(work) * (3 if division.empty_places else 1)
    assert of_ranks.sum() == sum(work)
    assert of_ranks.max() - of_ranks.min() <= max(heaviest, sum(work) / (ranks * SLACK))


@given(work=st.lists(st.integers(1, 10**10), min_size=48, max_size=48), micro_batch_rows=st.sampled_from([1, 2, 4]))
def test_a_micro_batch_has_the_same_number_and_rows_in_every_world_that_fills_its_places(
    work: list[int], micro_batch_rows: int
) -> None:
    found = {}
    for ranks in (1, 2, 3, 4, 6, 12):
        dealt = by_work(work, [1] * 48, Division(rows=48, ranks=ranks, micro_batch_rows=micro_batch_rows))
        found[ranks] = {share.number: share.places for share in chain.from_iterable(shares_of(dealt))}
    assert all(shares == found[1] for shares in found.values())
    if micro_batch_rows == 1:
        assert found[1] == {place: [place] for place in range(48)}


@pytest.mark.parametrize(("ranks", "micro_batch_rows"), [(2, 1), (4, 2), (8, 1), (8, 4), (16, 2)])
def test_rows_of_very_different_work_are_shared_within_a_percent_and_keep_ranks_waiting_less(
    ranks: int, micro_batch_rows: int
) -> None:
    random = np.random.default_rng(0)
    division = Division(rows=512, ranks=ranks, micro_batch_rows=micro_batch_rows)
    found: dict[str, list[float]] = {"work": [], "trained": [], "waiting": []}
    before: dict[str, list[float]] = {"work": [], "trained": [], "waiting": []}
    for _ in range(8):
        work = np.minimum(random.lognormal(13, 0.7, 512), 4e6).astype(np.int64)
        trained = random.integers(0, 2048, 512)
        for told, deal in ((found, by_work(work, trained, division)), (before, in_turn(division))):
            told["work"].append(difference(deal.sums(work)))
            told["trained"].append(difference(deal.sums(trained)))
            told["waiting"].append(waiting(deal.sums(work)))
    assert mean(found["work"]) <= 0.01 < mean(before["work"])
    assert mean(found["trained"]) < mean(before["trained"]) / 2
    assert mean(found["waiting"]) < mean(before["waiting"]) / 4


@given(rows=st.integers(1, 60), ranks=st.integers(1, 9), micro_batch_rows=st.integers(1, 12))
def test_in_turn_a_batch_is_cut_as_it_stands(rows: int, ranks: int, micro_batch_rows: int) -> None:
    division = Division(rows=rows, ranks=ranks, micro_batch_rows=micro_batch_rows, deal=IN_TURN)
    dealt = shares_of(in_turn(division))
    cut = [list(range(rows))[first : first + micro_batch_rows] for first in range(0, rows, micro_batch_rows)]
    shares = list(chain.from_iterable(zip(*dealt, strict=True)))
    assert [share.number for share in shares] == list(range(division.micro_batches))
    assert [share.places for share in shares] == cut + [[]] * (division.micro_batches - len(cut))
    assert max(sum(len(share.places) for share in mine) for mine in dealt) == division.most_rows


def test_a_batch_is_dealt_in_the_same_way_in_every_version_of_this_program() -> None:
    work = [9, 4, 7, 1, 8, 8, 3, 2, 5, 6]
    dealt = shares_of(by_work(work, list(range(10)), Division(rows=10, ranks=2, micro_batch_rows=3)))
    assert [[(share.number, share.places) for share in shares] for shares in dealt] == [
        [(1, [1, 3, 5]), (3, [4, 8])],
        [(0, [0, 6, 7]), (2, [2, 9])],
    ]


def shares_of(deal: Deal) -> list[list[Share]]:
    return [deal.of_rank(rank) for rank in range(len(deal.numbers))]


def columns(batch: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [work for work, _ in batch], [trained for _, trained in batch]


def waiting(sums: Integers) -> float:
    """Return how much longer than with equal shares a step takes, if ranks wait for each other after each micro batch.

    `sums` are the times of the micro batches [ranks, accumulation steps].
    """
    return float(sums.max(axis=0).sum() / sums.sum() * len(sums) - 1)
