"""How the rows of a global batch are dealt to micro batches, and these to ranks, so that no rank waits for another.

All rows are equally long, but attention within documents costs the square of their lengths: one document that fills a
row takes as much as eight rows of eight documents. Under ZeRO-3 the ranks meet at every layer of every micro batch, so
the heaviest rank sets the pace.

Items are sorted by work and laid out in layers of as many as there are hands, each layer in the opposite direction to
the one before it: a hand gets one item of each layer. As the layers are sorted, two hands differ by no more than the
heaviest item, however many there are. Exchanges of single items then bring the hands closer. First rows are handed out
to micro batches, then micro batches to ranks; each rank takes its heaviest first, so those that run at the same time
are neighbours in work.

It is arithmetic on integers: the batch, its rows' work and the division decide all, and nothing is kept between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from training.order import Division

Integers = npt.NDArray[np.int64]
Values = Sequence[int] | npt.NDArray[np.integer[Any]]

SLACK = 200  # attention work counts as equal within this part of a hand's share: then trained tokens are balanced
ROUNDS = 4  # of exchanges, one for each pair of hands
MORE_ROUNDS, FEW_HANDS = 16, 32  # for attention work where hands are so few that a round is quick
COMPARED = 16  # items of a hand in a round, evenly spaced from the heaviest to the lightest; in the next round others


@dataclass(frozen=True, slots=True)
class Share:
    """One micro batch of one rank: the places of its rows in the global batch, and its number among all of the step.

    The number seeds dropout.
    """

    number: int
    places: list[int]


@dataclass(frozen=True, slots=True)
class Deal:
    """All micro batches of a step, and the rank and accumulation step of each.

    `places` [micro batches, rows] are the places of their rows in the global batch, -1 where there is none; `numbers`
    [ranks, accumulation steps] are micro batches.
    """

    places: Integers
    numbers: Integers

    def of_rank(self, rank: int) -> list[Share]:
        """Return the micro batches of a rank, one for each accumulation step; they may be empty."""
        numbers = self.numbers[rank]
        rows = self.places[numbers].tolist()
        return [
            Share(number, [place for place in places if place >= 0])
            for number, places in zip(numbers.tolist(), rows, strict=True)
        ]

    def sums(self, values: Values) -> Integers:
        """Return the sum of the rows' values over each micro batch, [ranks, accumulation steps]."""
        sums: Integers = padded(values)[self.places].sum(axis=1)[self.numbers]
        return sums


def in_turn(division: Division) -> Deal:
    """Return a batch cut as it stands, a micro batch to each rank in turn."""
    places = np.arange(division.places).reshape(division.micro_batches, division.micro_batch_rows)
    numbers = np.arange(division.micro_batches).reshape(division.accumulation_steps, division.ranks)
    return Deal(np.where(places < division.rows, places, -1), numbers.T)


def by_work(work: Values, trained: Values, division: Division) -> Deal:
    """Return the deal whose ranks differ least in attention work, and then in trained tokens.

    `work` and `trained` are those of each row of the batch. The ranks' numbers of rows differ by one at most, and so do
    those of the micro batches. Where none is shorter than another, they have the same rows in every world.
    """
    count = division.micro_batches
    one = np.ones(division.rows, np.int64)
    places = hand_out(Items(padded(work), padded(trained), padded(one)), count)
    places = np.sort(np.where(places < 0, division.rows, places), axis=1)  # no row last
    places = places[np.argsort(places[:, 0], kind="stable")]
    places[places == division.rows] = -1
    sums = Items(*(padded(padded(values)[places].sum(axis=1)) for values in (work, trained, one)))
    return Deal(places, hand_out(sums, division.ranks))


@dataclass(frozen=True, slots=True)
class Items:
    """What is handed out: the attention work, the trained tokens and the rows of each item, and a 0 for no item."""

    work: Integers
    trained: Integers
    rows: Integers


def padded(values: Values) -> Integers:
    """Return values with a 0 behind them, for the index -1."""
    return np.append(np.asarray(values, dtype=np.int64), 0)


