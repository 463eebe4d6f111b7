"""The contract between preparation and training: packed rows in Arrow stream files, and their manifest.

A data folder holds

    manifest.json            written last; without it the folder is not prepared data
    tokenizer/               the tokenizer that made the ids
    train/, validation/      `datasets.load_from_disk` opens either as it stands
        data-00000-of-00002.arrow ...   Arrow IPC *stream* files
        dataset_info.json, state.json

Columns of a row (T = row_tokens):

    input_ids            fixed_size_list<uint16 | uint32>[T]   padding at the end holds `pad_token_id`
    loss_mask            fixed_size_list<bool>[T]   true: this token is trained; never true for the first token
                         of a piece (nothing precedes it) or for padding
    trained_tokens       int32   number of true values in loss_mask
    piece_tokens         list<int32>   lengths of the pieces of documents in the row; their sum is <= T
    piece_source         list<int32>   index into manifest.files of each piece's document
    piece_position       list<int64>   record number of the document in its file, from 0
    piece_start          list<int32>   offset of the piece in its document, in tokens
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import DataError
from cluster.files import digest_of, sha256_of, whole_file, write_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of one document inside a row."""

    tokens: int
    source: int
    position: int
    start: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One packed row, ready to be written. `input_ids` and `loss_mask` have T values."""

    input_ids: npt.NDArray[np.uint32]
    loss_mask: npt.NDArray[np.bool_]
    pieces: Sequence[Piece]


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """What the manifest says of one shard file; `path` is relative to the data folder."""

    path: str
    rows: int
    tokens: int
    trained_tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file that documents were read from."""

    source: str
    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that training must know of the data, and what became of every document.

    `documents` counts, by source label, `files`, files `passed_over` by suffix, documents `read`, `kept` and `rejected`
    by reason, and of the kept ones, before packing, `tokens` and `trained_tokens`; `tokens` is the ledger of the
    packed tokens: `trained`, `masked` and `padding` sum to rows x row_tokens of all splits. `engine` is what made the
    ids, with its version, and how it was proved against `tokenizers`.
    """

    version: int
    config_digest: str
    tokenizer_digest: str
    template_digest: str
    row_tokens: int
    vocab_size: int
    packing: str
    files: list[SourceFile]
    splits: dict[str, list[ShardInfo]]
    documents: dict[str, dict[str, Any]]
    tokens: dict[str, int]
    conversational: bool
    engine: dict[str, Any] = field(default_factory=dict)
    digest: str = field(default="")

    def rows(self, split: str) -> int:
        return sum(shard.rows for shard in self.splits[split])

    def trained_tokens(self, split: str) -> int:
        return sum(shard.trained_tokens for shard in self.splits[split])

    def sealed(self) -> Manifest:
        """Return the manifest with its digest over everything else."""
        values = asdict(self)
        values.pop("digest")
        return Manifest(
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name != "digest"}, digest=digest_of(values)
        )


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Seal and write the manifest; from then on the folder is prepared data."""
    sealed = manifest.sealed()
    write_json(folder / MANIFEST, asdict(sealed))
    return sealed


