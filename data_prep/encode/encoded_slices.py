"""A slice of the corpus as one Arrow file of encoded documents, named by the digest of all it depends on.

Each line of the table is one sequence. A document is one sequence, or several if its chat template renders the turns
before an answer differently once others follow: these are consecutive, with the same part, record, key and signature.

Columns: part (index in the slice), record (in the part), key (16 bytes: the hash of the cleaned content), signature
and sketch (0 bytes if near duplicates are not searched for), trained (tokens), ids, mask (empty if all documents are
running text, of which everything is trained). The schema's metadata counts, for each part, the records, the rejected
ones by reason and what was changed, and holds samples of what was rejected.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.disk.atomic_files import digest_of, whole_file
from cluster.errors import DataError
from data_prep.clean.cleaning import CLEANING_VERSION, excerpt
from data_prep.clean.near_duplicates import (
    MARK_BYTES,
    SIGNATURE_VERSION,
    Sketches,
    Summaries,
    joined_summaries,
)
from data_prep.clean.rejected_samples import RejectedSample, drawn
from data_prep.config import CleaningConfig
from data_prep.encode.backends import Ragged, ragged
from data_prep.encode.encoding import NO_TOKEN, Encoder, EncoderSpec, read_spec
from data_prep.encode.usable_records import ReadPart, read_usable
from data_prep.fetch.sources import Corpus, Slice
from data_prep.read.byte_ranges import content_of
from data_prep.read.parts import EXCERPT_BYTES, FilePart, Rejected
from data_prep.shards.blocks import arrow_array, mapped_file, numpy_array

SLICE_VERSION = 9  # part of every slice's digest: raise it when reading, encoding or this format changes

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SliceTask:
    """One slice to encode: what to read, with what, and where the result goes."""

    parts: Slice
    spec: Path
    cleaning: CleaningConfig
    target: Path


@dataclass(frozen=True, kw_only=True)
class EncodedSlice:
    """The sequences of one slice, one after the other; sequence i's ids are ids[first[i]:first[i + 1]]."""

    part: npt.NDArray[np.int32]
    record: npt.NDArray[np.int64]
    key: npt.NDArray[np.uint64]  # [sequences, 2]
    first: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint16 | np.uint32]
    trained: npt.NDArray[np.int64]  # tokens of each sequence
    mask: Mask
    signature: npt.NDArray[np.uint8]  # [sequences, BINS], or [sequences, 0]
    sketches: Sketches
    records: list[int]
    rejected: list[dict[str, int]]
    changed: list[dict[str, int]]
    samples: list[RejectedSample]


def slice_digests(slices: Sequence[Slice], corpus: Corpus, spec: EncoderSpec, cleaning: CleaningConfig) -> list[str]:
    """Return for each slice the digest of everything that its encoded documents depend on."""
    of_any, of_text = spec.digests()
    steps = cleaning.model_dump(mode="json", exclude={"duplicates", "near_duplicates", "near_threshold"})
    signed = SIGNATURE_VERSION if cleaning.near_duplicates != "off" else None

    def digest(parts: Slice) -> str:
        contents = [[*content_of(part, corpus.files[part.file].hashed), asdict(part.columns)] for part in parts]
        encoding = of_text if all(part.columns.shape == "text" for part in parts) else of_any
        return digest_of([SLICE_VERSION, CLEANING_VERSION, contents, encoding, steps, signed])

    return [digest(parts) for parts in slices]


def encode_slice(task: SliceTask) -> Path:
    """Read, clean and encode one slice into its file, whole or not at all; an existing file is left alone."""
    if not task.target.exists():
        encoded = encode_parts(task.parts, cached_encoder(task.spec), task.cleaning)
        write_slice(task.target, encoded)
    return task.target


@lru_cache(maxsize=1)
def cached_encoder(spec: Path) -> Encoder:
    """Return the encoder of a spec; making one parses the whole vocabulary."""
    return Encoder(read_spec(spec))


@dataclass(frozen=True, kw_only=True)
class EncodedPart:
    """The sequences of a part, one after the other; `document` has, for each, the index of its usable document.

    `mask` says which tokens are trained; None: all but the first of each sequence.
    """

    tokens: Ragged
    mask: Mask | None
    document: npt.NDArray[np.int64]
    rejected: list[Rejected]
    changed: Counter[str]


