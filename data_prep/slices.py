"""A slice of the corpus as one Arrow file of encoded documents, named by the digest of all it depends on.

Columns: part (index in the slice), record (in the part), key (16 bytes: the hash of the cleaned content), signature
(0 bytes if near duplicates are not looked for), trained (tokens), ids, mask (empty if all the documents are running
text, of which everything is trained). The schema's metadata counts, for each part, the records,
the rejected ones by reason and what was mended, and holds samples of what was rejected.
"""

from __future__ import annotations

import json
import mmap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import DataError
from cluster.files import digest_of, whole_file
from data_prep.blocks import arrow_array, numpy_array
from data_prep.byte_ranges import content_of
from data_prep.cleaning import CLEANING_VERSION
from data_prep.config import CleaningConfig
from data_prep.documents import Part, raw_records
from data_prep.encoding import Encoder, EncoderSpec, UnusableDocumentError, read_spec
from data_prep.engines import Ragged, ragged
from data_prep.near_duplicates import SIGNATURE_VERSION
from data_prep.reading import ReadPart, read_usable
from data_prep.rejects import Sample, drawn
from data_prep.sources import Corpus, Slice

SLICE_VERSION = 4  # part of every slice's digest: raise it when reading, encoding or this format changes

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SliceTask:
    """One slice to encode: what to read, with what, and where the result goes."""

    parts: Slice
    names: tuple[str, ...]
    spec: Path
    cleaning: CleaningConfig
    target: Path


@dataclass(frozen=True, kw_only=True)
class EncodedSlice:
    """The documents of one slice, one after the other; document i's ids are ids[first[i]:first[i + 1]]."""

    part: npt.NDArray[np.int32]
    record: npt.NDArray[np.int64]
    key: npt.NDArray[np.uint64]  # [documents, 2]
    first: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint16 | np.uint32]
    trained: npt.NDArray[np.int64]  # tokens of each document
    mask: Mask
    signature: npt.NDArray[np.uint8]  # [documents, BINS], or [documents, 0]
    records: list[int]
    rejected: list[dict[str, int]]
    changed: list[dict[str, int]]
    samples: list[Sample]


def slice_digests(slices: Sequence[Slice], corpus: Corpus, spec: EncoderSpec, cleaning: CleaningConfig) -> list[str]:
    """Return for each slice the digest of everything that its encoded documents follow from."""
    of_any, of_text = spec.digests()
    steps = cleaning.model_dump(mode="json", exclude={"duplicates", "near_duplicates", "near_threshold"})
    signed = SIGNATURE_VERSION if cleaning.near_duplicates != "off" else None

    def digest(parts: Slice) -> str:
        contents = [[*content_of(part, corpus.files[part.file].hashed), asdict(part.columns)] for part in parts]
        encoding = of_text if all(part.columns.shape == "text" for part in parts) else of_any
        return digest_of([SLICE_VERSION, CLEANING_VERSION, contents, encoding, steps, signed])

    return [digest(parts) for parts in slices]


def encode_slice(task: SliceTask) -> Path:
    """Read, clean and encode one slice into its file, whole or not at all; a file that is there is left alone."""
    if not task.target.exists():
        encoded = encode_parts(task.parts, task.names, cached_encoder(task.spec), task.cleaning)
        write_slice(task.target, encoded)
    return task.target


@lru_cache(maxsize=1)
def cached_encoder(spec: Path) -> Encoder:
    """Return the encoder of a spec; making one parses the whole vocabulary."""
    return Encoder(read_spec(spec))


def encode_parts(
    parts: Sequence[Part],
    names: Sequence[str],
    encoder: Encoder,
    cleaning: CleaningConfig,
    limit: int | None = None,
) -> EncodedSlice:
    """Read, clean and encode the documents of a slice, of each part up to `limit` records.

    Raises DataError that names a document's file and line.
    """
    read = [read_usable(part, encoder, cleaning, limit) for part in parts]
    encoder.begin_slice()
    encoded: list[tuple[Ragged, Mask | None]] = []
    for part, name, one in zip(parts, names, read, strict=True):
        try:
            encoded.append(encode_part(one, encoder))
        except UnusableDocumentError as problem:
            raise DataError(f"{place(part, name, problem.record)}: {problem.reason}") from None
    rejected = (
        Sample(reason=item.reason, file=index, record=item.record, text=item.excerpt)
        for index, one in enumerate(read)
        for item in one.rejected
    )
    keys = b"".join(key for one in read for key in one.content_keys())
    is_signed = cleaning.near_duplicates != "off"
    return EncodedSlice(
        part=np.repeat(np.arange(len(parts), dtype=np.int32), [len(one.records) for one in read]),
        record=np.array([record for one in read for record in one.records], dtype=np.int64),
        key=np.frombuffer(keys, dtype=">u8").astype(np.uint64).reshape(-1, 2),
        first=np.cumsum(np.concatenate([[0], *(np.diff(ids.first) for ids, _ in encoded)]), dtype=np.int64),
        ids=np.concatenate([np.empty(0, np.uint16), *(ids.ids for ids, _ in encoded)]),
        trained=np.concatenate([trained_tokens(*one) for one in encoded]),
        mask=whole_mask([mask for _, mask in encoded], [len(ids.ids) for ids, _ in encoded]),
        signature=np.concatenate([one.signatures() if is_signed else unsigned(one) for one in read]),
        records=[len(one.records) + len(one.rejected) for one in read],
        rejected=[dict(sorted(Counter(item.reason for item in one.rejected).items())) for one in read],
        changed=[one.changed for one in read],
        samples=drawn(rejected, cleaning.rejected_samples),
    )


