"""From the plan to shards: the tokens of each row's pieces are taken from the mapped slices and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.arrays import Integers
from data_prep.encode.encoded_slices import EncodedSlice, read_slice
from data_prep.pack.row_plan import RowPlan
from data_prep.shards import ShardInfo
from data_prep.shards.writing import PackedRows, id_type, row_schema, write_shard

BATCH_ROWS = 64  # in a record batch: what a reader checks at once


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
    slices = {number: read_slice(path) for number, path in task.slices.items()}
    schema = row_schema(task.format.row_tokens, task.format.vocab_size)
    return write_shard(task.target, task.relative, gather_rows(task.plan, slices, task.format), schema)


def gather_rows(plan: RowPlan, slices: Mapping[int, EncodedSlice], form: RowFormat) -> Iterator[PackedRows]:
    """Yield the planned rows, BATCH_ROWS at a time; the last may be fewer.

    The first token of a piece is not trained: nothing precedes it in its row. Pieces that follow each other in a slice
    as they do in the rows are copied together.
    """
    for begin in range(0, plan.rows, BATCH_ROWS):
        yield gathered(plan.part(begin, min(begin + BATCH_ROWS, plan.rows)), slices, form)


def gathered(plan: RowPlan, slices: Mapping[int, EncodedSlice], form: RowFormat) -> PackedRows:
    """Return the planned rows."""
    ids = np.full(plan.rows * form.row_tokens, form.pad, dtype=id_type(form.vocab_size))
    mask = np.zeros(plan.rows * form.row_tokens, dtype=np.bool_)
    source, target = places(plan, slices, form.row_tokens)
    begins = np.ones(len(source), np.bool_)  # of stretches
    begins[1:] = (
        (plan.slice[1:] != plan.slice[:-1])
        | (source[1:] != source[:-1] + plan.tokens[:-1])
        | (target[1:] != target[:-1] + plan.tokens[:-1])
    )
    first = np.flatnonzero(begins)
    columns = (plan.slice[first], source[first], target[first], np.add.reduceat(plan.tokens, first))
    for number, at, to, tokens in zip(*(column.tolist() for column in columns), strict=True):
        ids[to : to + tokens] = slices[number].ids[at : at + tokens]
        mask[to : to + tokens] = slices[number].mask[at : at + tokens]
    mask[target] = False
    return PackedRows(
        input_ids=ids.reshape(plan.rows, form.row_tokens),
        loss_mask=mask.reshape(plan.rows, form.row_tokens),
        first=plan.first,
        tokens=plan.tokens,
        source=plan.file.astype(np.int64),
        position=plan.position,
        start=plan.start,
    )


def places(plan: RowPlan, slices: Mapping[int, EncodedSlice], row_tokens: int) -> tuple[Integers, Integers]:
    """Return where each piece's tokens begin in their slice, and in the rows."""
    source = plan.start.copy()
    for number in np.unique(plan.slice).tolist():
        here = plan.slice == number
        source[here] += slices[number].first[plan.number[here]]
    before = np.cumsum(plan.tokens) - plan.tokens
    row = np.repeat(np.arange(plan.rows), np.diff(plan.first))
    return source, row * row_tokens + before - before[plan.first[:-1]][row]
