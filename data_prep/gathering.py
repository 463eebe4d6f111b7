"""From the plan to shards: the tokens of each row's pieces are taken from the mapped slices and written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.planning import RowPlan
from data_prep.shard_writing import Row, row_schema, write_shard
from data_prep.shards import Piece, ShardInfo
from data_prep.slices import EncodedSlice, read_slice

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
    rows = gather_rows(task.plan, slices, task.format)
    schema = row_schema(task.format.row_tokens, task.format.vocab_size)
    return write_shard(task.target, task.relative, batches(rows), schema)


def batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yield lists of BATCH_ROWS rows; the last may be shorter."""
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        yield batch


def gather_rows(plan: RowPlan, slices: Mapping[int, EncodedSlice], form: RowFormat) -> Iterator[Row]:
    """Yield the planned rows. The first token of a piece is not trained: nothing precedes it in its row."""
    columns = (plan.slice, plan.number, plan.start, plan.tokens, plan.file, plan.position)
    pieces = list(zip(*(column.tolist() for column in columns), strict=True))
    for begin, end in itertools.pairwise(plan.first.tolist()):
        input_ids = np.full(form.row_tokens, form.pad, dtype=np.uint32)
        loss_mask = np.zeros(form.row_tokens, dtype=np.bool_)
        described = []
        at = 0
        for number, document, start, tokens, file, position in pieces[begin:end]:
            table = slices[number]
            source = int(table.first[document]) + start
            input_ids[at : at + tokens] = table.ids[source : source + tokens]
            loss_mask[at : at + tokens] = table.mask[source : source + tokens]
            loss_mask[at] = False
            at += tokens
            described.append(Piece(tokens=tokens, source=file, position=position, start=start))
        yield Row(input_ids=input_ids, loss_mask=loss_mask, pieces=described)
