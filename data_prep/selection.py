"""All documents as small arrays: where each lies, which repeat another, which are held out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.packing import Integers
from data_prep.slices import EncodedSlice
from data_prep.sources import Slice


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
    key: npt.NDArray[np.uint64]  # [documents, 2]

    def __len__(self) -> int:
        return len(self.slice)


@dataclass(frozen=True, kw_only=True)
class Records:
    """How many records each file has, and how many of them were rejected, by reason."""

    read: list[int]
    rejected: list[dict[str, int]]


def collect(slices: Sequence[Slice], encoded: Iterable[EncodedSlice], files: int) -> tuple[Documents, Records]:
    """Join the small columns of all slices; a record's position becomes its number in the whole file."""
    records = Records(read=[0] * files, rejected=[{} for _ in range(files)])
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in Documents.__dataclass_fields__}
    for number, (parts, table) in enumerate(zip(slices, encoded, strict=True)):
        part_files = np.array([part.file for part in parts], dtype=np.int64)
        before = np.array([records.read[part.file] for part in parts], dtype=np.int64)
        sums = np.concatenate([[0], np.cumsum(table.mask, dtype=np.int64)])
        columns["slice"].append(np.full(len(table.part), number, dtype=np.int64))
        columns["number"].append(np.arange(len(table.part), dtype=np.int64))
        columns["file"].append(part_files[table.part])
        columns["position"].append(before[table.part] + table.record)
        columns["tokens"].append(np.diff(table.first))
        columns["trained"].append(np.diff(sums[table.first]))
        columns["key"].append(table.key)
        for part, count, reasons in zip(parts, table.records, table.rejected, strict=True):
            records.read[part.file] += count
            for reason, rejected in reasons.items():
                total = records.rejected[part.file]
                total[reason] = total.get(reason, 0) + rejected
    return Documents(**{name: np.concatenate(arrays) for name, arrays in columns.items()}), records


def duplicates(key: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which documents have the content of an earlier one."""
    order = np.lexsort((key[:, 1], key[:, 0]))  # stable: of equal keys, the first document stays first
    same = (key[order][1:] == key[order][:-1]).all(axis=1)
    result = np.zeros(len(key), dtype=np.bool_)
    result[order[1:][same]] = True
    return result


def held_out(key: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Return which documents are for validation, each by its own hash: what is added to the corpus moves no other."""
    return key[:, 0] < np.uint64(int(fraction * 2**64))