def encode_parts(
    parts: Sequence[FilePart], encoder: Encoder, cleaning: CleaningConfig, limit: int | None = None
) -> EncodedSlice:
    """Read, clean and encode the documents of a slice, up to `limit` records of each part."""
    read = [read_usable(part, encoder, cleaning, limit) for part in parts]
    encoder.begin_slice()
    encoded = [encode_part(one, encoder) for one in read]
    rejected = [one.rejected + part.rejected for one, part in zip(read, encoded, strict=True)]
    samples = (
        RejectedSample(reason=item.reason, file=index, record=item.record, text=item.excerpt)
        for index, items in enumerate(rejected)
        for item in items
    )
    both = list(zip(read, encoded, strict=True))
    records = [np.array(one.records, dtype=np.int64)[part.document] for one, part in both]
    is_signed = cleaning.near_duplicates != "off"
    summed = joined_summaries(
        [(one.summaries() if is_signed else unsigned(one)).of(part.document) for one, part in both]
    )
    return EncodedSlice(
        part=np.repeat(np.arange(len(parts), dtype=np.int32), list(map(len, records))),
        record=np.concatenate([np.empty(0, np.int64), *records]),
        key=np.concatenate([np.empty((0, 2), np.uint64), *(keys_of(one)[part.document] for one, part in both)]),
        first=np.cumsum(np.concatenate([[0], *(np.diff(part.tokens.first) for part in encoded)]), dtype=np.int64),
        ids=np.concatenate([np.empty(0, np.uint16), *(part.tokens.ids for part in encoded)]),
        trained=np.concatenate([trained_tokens(part.tokens, part.mask) for part in encoded]),
        mask=whole_mask([part.mask for part in encoded], [len(part.tokens.ids) for part in encoded]),
        signature=summed.signature,
        sketches=summed.sketches,
        records=[len(one.records) + len(one.rejected) for one in read],
        rejected=[dict(sorted(Counter(item.reason for item in items).items())) for items in rejected],
        changed=[dict(sorted((Counter(one.changed) + part.changed).items())) for one, part in both],
        samples=drawn(samples, cleaning.rejected_samples),
    )


def keys_of(read: ReadPart) -> npt.NDArray[np.uint64]:
    """Return the hash of each usable document's content, [documents, 2]."""
    return np.frombuffer(b"".join(read.content_keys()), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def unsigned(read: ReadPart) -> Summaries:
    """Return empty summaries, for when near duplicates are not searched for."""
    count = len(read.records)
    return Summaries(np.empty((count, 0), np.uint8), Sketches(np.empty(0, np.uint8), np.zeros(count + 1, np.int64)))


def encode_part(read: ReadPart, encoder: Encoder) -> EncodedPart:
    """Return the sequences of a part's usable records, and those without a sequence as rejected."""
    encoder.changed.clear()
    if read.texts is not None:
        return encode_texts(read, read.texts, encoder)
    outcomes = encoder.encode(read.documents)
    kept = [(number, one) for number, several in enumerate(outcomes) if isinstance(several, list) for one in several]
    return EncodedPart(
        tokens=ragged([one.input_ids for _, one in kept]),
        mask=np.concatenate([np.empty(0, np.uint8), *(one.loss_mask.view(np.uint8) for _, one in kept)]),
        document=np.array([number for number, _ in kept], dtype=np.int64),
        rejected=[
            replace(one, excerpt=": ".join(filter(None, (one.excerpt, excerpt(document.turns)))))
            for one, document in zip(outcomes, read.documents, strict=True)
            if isinstance(one, Rejected)
        ],
        changed=+encoder.changed,
    )


def encode_texts(read: ReadPart, texts: list[bytes], encoder: Encoder) -> EncodedPart:
    """Return the sequences of a part's running texts, and those that give no token as rejected."""
    tokens = encoder.encode_texts(texts)
    is_usable = np.diff(tokens.first) >= len(encoder.start) + len(encoder.end) + 1
    document = np.flatnonzero(is_usable)
    if not is_usable.all():
        tokens = ragged([tokens[number] for number in document.tolist()])
    rejected = [
        Rejected(read.records[number], NO_TOKEN, texts[number][:EXCERPT_BYTES].decode(errors="ignore"))
        for number in np.flatnonzero(~is_usable).tolist()
    ]
    return EncodedPart(tokens=tokens, mask=None, document=document, rejected=rejected, changed=Counter())


def trained_tokens(encoded: Ragged, mask: Mask | None) -> npt.NDArray[np.int64]:
    """Return how many tokens of each text are trained."""
    if mask is None:
        return np.diff(encoded.first) - 1
    return np.diff(np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])[encoded.first])


