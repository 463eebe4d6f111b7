"""The writing side of the contract in data_prep/shards.py: shards, the files that make a split a dataset, the seal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.files import digest_of, sha256_of, whole_file, write_json
from data_prep.blocks import write_blocks
from data_prep.shards import MANIFEST, SPLITS, ListedFile, Manifest, Piece, ShardInfo


@dataclass(frozen=True, kw_only=True)
class Row:
    """One packed row, ready to be written. `input_ids` and `loss_mask` have T values."""

    input_ids: npt.NDArray[np.uint32]
    loss_mask: npt.NDArray[np.bool_]
    pieces: Sequence[Piece]


def token_type(vocab_size: int) -> pa.DataType:
    """Return the smallest unsigned type that holds every id."""
    return pa.uint16() if vocab_size <= 2**16 else pa.uint32()


def row_schema(row_tokens: int, vocab_size: int) -> pa.Schema:
    """Return the Arrow schema of a shard, with the feature types that `datasets` reads from it."""
    ids = token_type(vocab_size)
    columns: dict[str, tuple[pa.DataType, dict[str, Any]]] = {
        "input_ids": (pa.list_(ids, row_tokens), sequence_feature(str(ids), row_tokens)),
        "loss_mask": (pa.list_(pa.bool_(), row_tokens), sequence_feature("bool", row_tokens)),
        "trained_tokens": (pa.int32(), {"dtype": "int32", "_type": "Value"}),
        "piece_tokens": (pa.list_(pa.int32()), sequence_feature("int32")),
        "piece_source": (pa.list_(pa.int32()), sequence_feature("int32")),
        "piece_position": (pa.list_(pa.int64()), sequence_feature("int64")),
        "piece_start": (pa.list_(pa.int32()), sequence_feature("int32")),
    }
    features = {name: feature for name, (_, feature) in columns.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([pa.field(name, kind) for name, (kind, _) in columns.items()], metadata=metadata)


def sequence_feature(dtype: str, length: int = -1) -> dict[str, Any]:
    """Return the `datasets` description of a list; the old name 'Sequence' is read by every version."""
    return {"feature": {"dtype": dtype, "_type": "Value"}, "length": length, "_type": "Sequence"}


def rows_to_batch(rows: Sequence[Row], schema: pa.Schema) -> pa.RecordBatch:
    """Return rows as one Arrow record batch of `schema`."""
    ids_type = schema.field("input_ids").type
    numpy_ids = np.uint16 if ids_type.value_type == pa.uint16() else np.uint32
    ids = np.stack([row.input_ids for row in rows]).astype(numpy_ids)
    masks = np.stack([row.loss_mask for row in rows])

    def piece_lists(name: str) -> pa.Array:
        return pa.array(
            [[getattr(piece, name) for piece in row.pieces] for row in rows], schema.field(f"piece_{name}").type
        )

    return pa.record_batch(
        [
            pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), type=ids_type),
            pa.FixedSizeListArray.from_arrays(pa.array(masks.reshape(-1)), type=schema.field("loss_mask").type),
            pa.array(masks.sum(axis=1, dtype=np.int32)),
            *(piece_lists(name) for name in ("tokens", "source", "position", "start")),
        ],
        schema=schema,
    )


def write_shard(path: Path, relative: str, rows: Iterable[Sequence[Row]], schema: pa.Schema) -> ShardInfo:
    """Write batches of rows as one shard file, whole or not at all, and return its manifest entry."""
    tokens: list[int] = []

    def record_batches() -> Iterator[pa.RecordBatch]:
        for batch in rows:
            tokens.append(sum(piece.tokens for row in batch for piece in row.pieces))
            yield rows_to_batch(batch, schema)

    with whole_file(path) as partial:
        written = write_blocks(partial, schema, record_batches())
    return ShardInfo(path=relative, tokens=sum(tokens), **asdict(written))


def write_split_files(folder: Path, shards: Sequence[ShardInfo], schema: pa.Schema, split: str) -> None:
    """Write the two JSON files that make a split's folder a dataset for `datasets.load_from_disk`."""
    info = json.loads(schema.metadata[b"huggingface"])["info"]
    state: dict[str, Any] = {
        "_data_files": [{"filename": Path(shard.path).name} for shard in shards],
        "_fingerprint": digest_of([shard.sha256 for shard in shards])[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    write_json(folder / "dataset_info.json", info)
    write_json(folder / "state.json", state)


def list_others(folder: Path) -> list[ListedFile]:
    """Return the files of the tokenizer, and those that make the splits datasets, as the manifest lists them."""
    names = [path for part in ("tokenizer", *SPLITS) for path in sorted((folder / part).glob("*"))]
    return [
        ListedFile(path=str(path.relative_to(folder)), bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in names
        if path.suffix != ".arrow"
    ]


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Seal and write the manifest; from then on the folder is prepared data."""
    sealed = manifest.sealed()
    write_json(folder / MANIFEST, asdict(sealed))
    return sealed
