"""Which rows are in step N: arithmetic on (rows, seed, N) alone, in O(1) memory.

Each epoch visits the rows in the order of a keyed permutation, a small format-preserving cipher: a balanced Feistel
network (Luby and Rackoff, "How to Construct Pseudorandom Permutations from Pseudorandom Functions", 1988) on the next
even number of bits, with cycle walking down to the number of rows (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). A shuffled list of 10^9 rows would take 8 GB on every rank; this takes nothing, and step N is found
without the steps before it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.splitmix import finalize
from data_prep.shards import Manifest

ROUNDS = 6  # three make a pseudorandom permutation of a perfect round function; the rest is for one that is only quick
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

    def micro_batches(self, step: int, rank: int, world_size: int, micro_batch_rows: int) -> list[list[int]]:
        """Return the rows of each accumulation step of one rank.

        The global batch is cut into micro batches, dealt to the ranks in turn: micro batch k of the step is the same
        rows for every world size.
        """
        rows = self.rows_of_step(step)
        starts = range(rank * micro_batch_rows, len(rows), world_size * micro_batch_rows)
        return [rows[start : start + micro_batch_rows] for start in starts]


def order_of(manifest: Manifest, global_batch_rows: int, seed: int) -> Order:
    """Return the order of the run that trains on prepared data."""
    return Order(
        row_count=manifest.rows("train"),
        global_batch_rows=global_batch_rows,
        seed=seed,
        data_digest=manifest.content_digest,
    )
