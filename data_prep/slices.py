"""A slice of the corpus as one Arrow file of encoded documents, named by the digest of all it depends on.

Columns: part (index in the slice), record (in the part), key (16 bytes: the hash of the cleaned content), ids, mask.
The schema's metadata counts, for each part, the records and the rejected ones by reason.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import DataError
from cluster.files import digest_of, whole_file
from data_prep.cleaning import CLEANING_VERSION
from data_prep.documents import Document, Part, Rejected, read_part
from data_prep.encoding import Encoded, Encoder, EncoderSpec, UnusableDocumentError, read_spec
from data_prep.sources import Corpus, Slice

SLICE_VERSION = 2  # part of every slice's digest: raise it when reading, encoding or this format changes


@dataclass(frozen=True, kw_only=True)
class SliceTask:
    """One slice to encode: what to read, with what, and where the result goes."""

    parts: Slice
    names: tuple[str, ...]
    spec: Path
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
    records: list[int]
    rejected: list[dict[str, int]]


def slice_digest(parts: Slice, corpus: Corpus, spec: EncoderSpec) -> str:
    """Return the digest of everything that a slice's encoded documents follow from."""
    contents = [[corpus.files[part.file].info.sha256, part.start, part.end, asdict(part.columns)] for part in parts]
    settings = asdict(spec)
    if all(part.columns.shape == "text" for part in parts):
        settings.pop("chat_template")  # running text does not change with it
    return digest_of([SLICE_VERSION, CLEANING_VERSION, contents, settings])


def encode_slice(task: SliceTask) -> Path:
    """Read, clean and encode one slice into its file, whole or not at all; a file that is there is left alone."""
    if not task.target.exists():
        encoded = encode_parts(task.parts, task.names, cached_encoder(task.spec))
        write_slice(task.target, encoded)
    return task.target


@lru_cache(maxsize=1)
def cached_encoder(spec: Path) -> Encoder:
    """Return the encoder of a spec; making one parses the whole vocabulary."""
    return Encoder(read_spec(spec))


def encode_parts(parts: Slice, names: Sequence[str], encoder: Encoder) -> EncodedSlice:
    """Read, clean and encode the documents of a slice. Raises DataError that names a document's file and line."""
    documents: list[Document] = []
    encoded: list[Encoded] = []
    owners: list[int] = []
    records: list[int] = []
    rejected: list[dict[str, int]] = []
    encoder.begin_slice()
    for index, part in enumerate(parts):
        kept, count, reasons = read_usable(part, encoder)
        try:
            encoded += encoder.encode(kept)
        except UnusableDocumentError as problem:
            raise DataError(f"{place(part, names[index], problem.record)}: {problem.reason}") from None
        documents += kept
        owners += [index] * len(kept)
        records.append(count)
        rejected.append(reasons)
    lengths = [len(e.input_ids) for e in encoded]
    keys = b"".join(content_key(document) for document in documents)
    return EncodedSlice(
        part=np.array(owners, dtype=np.int32),
        record=np.array([document.record for document in documents], dtype=np.int64),
        key=np.frombuffer(keys, dtype=">u8").astype(np.uint64).reshape(-1, 2),
        first=np.cumsum([0, *lengths], dtype=np.int64),
        ids=np.concatenate([np.empty(0, np.uint32), *(e.input_ids for e in encoded)]),
        mask=np.concatenate([np.empty(0, np.uint8), *(e.loss_mask.view(np.uint8) for e in encoded)]),
        records=records,
        rejected=rejected,
    )


def read_usable(part: Part, encoder: Encoder) -> tuple[list[Document], int, dict[str, int]]:
    """Return a part's usable documents, the number of its records, and the rejected ones by reason."""
    documents: list[Document] = []
    reasons: Counter[str] = Counter()
    for item in read_part(part):
        checked = item if isinstance(item, Rejected) else encoder.usable(item)
        if isinstance(checked, Rejected):
            reasons[checked.reason] += 1
        else:
            documents.append(checked)
    return documents, len(documents) + reasons.total(), dict(sorted(reasons.items()))


def content_key(document: Document) -> bytes:
    """Return the 128-bit hash of a document's cleaned content."""
    digest = hashlib.blake2b(document.shape.encode(), digest_size=16)
    for part in (part.encode() for turn in document.turns for part in (turn.role, turn.text)):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def place(part: Part, name: str, record: int) -> str:
    """Return a record's file and line, counted from 1 as editors do."""
    if not part.columns.names:
        return name
    with Path(part.location).open("rb") as stream:
        before = sum(1 for _ in iter_lines_before(stream, part.start))
    return f"{name}:{before + record + 1}"


def iter_lines_before(stream: BinaryIO, end: int) -> Iterator[bytes]:
    """Yield the lines whose first byte lies before `end`."""
    while stream.tell() < end:
        yield stream.readline()


def write_slice(path: Path, encoded: EncodedSlice) -> None:
    """Write a slice as one record batch of an Arrow stream, whole or not at all."""
    counts = json.dumps({"records": encoded.records, "rejected": encoded.rejected})
    keys = encoded.key.astype(">u8").tobytes()
    columns = {
        "part": pa.array(encoded.part),
        "record": pa.array(encoded.record),
        "key": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(encoded.part), [None, pa.py_buffer(keys)]),
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
    return EncodedSlice(
        part=batch.column("part").to_numpy(),
        record=batch.column("record").to_numpy(),
        key=np.frombuffer(batch.column("key").buffers()[1], dtype=">u8").astype(np.uint64).reshape(-1, 2),
        first=batch.column("ids").offsets.to_numpy(),
        ids=batch.column("ids").values.to_numpy(),
        mask=batch.column("mask").values.to_numpy(),
        records=counts["records"],
        rejected=counts["rejected"],
    )
