"""The writing side of the contract: shards, the files that make a split a dataset, the manifest that commits them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.disk.atomic_files import digest_of, sha256_of, whole_file, write_json
from data_prep.shards.attention_work import ATTENTION_WORK
from data_prep.shards.blocks import arrow_array, write_blocks
from data_prep.shards.manifest import MANIFEST, SPLITS, ListedFile, Manifest, Piece, ShardInfo
from data_prep.shards.row_numbers import write_row_numbers
from data_prep.shards.trained_tokens import TRAINED_TOKENS


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """One packed row. `input_ids` and `loss_mask` have T values."""

    input_ids: npt.NDArray[np.uint16 | np.uint32]
    loss_mask: npt.NDArray[np.bool_]
    pieces: Sequence[Piece]


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """Packed rows in columns: row r has the pieces first[r] to first[r + 1], piece i tokens[i] of them, and so on.

    `input_ids` and `loss_mask` are [rows, T].
    """

    input_ids: npt.NDArray[np.uint16 | np.uint32]
    loss_mask: npt.NDArray[np.bool_]
    first: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[PackedRow], vocab_size: int) -> Self:
        """Return single rows, at least one, as columns."""
        pieces = [(p.tokens, p.source, p.position, p.start) for row in rows for p in row.pieces]
        tokens, source, position, start = np.array(pieces, dtype=np.int64).T
        return cls(
            input_ids=np.stack([row.input_ids for row in rows]).astype(id_type(vocab_size)),
            loss_mask=np.stack([row.loss_mask for row in rows]),
            first=np.cumsum([0, *(len(row.pieces) for row in rows)]),
            tokens=tokens,
            source=source,
            position=position,
            start=start,
        )

    def __iter__(self) -> Iterator[PackedRow]:
        columns = zip(*(c.tolist() for c in (self.tokens, self.source, self.position, self.start)), strict=True)
        pieces = [Piece(tokens=t, source=f, position=p, start=s) for t, f, p, s in columns]
        for number, (begin, end) in enumerate(itertools.pairwise(self.first.tolist())):
            yield PackedRow(
                input_ids=self.input_ids[number], loss_mask=self.loss_mask[number], pieces=pieces[begin:end]
            )


def id_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Return the smallest unsigned type that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def row_schema(row_tokens: int, vocab_size: int) -> pa.Schema:
    """Return the Arrow schema of a shard, with the feature types that `datasets` reads from it."""
    ids = pa.from_numpy_dtype(id_type(vocab_size))
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


def rows_to_batch(rows: PackedRows, schema: pa.Schema) -> pa.RecordBatch:
    """Return rows as one Arrow record batch of `schema`."""
    bits = pa.py_buffer(np.packbits(rows.loss_mask.reshape(-1), bitorder="little"))
    mask = pa.BooleanArray.from_buffers(pa.bool_(), rows.loss_mask.size, [None, bits])
    trained = np.count_nonzero(rows.loss_mask, axis=1)
    first = arrow_array(rows.first.astype(np.int32))

    def piece_lists(values: npt.NDArray[np.int64], kind: type[np.int32] | type[np.int64]) -> pa.Array:
        return pa.ListArray.from_arrays(first, arrow_array(values.astype(kind)))

    return pa.record_batch(
        [
            pa.FixedSizeListArray.from_arrays(
                arrow_array(rows.input_ids.reshape(-1)), type=schema.field("input_ids").type
            ),
            pa.FixedSizeListArray.from_arrays(mask, type=schema.field("loss_mask").type),
            arrow_array(trained.astype(np.int32)),
            piece_lists(rows.tokens, np.int32),
            piece_lists(rows.source, np.int32),
            piece_lists(rows.position, np.int64),
            piece_lists(rows.start, np.int32),
        ],
        schema=schema,
    )


def write_shard(path: Path, relative: str, batches: Iterable[PackedRows], schema: pa.Schema) -> ShardInfo:
    """Write batches of rows as one shard file, whole or not at all, and return its manifest entry."""
    tokens: list[int] = []
    largest: list[int] = []

    def record_batches() -> Iterator[pa.RecordBatch]:
        for rows in batches:
            tokens.append(int(rows.tokens.sum()))
            largest.append(int(rows.input_ids.max()))
            yield rows_to_batch(rows, schema)

    with whole_file(path) as partial:
        written = write_blocks(partial, schema, record_batches())
    return ShardInfo(path=relative, tokens=sum(tokens), largest_id=max(largest, default=None), **asdict(written))


def write_split_files(folder: Path, shards: Sequence[ShardInfo], schema: pa.Schema, split: str) -> None:
    """Write what a split's folder holds beside its shards.

    That is two JSON files that make it a dataset for `datasets.load_from_disk`, and of each row the trained tokens and
    the attention work.
    """
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
    for kind in (TRAINED_TOKENS, ATTENTION_WORK):
        write_row_numbers(kind, folder.parent, split, shards)


def list_others(folder: Path) -> list[ListedFile]:
    """Return the files of the tokenizer and those of the splits that are no shards, as the manifest lists them."""
    names = [path for name in ("tokenizer", *SPLITS) for path in sorted((folder / name).glob("*"))]
    return [
        ListedFile(path=str(path.relative_to(folder)), bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in names
        if path.suffix != ".arrow"
    ]


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with its digest, which commits the folder: from then on it is prepared data."""
    committed = manifest.with_digest()
    write_json(folder / MANIFEST, asdict(committed))
    return committed
