"""Which rows are in step N: arithmetic on (rows, seed, N) alone, in O(1) memory.

Each epoch visits the rows in the order of a keyed permutation, a small format-preserving cipher: a balanced Feistel
network (Luby and Rackoff, "How to Construct Pseudorandom Permutations from Pseudorandom Functions", 1988) on the next
even number of bits, with cycle walking down to the number of rows (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). A shuffled list of 10^9 rows would take 8 GB on every rank; this takes nothing, and step N is found
without the steps before it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cluster.splitmix import finalize
from data_prep.shards import Manifest

ROUNDS = 6  # three make a pseudorandom permutation of a perfect round function; the rest is for one that is only quick
IN_TURN, BY_WORK = 1, 2  # how a global batch is dealt to ranks: by versions before the second, and since
Ids = npt.NDArray[np.uint64]


def permuted(positions: Ids, row_count: int, key: bytes) -> Ids:
    """Return the row at each position of the order that `key` names; positions are below `row_count`."""
    half_bits = np.uint64(max(1, ((row_count - 1).bit_length() + 1) // 2))
    round_keys = [hashlib.blake2b(bytes([number]), key=key, digest_size=8).digest() for number in range(ROUNDS)]
    keys = [np.uint64(int.from_bytes(digest, "little")) for digest in round_keys]
    result = feistel(positions.astype(np.uint64), half_bits, keys)
    # The network permutes 2**(2 * half_bits) numbers, up to four times as many as there are rows. From a number that is
    # no row, walking on along its cycle ends at one, since the cycle leads back to the position, which is below the
    # count; and no two positions end at the same, since a cycle has one way only. Less than four walks on average.
    while (outside := result >= row_count).any():
        result[outside] = feistel(result[outside], half_bits, keys)
    return result


def feistel(values: Ids, half_bits: np.uint64, keys: list[np.uint64]) -> Ids:
    """Permute the numbers below 2**(2 * half_bits)."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        # a bijection whatever the round function is: `right` is kept, and with it what `left` was changed by
        left, right = right, left ^ (finalize(right ^ key) & mask)
    return (left << half_bits) | right


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of a run. `data_digest` binds it to the rows, so other data has another order."""

    row_count: int
    global_batch_rows: int
    seed: int
    data_digest: str

    def rows_of_step(self, step: int) -> list[int]:
        """Return the global batch of a step (from 0): `global_batch_rows` row numbers; epochs follow without a gap."""
        first = step * self.global_batch_rows
        numbers = np.arange(first, first + self.global_batch_rows, dtype=np.uint64)
        # a batch may lie in several epochs: its numbers in the endless stream of rows tell which, and where
        epochs, positions = numbers // np.uint64(self.row_count), numbers % np.uint64(self.row_count)
        rows = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = permuted(positions[here], self.row_count, self.epoch_key(int(epoch)))
        return [int(row) for row in rows]

    def epoch_key(self, epoch: int) -> bytes:
        return hashlib.blake2b(f"{self.seed}/{epoch}/{self.data_digest}".encode(), digest_size=32).digest()


@dataclass(frozen=True, kw_only=True)
class Division:
    """How a global batch of `rows` is divided among `ranks` that take `micro_batch_rows` at a time.

    All ranks take as many micro batches, since all must call the model equally often. If the rows do not fill them,
    some are a row shorter than others (some of one row: empty). Dealt in turn, the last one of some ranks is shorter or
    empty, and no other is.
    """

    rows: int
    ranks: int
    micro_batch_rows: int
    deal: int = BY_WORK

    @property
    def unit(self) -> int:
        """Rows that all ranks take at a time."""
        return self.ranks * self.micro_batch_rows

    @property
    def accumulation_steps(self) -> int:
        return math.ceil(self.rows / self.unit)

    @property
    def micro_batches(self) -> int:
        """Micro batches of all ranks."""
        return self.accumulation_steps * self.ranks

    @property
    def places(self) -> int:
        """Rows that there is room for in a step."""
        return self.accumulation_steps * self.unit

    @property
    def empty_places(self) -> int:
        return self.places - self.rows

    @property
    def most_rows(self) -> int:
        """Rows of the rank that has most: a step takes as long as these do."""
        if self.deal == BY_WORK:
            return math.ceil(self.rows / self.ranks)
        before = self.accumulation_steps - 1
        return before * self.micro_batch_rows + min(self.micro_batch_rows, self.rows - before * self.unit)

    @property
    def idle_share(self) -> float:
        """Share of the ranks' time in which they wait for those that have the most rows."""
        return 1 - self.rows / (self.ranks * self.most_rows)

    def nearest_even_batches(self) -> list[int]:
        """Return the nearest numbers of rows, below and above, that leave no place empty."""
        below = self.rows // self.unit * self.unit
        return [batch for batch in (below, below + self.unit) if batch]

    def even_micro_batch(self) -> int | None:
        """Return the largest smaller `micro_batch_rows` that leaves no place empty; there may be none."""
        share, rest = divmod(self.rows, self.ranks)
        sizes = range(self.micro_batch_rows - 1, 0, -1)
        return None if rest else next((size for size in sizes if share % size == 0), None)

    def nearest_even_ranks(self) -> list[int]:
        """Return the nearest numbers of ranks, below and above, that leave no place empty; there may be none."""
        micro_batches, rest = divmod(self.rows, self.micro_batch_rows)
        even = [] if rest else [ranks for ranks in range(1, micro_batches + 1) if micro_batches % ranks == 0]
        return [*[ranks for ranks in even if ranks < self.ranks][-1:], *[r for r in even if r > self.ranks][:1]]

    def faster(self) -> Division | None:
        """Return the division with the largest smaller `micro_batch_rows` that leaves the least idle; None without."""
        sizes = range(self.micro_batch_rows - 1, 0, -1)
        best = min((replace(self, micro_batch_rows=size) for size in sizes), key=lambda d: d.most_rows, default=self)
        return best if best.most_rows < self.most_rows else None


def order_of(manifest: Manifest, global_batch_rows: int, seed: int) -> Order:
    """Return the order of the run that trains on prepared data."""
    return Order(
        row_count=manifest.rows("train"),
        global_batch_rows=global_batch_rows,
        seed=seed,
        data_digest=manifest.content_digest,
    )
