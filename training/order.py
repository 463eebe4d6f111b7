"""Which rows are in step N: arithmetic on (rows, seed, N) alone, in O(1) memory.

Each epoch visits the rows in the order of a keyed permutation: a balanced Feistel network on the next even number of
bits, with cycle walking down to the number of rows (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROUNDS = 6
Ids = npt.NDArray[np.uint64]


def permuted(positions: Ids, row_count: int, key: bytes) -> Ids:
    """Return the row at each position of the order that `key` names; positions are below `row_count`."""
    half_bits = np.uint64(max(1, ((row_count - 1).bit_length() + 1) // 2))
    round_keys = [hashlib.blake2b(bytes([number]), key=key, digest_size=8).digest() for number in range(ROUNDS)]
    keys = [np.uint64(int.from_bytes(digest, "little")) for digest in round_keys]
    result = feistel(positions.astype(np.uint64), half_bits, keys)
    while (outside := result >= row_count).any():  # walk the cycle until it comes back into the domain
        result[outside] = feistel(result[outside], half_bits, keys)
    return result


def feistel(values: Ids, half_bits: np.uint64, keys: list[np.uint64]) -> Ids:
    """Permute the numbers below 2**(2 * half_bits)."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (mixed(right ^ key) & mask)
    return (left << half_bits) | right


def mixed(values: Ids) -> Ids:
    """Scatter the bits of 64-bit numbers (the finalizer of SplitMix64, Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


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
