"""A packed file that is damaged gives all that stands before the damage, and the damage is counted."""

from __future__ import annotations

import bisect
import bz2
import contextlib
import gzip
import hashlib
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_prep.config import SourceConfig
from data_prep.fetch.sources import cut_slices, find_corpus
from data_prep.read.parts import Rejected, document_of, read_part
from data_prep.read.record_blocks import Texts, read_blocks
from tests.data_prep.reading_rows import all_kept

GOOD = [f"a good document, number {n}" for n in range(2000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in GOOD).encode()


def read(path: Path) -> tuple[list[str], Counter[str]]:
    """Return the kept texts and the rejected by reason."""
    corpus = find_corpus([SourceConfig(path=str(path))], {}, path.parent / "unpacked")
    items = [item for parts in cut_slices(corpus, 2**20) for part in parts for item in read_part(part)]
    kept = [item.turns[0].text for item in items if not isinstance(item, Rejected)]
    return kept, Counter(item.reason for item in items if isinstance(item, Rejected))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
SHAPES: dict[str, Callable[[list[str]], str]] = {
    "jsonl": lambda texts: "".join(json.dumps({"text": text}) + "\n" for text in texts),
    "json": lambda texts: json.dumps([{"text": text} for text in texts]),
    "csv": lambda texts: "n,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(texts)),
    "tsv": lambda texts: "n\ttext\n" + "".join(f"{n}\t{text}\n" for n, text in enumerate(texts)),
    "txt": lambda texts: "\n\n".join(texts) + "\n\n",
}


def unpacked_before(packed: bytes, packing: str) -> bytes:
    """Return what packed bytes unpack to until the first that cannot be unpacked."""
    new: Any = {"gz": lambda: zlib.decompressobj(31), "bz2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}[
        packing
    ]()
    given = bytearray()
    with contextlib.suppress(zlib.error, OSError, lzma.LZMAError, EOFError):
        for n in range(len(packed)):
            given += new.decompress(packed[n : n + 1])
    return bytes(given)


def common(one: bytes, other: bytes) -> bytes:
    """Return what two begin with alike."""
    return one[: bisect.bisect(range(1, len(one) + 1), False, key=lambda n: one[:n] != other[:n])]


@pytest.mark.parametrize(
    ("shape", "packing"), [*((shape, "gz") for shape in SHAPES), *(("jsonl", other) for other in ("bz2", "xz", "zst"))]
)
def test_all_rows_before_damage_in_a_packed_file_are_kept_and_it_is_counted(
    tmp_path: Path, shape: str, packing: str
) -> None:
    texts = [hashlib.sha256(b"%d" % n).hexdigest() * 3 for n in range(6000 if packing == "bz2" else 2500)]
    data = SHAPES[shape](texts).encode()
    packed = PACKERS[packing](data)
    at = len(packed) * 4 // 5
    packed = packed[:at] + b"\xff" * 300 + (packed[at + 300 :] if packing != "zst" else b"")  # that has no checksum
    (tmp_path / f"a.{shape}.{packing}").write_bytes(packed)

    kept, rejected = read(tmp_path / f"a.{shape}.{packing}")

    found = kept[0].rstrip("\n").split("\n\n") if shape == "txt" else kept
    if packing == "zst":  # its blocks are of 128 KiB
        expected = int(len(texts) * 0.8 - 128 * 1024 / 200) - 20
    else:
        before = common(data, unpacked_before(packed, packing)).decode()
        expected = bisect.bisect(range(len(texts)), False, key=lambda n: texts[n] not in before) - 1
    assert expected > len(texts) // 3 and len(found) >= expected
    assert found[:expected] == texts[:expected]
    assert rejected[next(reason for reason in rejected if "compression" in reason)] == 1


def test_a_column_of_texts_keeps_the_lines_before_damage_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES, 1)[:-500])
    (parts,) = cut_slices(find_corpus([SourceConfig(path=str(path))], {}), 2**20)

    *blocks, last = read_blocks(parts[0])

    assert not isinstance(last, Texts)
    columns = [block for block in blocks if isinstance(block, Texts)]
    assert len(columns) == len(blocks)
    items = [document_of(number, raw, parts[0].columns) for number, raw in enumerate(last)]
    rest = all_kept(items[:-1])
    texts = [text.decode() for block in columns for text in block] + [item.turns[0].text for item in rest]
    assert texts == read(path)[0] == GOOD[: len(texts)] and len(texts) > 1500
    assert items[-1] == Rejected(len(items) - 1, "damaged compression (EOFError)")
