"""All documents as small arrays: where each lies, which repeat another, which are held out.

A document's split follows from the hash of its own content and from nothing else, so whatever is added to a corpus, no
document moves from one split to another. That alone would let near duplicates lie in different splits. So of a cluster
of them, the first document in the order of the corpus leads: those whose own hash puts them into another split than
the leader's are dropped, with the reason `near duplicate of validation` (or of train, of test). Nothing leaks, and
still nothing moves. What is added can make an old document the near duplicate of another and drop it, which is counted,
but only if it stands before it or joins two clusters: what is added at the end leaves the rest alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.config import DataConfig
from data_prep.near_duplicates import clusters
from data_prep.pouring import Integers
from data_prep.rejects import Repeat, Sample
from data_prep.shards import SPLITS
from data_prep.slices import EncodedSlice
from data_prep.sources import Slice

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near duplicate"

Flags = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.uint64]  # [documents, 2]


@dataclass(frozen=True, kw_only=True)
class Documents:
    """One line for each encoded document of the corpus, in the order of its slices.

    `slice` and `number` say where its tokens are, `file` and `position` where it came from.
    """

    slice: Integers
    number: Integers
    file: Integers
    position: Integers
    tokens: Integers
    trained: Integers
    key: Keys
    signature: npt.NDArray[np.uint8]  # [documents, BINS], or [documents, 0] if near duplicates are not looked for

    def __len__(self) -> int:
        return len(self.slice)


@dataclass(frozen=True, kw_only=True)
class Records:
    """How many records each file has, how many of them were rejected, by reason, and what was mended in them."""

    read: list[int]
    rejected: list[Counter[str]]
    changed: list[Counter[str]]
    samples: list[Sample]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which documents are used, and in which split: `split` counts SPLITS.

    `dropped` tells by reason which are not; `leader` is the document that each is a duplicate of, or itself.
    """

    split: Integers
    leader: Integers
    dropped: dict[str, Flags]

    @property
    def kept(self) -> Flags:
        kept: Flags = ~np.logical_or.reduce(list(self.dropped.values()))
        return kept


def collect(slices: Sequence[Slice], encoded: Iterable[EncodedSlice], files: int) -> tuple[Documents, Records]:
    """Join the small columns of all slices; a record's position becomes its number in the whole file."""
    counters: list[list[Counter[str]]] = [[Counter() for _ in range(files)] for _ in range(2)]
    records = Records(read=[0] * files, rejected=counters[0], changed=counters[1], samples=[])
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in Documents.__dataclass_fields__}
    for number, (parts, table) in enumerate(zip(slices, encoded, strict=True)):
        part_files = np.array([part.file for part in parts], dtype=np.int64)
        before = np.array([records.read[part.file] for part in parts], dtype=np.int64)
        columns["slice"].append(np.full(len(table.part), number, dtype=np.int64))
        columns["number"].append(np.arange(len(table.part), dtype=np.int64))
        columns["file"].append(part_files[table.part])
        columns["position"].append(before[table.part] + table.record)
        columns["tokens"].append(np.diff(table.first))
        columns["trained"].append(table.trained)
        columns["key"].append(table.key)
        columns["signature"].append(table.signature)
        for sample in table.samples:
            record = int(before[sample.file]) + sample.record
            records.samples.append(replace(sample, file=parts[sample.file].file, record=record))
        for part, count, reasons, changed in zip(parts, table.records, table.rejected, table.changed, strict=True):
            records.read[part.file] += count
            records.rejected[part.file].update(reasons)
            records.changed[part.file].update(changed)
    return Documents(**{name: np.concatenate(arrays) for name, arrays in columns.items()}), records


def select(documents: Documents, is_text: Flags, config: DataConfig) -> Selection:
    """Return which documents are used, and where. `is_text` tells which are running text."""
    split = splits_of(documents.key, (config.validation_fraction, config.test_fraction))
    leader = first_equal(documents.key) if config.cleaning.duplicates else np.arange(len(documents))
    repeats = leader != np.arange(len(documents))
    dropped = {DUPLICATE: repeats}
    if config.cleaning.near_duplicates != "off":
        first = near_leaders(documents, leader, ~repeats, config.cleaning.near_threshold)
        follows = first != leader
        near = follows if config.cleaning.near_duplicates == "all" else follows & is_text
        leader = first
        dropped[NEAR_DUPLICATE] = near & ~repeats
        for number, name in enumerate(SPLITS):
            across = follows & (split != number) & (split[leader] == number)
            dropped[f"{NEAR_DUPLICATE} of {name}"] = across & ~near & ~repeats
    return Selection(split=split, leader=leader, dropped=dropped)


def near_leaders(documents: Documents, leader: Integers, unique: Flags, threshold: float) -> Integers:
    """Return the first document of the cluster that each, or the one it repeats, lies in."""
    chosen = np.flatnonzero(unique)
    first = leader.copy()
    first[chosen] = chosen[clusters(documents.signature[chosen], threshold)]
    return first[leader]


def drawn_repeats(documents: Documents, selection: Selection, limit: int) -> list[Repeat]:
    """Return up to `limit` dropped documents of each reason, those with the smallest hashes, and their leaders."""
    result = []
    for reason, flags in selection.dropped.items():
        dropped = np.flatnonzero(flags)
        for document in dropped[np.argsort(documents.key[dropped, 0], kind="stable")][:limit].tolist():
            leader = int(selection.leader[document])
            result.append(
                Repeat(
                    reason=reason,
                    slice=int(documents.slice[document]),
                    number=int(documents.number[document]),
                    place=(int(documents.file[document]), int(documents.position[document])),
                    leader=(int(documents.file[leader]), int(documents.position[leader])),
                )
            )
    return result


def first_equal(key: Keys) -> Integers:
    """Return the first document that has the content of each."""
    order = np.lexsort((key[:, 1], key[:, 0]))  # stable: of equal keys, the first document stays first
    differs = np.ones(len(key), np.bool_)
    differs[1:] = (key[order][1:] != key[order][:-1]).any(axis=1)
    result = np.empty(len(key), np.int64)
    result[order] = order[np.maximum.accumulate(np.where(differs, np.arange(len(key)), 0))]
    return result


def splits_of(key: Keys, held_out: Sequence[float]) -> Integers:
    """Return the split of each document by its own hash: 0, or 1 + the number of the share in `held_out` it lies in."""
    ends = [np.uint64(min(int(sum(held_out[: n + 1]) * 2**64), 2**64 - 1)) for n in range(len(held_out))]
    place = np.searchsorted(np.array(ends, np.uint64), key[:, 0], side="right")
    return np.where(place < len(ends), place + 1, 0)
