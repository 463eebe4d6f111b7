"""How many tokens of each row of a split are trained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.errors import DamagedRowsError
from data_prep.shards.blocks import AGAIN, parse_trained_tokens
from data_prep.shards.manifest import ShardInfo, check_size
from data_prep.shards.row_numbers import RowNumber


def shard_trained_tokens(folder: Path, shard: ShardInfo) -> npt.NDArray[np.int32]:
    """Return the trained tokens of a shard's rows from its table. Raises DataError if it is damaged."""
    check_size(folder, shard.path, shard.bytes)
    with (folder / shard.path).open("rb") as stream:
        stream.seek(shard.table_at)
        data = stream.read()
    if hashlib.sha256(data).hexdigest() != shard.table_sha256:
        raise DamagedRowsError(
            f"{folder / shard.path}: damaged in bytes {shard.table_at} to {shard.bytes}, its table of blocks; {AGAIN}"
        )
    return parse_trained_tokens(data)


TRAINED_TOKENS = RowNumber(name="trained_tokens.npy", dtype=np.dtype("<i4"), of_shard=shard_trained_tokens)
