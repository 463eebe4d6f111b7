"""Random access to the rows of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.errors import DamagedRowsError
from data_prep.shards.attention_work import ATTENTION_WORK, row_attention_work
from data_prep.shards.blocks import Block, CheckedBlocks, ShardFile
from data_prep.shards.manifest import Manifest, Piece, check_size
from data_prep.shards.row_numbers import RowNumbers, first_rows_of, open_row_numbers
from data_prep.shards.trained_tokens import TRAINED_TOKENS

OPEN_SHARDS = 1024  # mapped, with their tables, of about 10 kB each
OPEN_BLOCKS = 4096  # views of their columns, of about 3 kB each; each may hold the mapping of a shard that is closed


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows as arrays: ids and mask are [rows, T]; `piece_tokens` has one array of lengths for each row."""

    input_ids: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.bool_]
    piece_tokens: list[npt.NDArray[np.int32]]


class ShardReader:
    """Random access to the rows of one split, by row number over all its shards, from memory-mapped files.

    A shard's size is checked when it is opened, and with `verify` the sha256 of each block of rows when it is first
    read. So many shards and blocks as were used last stay open, without a file descriptor; what grows with the data is
    a few bytes for each shard that was opened. Threads may share a reader.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str, *, verify: bool = True) -> None:
        self.folder, self.verify, self.split = folder, verify, split
        self.manifest, self.row_tokens = manifest, manifest.row_tokens
        self.shards = manifest.splits[split]
        self.first_rows = first_rows_of(self.shards)
        self.counts = open_row_numbers(TRAINED_TOKENS, folder, manifest, split)
        self.checked: dict[int, CheckedBlocks] = defaultdict(CheckedBlocks)
        self.shard = lru_cache(OPEN_SHARDS)(self.open_shard)
        self.block = lru_cache(OPEN_BLOCKS)(self.read_block)

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    @cached_property
    def work(self) -> RowNumbers:
        """The attention work of the split's rows; only training asks for it."""
        return open_row_numbers(ATTENTION_WORK, self.folder, self.manifest, self.split)

    def open_shard(self, number: int) -> ShardFile:
        """Map a shard. Raises DataError if it is not what the manifest says."""
        shard = self.shards[number]
        check_size(self.folder, shard.path, shard.bytes)
        checked = self.checked[number] if self.verify else None
        return ShardFile(self.folder / shard.path, shard.table_at, shard.table_sha256, checked)

    def read_block(self, number: int, block: int) -> Block:
        """Return a block of a shard. Raises DataError if it is damaged."""
        return self.shard(number).read(block)

    def numbers_of(self, row_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return row numbers as an array. Raises IndexError if the split has no such row."""
        numbers = np.asarray(row_ids, dtype=np.int64)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(self)):
            asked = f"rows {numbers.min()} to {numbers.max()} were asked for"
            raise IndexError(f"{self.folder / self.split} has {len(self)} rows, {asked}")
        return numbers

    def shard_of(self, row: int) -> tuple[ShardFile, int]:
        """Return the shard that holds a row, and the row's number in it."""
        (number,) = np.searchsorted(self.first_rows, self.numbers_of([row]), side="right") - 1
        return self.shard(int(number)), row - int(self.first_rows[number])

    def locate(self, number: int, within: int) -> tuple[Block, int]:
        """Return the block that holds row `within` of a shard, and its index there. Raises DataError if damaged."""
        table = self.shard(number).table
        block = table.block_of(within)
        return self.block(number, block), within - table.first_rows[block - 1]

    def rows(self, row_ids: Sequence[int]) -> Batch:
        """Return the given rows, in this order. Raises DataError if a block of theirs is damaged."""
        numbers = self.numbers_of(row_ids)
        input_ids = np.empty((len(numbers), self.row_tokens), dtype=np.int64)
        bits = np.empty((len(numbers), self.row_tokens // 8), dtype=np.uint8)
        pieces: dict[int, npt.NDArray[np.int32]] = {}
        shards = np.searchsorted(self.first_rows, numbers, side="right") - 1
        within = numbers - self.first_rows[shards]
        # in the order of the files, so that rows of one shard open it once, however many others are asked for
        order = np.argsort(numbers)
        columns = (order, shards[order], within[order])
        for index, shard, row in zip(*(column.tolist() for column in columns), strict=True):
            block, at = self.locate(shard, row)
            input_ids[index] = block.ids[at]
            bits[index] = block.mask[at]
            pieces[index] = block.piece_tokens[block.piece_first[at] : block.piece_first[at + 1]]
        loss_mask = np.unpackbits(bits, axis=1, bitorder="little").view(np.bool_)
        piece_tokens = [pieces[index] for index in range(len(numbers))]
        self.check_counts(numbers, loss_mask)
        self.check_work(numbers, piece_tokens)
        return Batch(input_ids=input_ids, loss_mask=loss_mask, piece_tokens=piece_tokens)

    def check_counts(self, numbers: npt.NDArray[np.int64], loss_mask: npt.NDArray[np.bool_]) -> None:
        """Raise DamagedRowsError if the counts, which no rank hashes as a whole, are not those of the rows' masks.

        Each row of a step is read by one of the ranks, so a wrong count is noticed before the step that it is part of.
        """
        said, found = self.counts.of(numbers), loss_mask.sum(axis=1)
        for at in np.flatnonzero(said != found)[:1].tolist():
            raise DamagedRowsError(
                f"{self.folder / self.split}: row {numbers[at]} has {found[at]} trained tokens, {said[at]} counted; "
                f"run `shardline verify {self.folder}`, delete the file that it names, and prepare again"
            )

    def check_work(self, numbers: npt.NDArray[np.int64], pieces: Sequence[npt.NDArray[np.int32]]) -> None:
        """Raise DamagedRowsError if rows were dealt by an attention work that is not theirs."""
        if "work" not in self.__dict__:
            return
        for row, said, lengths in zip(numbers.tolist(), self.work.of(numbers).tolist(), pieces, strict=True):
            found = row_attention_work(lengths, self.row_tokens)
            if said != found:
                raise DamagedRowsError(
                    f"{self.folder / self.split}: row {row} has attention work {found}, {said} is written; "
                    f"run `shardline verify {self.folder}`, delete the file that it names, and prepare again"
                )

    def attention_work(self, row_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the attention work of each of the given rows; the rows themselves are not read."""
        return self.work.of(self.numbers_of(row_ids))

    def trained_tokens(self, row_ids: Sequence[int]) -> int:
        """Return how many tokens of the given rows are trained; the rows themselves are not read."""
        return int(self.trained_tokens_of(row_ids).sum(dtype=np.int64))

    def trained_tokens_of(self, row_ids: Sequence[int]) -> npt.NDArray[np.int32]:
        """Return how many tokens of each of the given rows are trained; the rows themselves are not read."""
        return self.counts.of(self.numbers_of(row_ids))

    def pieces(self, row: int) -> list[Piece]:
        """Return which segments of which documents a row holds."""
        (number,) = (np.searchsorted(self.first_rows, self.numbers_of([row]), side="right") - 1).tolist()
        block, within = self.locate(number, row - int(self.first_rows[number]))
        columns = [
            block.batch.column(f"piece_{name}")[within].as_py() for name in ("tokens", "source", "position", "start")
        ]
        return [
            Piece(tokens=tokens, source=source, position=position, start=start)
            for tokens, source, position, start in zip(*columns, strict=True)
        ]
