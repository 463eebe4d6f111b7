"""How much attention each row of a split takes.

Attention within documents costs the square of their lengths, so rows that are equally long differ in work by as much as
their documents do. The number is the sum of the squared lengths of a row's segments, of which its padding is one, as
attention computes that too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.shards.blocks import Block, ShardFile
from data_prep.shards.manifest import Manifest, ShardInfo, check_size
from data_prep.shards.row_numbers import RowNumber

Work = npt.NDArray[np.int64]


def shard_attention_work(folder: Path, shard: ShardInfo) -> Work:
    """Return the attention work of a shard's rows.

    That reads the whole shard, as the system reads around each page. A block is not hashed here; it is when one of its
    rows is read, and then the row's work is compared.
    """
    check_size(folder, shard.path, shard.bytes)
    file = ShardFile(folder / shard.path, shard.table_at, shard.table_sha256, checked=None)
    return np.concatenate([block_attention_work(file.read(number)) for number in range(1, len(file.table.ends))])


def block_attention_work(block: Block) -> Work:
    """Return the attention work of a block's rows."""
    lengths = block.piece_tokens.astype(np.int64)
    tokens, squares = (np.concatenate([[0], np.cumsum(values)]) for values in (lengths, lengths**2))
    padding = block.ids.shape[1] - np.diff(tokens[block.piece_first])
    work: Work = np.diff(squares[block.piece_first]) + padding**2
    return work


def row_attention_work(pieces: npt.NDArray[np.int32], row_tokens: int) -> int:
    """Return the attention work of one row, from the lengths of its segments."""
    lengths = pieces.astype(np.int64)
    return int((lengths**2).sum() + (row_tokens - lengths.sum()) ** 2)


ATTENTION_WORK = RowNumber(name="attention_work.npy", dtype=np.dtype("<i8"), of_shard=shard_attention_work)


def tells_work(manifest: Manifest) -> bool:
    """Return whether data tells the work of its training rows in a file, so without its shards being read."""
    return any(item.path == f"train/{ATTENTION_WORK.name}" for item in manifest.others)