def hand_out(items: Items, hands: int) -> Integers:
    """Return the items of each hand, [hands, layers], the heaviest first; -1 where a hand has none of the last layer.

    Hands differ by one item and one row at most, and items of one size by the heaviest one's work at most.
    """
    order = np.lexsort((-items.work[:-1], -items.rows[:-1]))
    layers = -(-len(order) // hands)
    filled = np.append(order, np.full(layers * hands - len(order), -1)).reshape(layers, hands)
    filled[1::2] = filled[1::2, ::-1]
    table: Integers = np.ascontiguousarray(filled.T)
    if layers > 1 and hands > 1:
        equalize_work(table, items)
        equalize_trained(table, items)
        rank = np.full(len(order) + 1, len(order))
        rank[order] = np.arange(len(order))
        table = np.append(order, -1)[np.sort(rank[table], axis=1)]
    return table


def equalize_work(table: Integers, items: Items) -> None:
    """Exchange items between hands, while that makes their attention work more equal.

    An exchange leaves both hands between what they had, so the largest difference never grows.
    """
    work = items.work[table]
    works = work.sum(axis=1)
    enough = int(works.sum()) // (len(table) * SLACK)
    for number in range(MORE_ROUNDS if len(table) <= FEW_HANDS else ROUNDS):
        if works.max() - works.min() <= enough:
            return
        pairs = Pairs.of(works, items.rows[table], number)
        pairs.exchange(pairs.gains(work, works), table)
        work = items.work[table]
        works = work.sum(axis=1)


def equalize_trained(table: Integers, items: Items) -> None:
    """Exchange items between hands, while that makes their trained tokens more equal and keeps attention work as equal.

    As equal is within SLACK, or within what it is already.
    """
    works = items.work[table].sum(axis=1)
    room = max(int(works.sum()) // (len(table) * SLACK), int(works.max() - works.min()))
    highest = (int(works.max() + works.min()) + room) // 2
    for number in range(ROUNDS):
        trained, work = items.trained[table], items.work[table]
        counts, works = trained.sum(axis=1), work.sum(axis=1)
        if (counts.max() - counts.min()) * len(table) * SLACK <= counts.sum():
            return
        pairs = Pairs.of(counts, items.rows[table], number)
        gains, carried = pairs.gains(trained, counts), pairs.moved(work)
        left, given = works[pairs.high][:, None, None] - carried, works[pairs.low][:, None, None] + carried
        gains[(np.minimum(left, given) < highest - room) | (np.maximum(left, given) > highest)] = 0
        pairs.exchange(gains, table)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Hands that have much, each with one that has little, and the layers whose items are compared for an exchange.

    `alike` [pairs, items of the high hand, items of the low hand] says which items have as many rows.
    """

    high: Integers
    low: Integers
    layers: Integers
    alike: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, sums: Integers, rows: Integers, turn: int) -> Self:
        """Pair the hands by their sums, the highest with the lowest, and in later turns with the next ones."""
        order, half = np.argsort(sums, kind="stable"), len(sums) // 2
        high, low = order[::-1][:half], np.roll(order[:half], turn)
        every = -(-rows.shape[1] // COMPARED)
        layers = np.arange(turn % every, rows.shape[1], every)
        left, right = rows[high][:, layers], rows[low][:, layers]
        return cls(high, low, layers, left[:, :, None] == right[:, None, :])

    def moved(self, values: Integers) -> Integers:
        """Return what each exchange moves from the high hand to the low one."""
        high, low = values[self.high][:, self.layers], values[self.low][:, self.layers]
        moved: Integers = high[:, :, None] - low[:, None, :]
        return moved

    def gains(self, values: Integers, sums: Integers) -> Integers:
        """Return how much closer each exchange brings the sums of two hands; not positive: it does not."""
        moved = self.moved(values)
        gaps = (sums[self.high] - sums[self.low])[:, None, None]
        return np.where(self.alike, np.minimum(moved, gaps - moved), 0)

    def exchange(self, gains: Integers, table: Integers) -> None:
        """Make the best exchange of each pair that has one."""
        flat = gains.reshape(len(gains), -1)
        best = flat.argmax(axis=1)
        pairs = np.flatnonzero(flat[np.arange(len(flat)), best] > 0)
        mine, theirs = np.divmod(best[pairs], len(self.layers))
        left, right = (self.high[pairs], self.layers[mine]), (self.low[pairs], self.layers[theirs])
        table[left], table[right] = table[right], table[left]