def whole_mask(masks: Sequence[Mask | None], lengths: Sequence[int]) -> Mask:
    """Return the masks of the parts one after the other; for running text alone, a mask that takes no space.

    In running text the first token counts as trained here: `gather_tokens` masks the first of every segment.
    """
    if all(mask is None for mask in masks):
        return np.broadcast_to(np.uint8(1), sum(lengths))
    parts = [np.ones(n, np.uint8) if mask is None else mask for mask, n in zip(masks, lengths, strict=True)]
    return np.concatenate(parts)


def write_slice(path: Path, encoded: EncodedSlice) -> None:
    """Write a slice as one record batch of an Arrow stream, whole or not at all."""
    counts = json.dumps(
        {
            "records": encoded.records,
            "rejected": encoded.rejected,
            "changed": encoded.changed,
            "samples": [asdict(sample) for sample in encoded.samples],
        }
    )
    stored = encoded.mask.strides != (0,)  # else all of it is running text
    columns = {
        "part": arrow_array(encoded.part),
        "record": arrow_array(encoded.record),
        "key": fixed_bytes(encoded.key.astype(">u8")),
        "signature": fixed_bytes(encoded.signature),
        "sketch": pa.LargeListArray.from_arrays(
            arrow_array(encoded.sketches.first * MARK_BYTES), arrow_array(encoded.sketches.data)
        ),
        "trained": arrow_array(encoded.trained),
        "ids": pa.LargeListArray.from_arrays(arrow_array(encoded.first), arrow_array(narrowed(encoded.ids))),
        "mask": pa.LargeListArray.from_arrays(
            arrow_array(encoded.first * stored), arrow_array(encoded.mask if stored else encoded.mask[:0])
        ),
    }
    batch = pa.record_batch(columns, metadata={"counts": counts})
    with (
        whole_file(path) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_stream(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def fixed_bytes(values: npt.NDArray[Any]) -> pa.FixedSizeBinaryArray:
    """Return each row of an array as that many bytes."""
    width = values.shape[1] * values.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(values.tobytes())])


def narrowed(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ids in two bytes each where they fit."""
    return ids.astype(np.uint16) if ids.max(initial=0) < 2**16 else ids


@dataclass(frozen=True, slots=True)
class SliceTokens:
    """The tokens of one slice's sequences; sequence i's are ids[first[i]:first[i + 1]]."""

    first: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint16 | np.uint32]
    mask: Mask


def read_slice(path: Path) -> EncodedSlice:
    """Map a slice's file; its ids and mask are read only when used. Raises DataError if it is damaged."""
    batch = map_batch(path)
    counts = json.loads(batch.schema.metadata[b"counts"])
    tokens = tokens_of(batch)
    signature = np.frombuffer(batch.column("signature").buffers()[1] or b"", dtype=np.uint8)
    sketch = batch.column("sketch")
    return EncodedSlice(
        part=numpy_array(batch.column("part")),
        record=numpy_array(batch.column("record")),
        key=np.frombuffer(batch.column("key").buffers()[1], dtype=">u8").astype(np.uint64).reshape(-1, 2),
        first=tokens.first,
        ids=tokens.ids,
        trained=numpy_array(batch.column("trained")),
        mask=tokens.mask,
        signature=signature.reshape(batch.num_rows, batch.column("signature").type.byte_width),
        sketches=Sketches(numpy_array(sketch.values), numpy_array(sketch.offsets) // MARK_BYTES),
        records=counts["records"],
        rejected=counts["rejected"],
        changed=counts["changed"],
        samples=[RejectedSample(**sample) for sample in counts["samples"]],
    )


def read_slice_tokens(path: Path) -> SliceTokens:
    """Map a slice's file for its tokens alone: rows are written from them. Raises DataError if it is damaged."""
    return tokens_of(map_batch(path))


def map_batch(path: Path) -> pa.RecordBatch:
    """Map a slice's record batch, without a file descriptor that stays open. Raises DataError if it is damaged."""
    try:
        return pa.ipc.open_stream(mapped_file(path)).read_next_batch()
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and run the command again") from None


def tokens_of(batch: pa.RecordBatch) -> SliceTokens:
    """Return the views of a slice's tokens."""
    ids, mask = (numpy_array(batch.column(name).values) for name in ("ids", "mask"))
    first = numpy_array(batch.column("ids").offsets)
    return SliceTokens(first=first, ids=ids, mask=mask if len(mask) else whole_mask([None], [len(ids)]))


@dataclass(frozen=True, slots=True)
class SliceFiles(Sequence[EncodedSlice]):
    """The slices in these files, each mapped only while it is used."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> EncodedSlice:  # type: ignore[override]  # it is never sliced
        return read_slice(self.paths[index])

    def __iter__(self) -> Iterator[EncodedSlice]:
        return map(read_slice, self.paths)
