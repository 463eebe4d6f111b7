"""A slice of the corpus as one Arrow file of encoded documents, named by the digest of all it depends on.

Columns: part (index in the slice), record (in the part), key (16 bytes: the hash of the cleaned content), signature
(0 bytes if near duplicates are not looked for), ids, mask. The schema's metadata counts, for each part, the records,
the rejected ones by reason and what was mended, and holds samples of what was rejected.
"""

from __future__ import annotations

import hashlib
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
from data_prep.cleaning import CLEANING_VERSION, Cleaner, excerpt
from data_prep.config import CleaningConfig
from data_prep.documents import Document, Part, Rejected, raw_records, read_part
from data_prep.encoding import Encoded, Encoder, EncoderSpec, UnusableDocumentError, read_spec
from data_prep.near_duplicates import SIGNATURE_VERSION, signatures
from data_prep.rejects import Sample, drawn
from data_prep.sources import Corpus, Slice

SLICE_VERSION = 2  # part of every slice's digest: raise it when reading, encoding or this format changes


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
    mask: npt.NDArray[np.uint8]
    signature: npt.NDArray[np.uint8]  # [documents, BINS], or [documents, 0]
    records: list[int]
    rejected: list[dict[str, int]]
    changed: list[dict[str, int]]
    samples: list[Sample]


def slice_digest(parts: Slice, corpus: Corpus, spec: EncoderSpec, cleaning: CleaningConfig) -> str:
    """Return the digest of everything that a slice's encoded documents follow from."""
    contents = [[corpus.files[part.file].info.sha256, part.start, part.end, asdict(part.columns)] for part in parts]
    settings = asdict(spec)
    if all(part.columns.shape == "text" for part in parts):
        settings.pop("chat_template")  # running text does not change with it
    steps = cleaning.model_dump(mode="json", exclude={"duplicates", "near_duplicates", "near_threshold"})
    signed = SIGNATURE_VERSION if cleaning.near_duplicates != "off" else None
    return digest_of([SLICE_VERSION, CLEANING_VERSION, contents, settings, steps, signed])


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


def encode_parts(parts: Slice, names: Sequence[str], encoder: Encoder, cleaning: CleaningConfig) -> EncodedSlice:
    """Read, clean and encode the documents of a slice. Raises DataError that names a document's file and line."""
    read = [read_usable(part, encoder, Cleaner(cleaning)) for part in parts]
    encoded: list[Encoded] = []
    encoder.begin_slice()
    for part, name, one in zip(parts, names, read, strict=True):
        try:
            encoded += encoder.encode(one.documents)
        except UnusableDocumentError as problem:
            raise DataError(f"{place(part, name, problem.record)}: {problem.reason}") from None
    documents = [document for one in read for document in one.documents]
    lengths = [len(e.input_ids) for e in encoded]
    keys = b"".join(content_key(document) for document in documents)
    rejected = (
        Sample(reason=item.reason, file=index, record=item.record, text=item.excerpt)
        for index, one in enumerate(read)
        for item in one.rejected
    )
    return EncodedSlice(
        part=np.repeat(np.arange(len(parts), dtype=np.int32), [len(one.documents) for one in read]),
        record=np.array([document.record for document in documents], dtype=np.int64),
        key=np.frombuffer(keys, dtype=">u8").astype(np.uint64).reshape(-1, 2),
        first=np.cumsum([0, *lengths], dtype=np.int64),
        ids=np.concatenate([np.empty(0, np.uint32), *(e.input_ids for e in encoded)]),
        mask=np.concatenate([np.empty(0, np.uint8), *(e.loss_mask.view(np.uint8) for e in encoded)]),
        signature=signed(documents, cleaning),
        records=[len(one.documents) + len(one.rejected) for one in read],
        rejected=[dict(sorted(Counter(item.reason for item in one.rejected).items())) for one in read],
        changed=[one.changed for one in read],
        samples=drawn(rejected, cleaning.rejected_samples),
    )


@dataclass(frozen=True, kw_only=True)
class ReadPart:
    """What reading and cleaning made of a part's records, and how often it mended what."""

    documents: list[Document]
    rejected: list[Rejected]
    changed: dict[str, int]


def read_usable(part: Part, encoder: Encoder, cleaner: Cleaner) -> ReadPart:
    """Return a part's usable documents and the rejected records."""
    documents: list[Document] = []
    rejected: list[Rejected] = []
    for item in read_part(part):
        checked = cleaner.without_private(item) if isinstance(item, Rejected) else cleaner.cleaned(item)
        if isinstance(checked, Document):
            turns = checked.turns
            checked = encoder.usable(checked)
            if isinstance(checked, Rejected):
                checked = Rejected(checked.record, checked.reason, excerpt(turns))
        if isinstance(checked, Rejected):
            rejected.append(checked)
        else:
            documents.append(checked)
    return ReadPart(documents=documents, rejected=rejected, changed=dict(sorted((+cleaner.changed).items())))


def signed(documents: Sequence[Document], cleaning: CleaningConfig) -> npt.NDArray[np.uint8]:
    """Return the signatures of documents' texts, or none if near duplicates are not looked for."""
    if cleaning.near_duplicates == "off":
        return np.empty((len(documents), 0), np.uint8)
    return signatures(["\n".join(turn.text for turn in document.turns) for document in documents])


def content_key(document: Document) -> bytes:
    """Return the 128-bit hash of a document's cleaned content."""
    digest = hashlib.blake2b(document.shape.encode(), digest_size=16)
    for part in (part.encode() for turn in document.turns for part in (turn.role, turn.text)):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


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
    columns = {
        "part": pa.array(encoded.part),
        "record": pa.array(encoded.record),
        "key": fixed_bytes(encoded.key.astype(">u8")),
        "signature": fixed_bytes(encoded.signature),
        "ids": pa.LargeListArray.from_arrays(pa.array(encoded.first), pa.array(narrowed(encoded.ids))),
        "mask": pa.LargeListArray.from_arrays(pa.array(encoded.first), pa.array(encoded.mask)),
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
    signature = np.frombuffer(batch.column("signature").buffers()[1] or b"", dtype=np.uint8)
    return EncodedSlice(
        part=batch.column("part").to_numpy(),
        record=batch.column("record").to_numpy(),
        key=np.frombuffer(batch.column("key").buffers()[1], dtype=">u8").astype(np.uint64).reshape(-1, 2),
        first=batch.column("ids").offsets.to_numpy(),
        ids=batch.column("ids").values.to_numpy(),
        mask=batch.column("mask").values.to_numpy(),
        signature=signature.reshape(batch.num_rows, batch.column("signature").type.byte_width),
        records=counts["records"],
        rejected=counts["rejected"],
        changed=counts["changed"],
        samples=[Sample(**sample) for sample in counts["samples"]],
    )