def read_manifest(folder: Path) -> Manifest:
    """Read and check a data folder's manifest. Raises DataError if it is absent, damaged or of another version."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no prepared data here; run `shardline prepare RUN.yaml` first") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); run `shardline prepare RUN.yaml` again") from None
    if not isinstance(values, dict) or values.get("version") != FORMAT_VERSION:
        found = values.get("version") if isinstance(values, dict) else None
        raise DataError(
            f"{path}: format version {found}, this program reads {FORMAT_VERSION}; run `shardline prepare` again"
        )
    try:
        values["files"] = [SourceFile(**item) for item in values["files"]]
        values["splits"] = {name: [ShardInfo(**item) for item in shards] for name, shards in values["splits"].items()}
        manifest = Manifest(**values)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); run `shardline prepare RUN.yaml` again") from None
    if manifest.sealed().digest != manifest.digest:
        raise DataError(f"{path}: its digest does not fit its content; run `shardline prepare RUN.yaml` again")
    return manifest


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the digest of what turns text into ids: a fast tokenizer's rules and its special ids."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.update(truncation=None, padding=None)  # settings of a call, not of the tokenizer
    return digest_of({"rules": rules, "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id})


def template_digest(chat_template: str | None) -> str:
    """Return the digest of a chat template's text."""
    return digest_of(chat_template)


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
    """Write batches of rows as one Arrow stream file, whole or not at all, and return its manifest entry."""
    row_count = tokens = trained = 0
    with whole_file(path) as partial:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in rows:
                writer.write_batch(rows_to_batch(batch, schema))
                row_count += len(batch)
                tokens += sum(piece.tokens for row in batch for piece in row.pieces)
                trained += sum(int(row.loss_mask.sum()) for row in batch)
        sha256 = sha256_of(partial)
        size = partial.stat().st_size
    return ShardInfo(path=relative, rows=row_count, tokens=tokens, trained_tokens=trained, bytes=size, sha256=sha256)


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


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows as arrays: ids and mask are [rows, T]; `piece_tokens` has one array of lengths for each row."""

    input_ids: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.bool_]
    piece_tokens: list[npt.NDArray[np.int32]]


class ShardReader:
    """Random access to the rows of one split, by row number over all its shards, from memory-mapped files.

    With `verify`, the size and sha256 of every shard are checked first; otherwise only the size.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str, *, verify: bool = True) -> None:
        self.row_tokens = manifest.row_tokens
        self.shards = manifest.splits[split]
        for shard in self.shards:
            check_shard(folder, shard, verify=verify)
        self.tables = [read_table(folder / shard.path) for shard in self.shards]
        self.first_rows = np.cumsum([0, *(shard.rows for shard in self.shards)])

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def locate(self, row: int) -> tuple[pa.RecordBatch, int]:
        """Return the record batch that holds a row, and the row's index in it."""
        shard = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        batches, first_rows = self.tables[shard]
        within = row - int(self.first_rows[shard])
        batch = int(np.searchsorted(first_rows, within, side="right")) - 1
        return batches[batch], within - int(first_rows[batch])

    def rows(self, row_ids: Sequence[int]) -> Batch:
        """Return the given rows, in this order."""
        input_ids = np.empty((len(row_ids), self.row_tokens), dtype=np.int64)
        loss_mask = np.empty((len(row_ids), self.row_tokens), dtype=np.bool_)
        pieces = []
        for index, row in enumerate(row_ids):
            batch, within = self.locate(row)
            input_ids[index] = fixed_list_view(batch.column("input_ids"), within, self.row_tokens)
            loss_mask[index] = mask_bits(batch.column("loss_mask"), within, self.row_tokens)
            pieces.append(batch.column("piece_tokens")[within].values.to_numpy())
        return Batch(input_ids=input_ids, loss_mask=loss_mask, piece_tokens=pieces)

    def trained_tokens(self, row_ids: Sequence[int]) -> int:
        """Return how many tokens of the given rows are trained."""
        located = (self.locate(row) for row in row_ids)
        return sum(batch.column("trained_tokens")[within].as_py() for batch, within in located)

    def pieces(self, row: int) -> list[Piece]:
        """Return which stretches of which documents a row holds."""
        batch, within = self.locate(row)
        columns = [batch.column(f"piece_{name}")[within].as_py() for name in ("tokens", "source", "position", "start")]
        return [
            Piece(tokens=tokens, source=source, position=position, start=start)
            for tokens, source, position, start in zip(*columns, strict=True)
        ]


def check_shard(folder: Path, shard: ShardInfo, *, verify: bool) -> None:
    """Raise DataError if a shard file is missing or is not, byte for byte, what the manifest describes."""
    path = folder / shard.path
    again = "delete it and run `shardline prepare RUN.yaml` again"
    if not path.is_file():
        raise DataError(f"{path}: missing, though the manifest lists it; run `shardline prepare RUN.yaml` again")
    size = path.stat().st_size
    if size != shard.bytes:
        raise DataError(f"{path}: {size} bytes, the manifest says {shard.bytes}; {again}")
    if verify and (found := sha256_of(path)) != shard.sha256:
        raise DataError(f"{path}: sha256 is {found[:16]}..., the manifest says {shard.sha256[:16]}...; {again}")


def read_table(path: Path) -> tuple[list[pa.RecordBatch], npt.NDArray[np.int64]]:
    """Map an Arrow stream file; return its record batches and the first row of each."""
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    batches = list(pa.ipc.open_stream(pa.py_buffer(mapped)))
    return batches, np.cumsum([0, *(batch.num_rows for batch in batches)])[:-1]


def fixed_list_view(column: pa.FixedSizeListArray, row: int, length: int) -> npt.NDArray[Any]:
    """Return one row of a fixed-size list column of numbers, without a copy."""
    values = column.values
    start = values.offset + (column.offset + row) * length
    kind = np.uint16 if values.type == pa.uint16() else np.uint32
    return np.frombuffer(values.buffers()[1], dtype=kind)[start : start + length]


def mask_bits(column: pa.FixedSizeListArray, row: int, length: int) -> npt.NDArray[np.bool_]:
    """Return one row of a fixed-size list column of booleans; `length` is a multiple of 8, so rows begin at bytes."""
    values = column.values
    first = (values.offset + (column.offset + row) * length) // 8
    packed = np.frombuffer(values.buffers()[1], dtype=np.uint8)[first : first + length // 8]
    return np.unpackbits(packed, bitorder="little").view(np.bool_)