def unsigned(read: ReadPart) -> npt.NDArray[np.uint8]:
    return np.empty((len(read.records), 0), np.uint8)


def encode_part(read: ReadPart, encoder: Encoder) -> tuple[Ragged, Mask | None]:
    """Return the ids of a part's usable records and which are trained; None: all but the first of each.

    Raises UnusableDocumentError if nothing in one is trained.
    """
    if read.texts is None:
        encoded = encoder.encode(read.documents)
        mask = np.concatenate([np.empty(0, np.uint8), *(e.loss_mask.view(np.uint8) for e in encoded)])
        return ragged([e.input_ids for e in encoded]), mask
    texts = encoder.encode_texts(read.texts)
    for number in np.flatnonzero(np.diff(texts.first) < 2).tolist():
        raise UnusableDocumentError(read.records[number], "no trained token: the tokenizer makes none of its text")
    return texts, None


def trained_tokens(encoded: Ragged, mask: Mask | None) -> npt.NDArray[np.int64]:
    """Return how many tokens of each text are trained."""
    if mask is None:
        return np.diff(encoded.first) - 1
    return np.diff(np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])[encoded.first])


def whole_mask(masks: Sequence[Mask | None], lengths: Sequence[int]) -> Mask:
    """Return the masks of the parts one after the other; of running text alone, a mask that takes no space.

    Of running text the first token counts as trained here: `gather_rows` masks the first of every piece.
    """
    if all(mask is None for mask in masks):
        return np.broadcast_to(np.uint8(1), sum(lengths))
    parts = [np.ones(n, np.uint8) if mask is None else mask for mask, n in zip(masks, lengths, strict=True)]
    return np.concatenate(parts)


def place(part: Part, name: str, record: int) -> str:
    """Return a record's file and number, counted from 1 as editors count lines."""
    if not part.columns.names:
        return name
    before = sum(1 for _ in raw_records(Path(part.location), part.columns.format, 0, part.start)) if part.start else 0
    return f"{name}:{before + record + 1}"


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
    stored = encoded.mask.strides != (0,)  # else it is of running text
    columns = {
        "part": arrow_array(encoded.part),
        "record": arrow_array(encoded.record),
        "key": fixed_bytes(encoded.key.astype(">u8")),
        "signature": fixed_bytes(encoded.signature),
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


def read_slice(path: Path) -> EncodedSlice:
    """Map a slice's file; its ids and mask are read when they are used. Raises DataError if it is damaged."""
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_stream(pa.py_buffer(mapped))
        batch = reader.read_next_batch()
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and run the command again") from None
    counts = json.loads(batch.schema.metadata[b"counts"])
    ids, mask = (numpy_array(batch.column(name).values) for name in ("ids", "mask"))
    signature = np.frombuffer(batch.column("signature").buffers()[1] or b"", dtype=np.uint8)
    return EncodedSlice(
        part=numpy_array(batch.column("part")),
        record=numpy_array(batch.column("record")),
        key=np.frombuffer(batch.column("key").buffers()[1], dtype=">u8").astype(np.uint64).reshape(-1, 2),
        first=numpy_array(batch.column("ids").offsets),
        ids=ids,
        trained=numpy_array(batch.column("trained")),
        mask=mask if len(mask) else whole_mask([None], [len(ids)]),
        signature=signature.reshape(batch.num_rows, batch.column("signature").type.byte_width),
        records=counts["records"],
        rejected=counts["rejected"],
        changed=counts["changed"],
        samples=[Sample(**sample) for sample in counts["samples"]],
    )
