"""Random access to the rows of a split."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.shards.blocks import Block, ShardFile
from data_prep.shards.manifest import Manifest, Piece, check_shards


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows as arrays: ids and mask are [rows, T]; `piece_tokens` has one array of lengths for each row."""

    input_ids: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.bool_]
    piece_tokens: list[npt.NDArray[np.int32]]


class ShardReader:
    """Random access to the rows of one split, by row number over all its shards, from memory-mapped files.

    The size of every shard is checked first, and with `verify` the sha256 of each block of rows when it is first read.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str, *, verify: bool = True) -> None:
        self.folder, self.verify = folder, verify
        self.row_tokens = manifest.row_tokens
        self.shards = manifest.splits[split]
        check_shards(folder, self.shards)
        self.files: dict[int, ShardFile] = {}
        self.first_rows = [0, *itertools.accumulate(shard.rows for shard in self.shards)]

    def __len__(self) -> int:
        return self.first_rows[-1]

    def shard_of(self, row: int) -> tuple[ShardFile, int]:
        """Return the shard that holds a row, mapped at its first use, and the row's number in it."""
        number = bisect.bisect_right(self.first_rows, row) - 1
        if number not in self.files:
            shard = self.shards[number]
            path = self.folder / shard.path
            self.files[number] = ShardFile(path, shard.table_at, shard.table_sha256, verify=self.verify)
        return self.files[number], row - self.first_rows[number]

    def locate(self, row: int) -> tuple[Block, int]:
        """Return the block that holds a row, and the row's index in it. Raises DataError if it is damaged."""
        shard, within = self.shard_of(row)
        return shard.locate(within)

    def rows(self, row_ids: Sequence[int]) -> Batch:
        """Return the given rows, in this order."""
        input_ids = np.empty((len(row_ids), self.row_tokens), dtype=np.int64)
        bits = np.empty((len(row_ids), self.row_tokens // 8), dtype=np.uint8)
        pieces = []
        for index, row in enumerate(row_ids):
            block, within = self.locate(row)
            input_ids[index] = block.ids[within]
            bits[index] = block.mask[within]
            pieces.append(block.piece_tokens[block.piece_first[within] : block.piece_first[within + 1]])
        loss_mask = np.unpackbits(bits, axis=1, bitorder="little").view(np.bool_)
        return Batch(input_ids=input_ids, loss_mask=loss_mask, piece_tokens=pieces)

    def trained_tokens(self, row_ids: Sequence[int]) -> int:
        """Return how many tokens of the given rows are trained; the rows themselves are not read."""
        return sum(shard.table.trained[within] for shard, within in map(self.shard_of, row_ids))

    def pieces(self, row: int) -> list[Piece]:
        """Return which stretches of which documents a row holds."""
        block, within = self.locate(row)
        columns = [
            block.batch.column(f"piece_{name}")[within].as_py() for name in ("tokens", "source", "position", "start")
        ]
        return [
            Piece(tokens=tokens, source=source, position=position, start=start)
            for tokens, source, position, start in zip(*columns, strict=True)
        ]
