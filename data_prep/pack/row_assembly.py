"""From the plan to shards: copy the tokens of each row's segments from the slices, and write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_prep.arrays import Integers
from data_prep.encode.encoded_slices import read_slice_tokens
from data_prep.pack.row_plan import RowPlan
from data_prep.shards import ShardInfo
from data_prep.shards.writing import PackedRows, id_type, row_schema, write_shard

BATCH_ROWS = 64  # in a record batch: what a reader checks at once
GATHER_TOKENS = 2**23  # of rows in memory at once, of 3 or 5 bytes each


class Tokens(Protocol):
    """Documents of a slice, one after the other: document i has ids[first[i]:first[i + 1]]."""

    @property
    def first(self) -> Integers: ...

    @property
    def ids(self) -> npt.NDArray[Any]: ...

    @property
    def mask(self) -> npt.NDArray[np.uint8]: ...


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """What all rows of the data share."""

    row_tokens: int
    vocab_size: int
    pad: int


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to write: its name, its rows, and the files of the slices that they come from."""

    target: Path
    relative: str
    format: RowFormat
    slices: Mapping[int, Path]
    plan: RowPlan


def write_rows(task: ShardTask) -> ShardInfo:
    """Write one shard, whole or not at all."""
    schema = row_schema(task.format.row_tokens, task.format.vocab_size)
    rows = gather_rows(task.plan, lambda number: read_slice_tokens(task.slices[number]), task.format)
    return write_shard(task.target, task.relative, rows, schema)


def gather_rows(plan: RowPlan, tokens_of: Callable[[int], Tokens], form: RowFormat) -> Iterator[PackedRows]:
    """Yield the planned rows, BATCH_ROWS at a time; the last may be fewer.

    `tokens_of` opens a slice by its number. Rows come from all slices at random, so many rows are gathered at once,
    slice by slice: one slice is open at a time, and each is opened once for GATHER_TOKENS.
    """
    rows = max(1, GATHER_TOKENS // (BATCH_ROWS * form.row_tokens)) * BATCH_ROWS
    for begin in range(0, plan.rows, rows):
        part = plan.part(begin, min(begin + rows, plan.rows))
        ids, mask = gather_tokens(part, tokens_of, form)
        for at in range(0, part.rows, BATCH_ROWS):
            end = min(at + BATCH_ROWS, part.rows)
            yield packed_rows(part.part(at, end), ids[at:end], mask[at:end])


def gather_tokens(
    plan: RowPlan, tokens_of: Callable[[int], Tokens], form: RowFormat
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return ids and loss mask [rows, row_tokens] of the planned rows.

    The first token of a segment is not trained: nothing precedes it in its row.
    """
    ids = np.full(plan.rows * form.row_tokens, form.pad, dtype=id_type(form.vocab_size))
    mask = np.zeros(plan.rows * form.row_tokens, dtype=np.bool_)
    target = row_offsets(plan, form.row_tokens)
    # Segments sorted by slice, those of a slice in the order of the rows: one group after the other is a slice's.
    by_slice = np.argsort(plan.slice, kind="stable")
    numbers, groups = np.unique(plan.slice[by_slice], return_index=True)
    for number, chosen in zip(numbers.tolist(), np.split(by_slice, groups[1:]), strict=True):
        tokens = tokens_of(number)
        source = tokens.first[plan.number[chosen]] + plan.start[chosen]
        for at, to, count in joined_segments(source, target[chosen], plan.tokens[chosen]):
            ids[to : to + count] = tokens.ids[at : at + count]
            mask[to : to + count] = tokens.mask[at : at + count]
    mask[target] = False
    return ids.reshape(plan.rows, form.row_tokens), mask.reshape(plan.rows, form.row_tokens)


def joined_segments(source: Integers, target: Integers, tokens: Integers) -> Iterator[tuple[int, int, int]]:
    """Yield where tokens are copied from, where to, and how many.

    Segments that follow each other in the slice as they do in the rows are one copy: of running text, whose documents
    stay in their order, that is most of a row.
    """
    begins = np.ones(len(source), np.bool_)
    begins[1:] = (source[1:] != source[:-1] + tokens[:-1]) | (target[1:] != target[:-1] + tokens[:-1])
    first = np.flatnonzero(begins)
    columns = (source[first], target[first], np.add.reduceat(tokens, first))
    yield from zip(*(column.tolist() for column in columns), strict=True)


def row_offsets(plan: RowPlan, row_tokens: int) -> Integers:
    """Return where each segment begins in the rows, which lie one after the other."""
    # A running sum over all segments tells how many tokens precede each; less what precedes its row, it is the offset
    # in the row. So no row is looked at by itself.
    before = np.cumsum(plan.tokens) - plan.tokens
    row = np.repeat(np.arange(plan.rows), np.diff(plan.first))
    offsets: Integers = row * row_tokens + before - before[plan.first[:-1]][row]
    return offsets


def packed_rows(plan: RowPlan, ids: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> PackedRows:
    """Return rows, which have these ids and masks, with the origin of each segment."""
    return PackedRows(
        input_ids=ids,
        loss_mask=mask,
        first=plan.first,
        tokens=plan.tokens,
        source=plan.file.astype(np.int64),
        position=plan.position,
        start=plan.start,
    )
