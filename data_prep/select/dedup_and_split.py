"""All documents as small arrays: where each lies, which repeat another, which are held out.

A document's split follows from the hash of its own content and from nothing else, so whatever is added to a corpus, no
document moves from one split to another. That alone would let near duplicates lie in different splits. So of two
documents that cross (near duplicates in different splits, see `crossing`) the later in the order of the corpus is
dropped, with the reason `near duplicate of validation` (or of train, of test), and a held-out one that crosses with
many (a template) with the reason `near duplicate of many`. Nothing leaks, and still nothing moves. Added data can make
an old document a near duplicate and so drop it, which is counted, but only if the added document comes before it, is
similar to the first of its near duplicates, or makes a template of it: data added at the end leaves the rest alone.

A document may be several sequences, consecutive lines of a slice: a conversation whose answers are trained in separate
sequences. What becomes of a document is decided by its first line, its head; the others follow it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cluster.errors import DataError
from data_prep.arrays import Integers, Small
from data_prep.clean.near_duplicates import BINS, clusters, sort_with_places
from data_prep.clean.rejected_samples import RejectedSample, Repeat
from data_prep.config import DataConfig
from data_prep.encode.encoded_slices import EncodedSlice
from data_prep.fetch.sources import Slice
from data_prep.select.split_leakage import crossing, short_ones_agree
from data_prep.shards import SPLITS

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near duplicate"
OF_MANY = f"{NEAR_DUPLICATE} of many"

Flags = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.uint64]  # [lines, 2]


@dataclass(frozen=True, kw_only=True)
class Documents:
    """One line for each encoded sequence of the corpus, in the order of its slices.

    `slice` and `number` say where its tokens are, `file` and `position` where it came from, `is_head` whether it is the
    first of its document.
    """

    slice: Small
    number: Small
    file: Small
    position: Integers
    tokens: Small
    trained: Small
    key: Keys
    is_head: Flags

    def __len__(self) -> int:
        return len(self.slice)


@dataclass(frozen=True, kw_only=True)
class Records:
    """By file: how many records were read, and rejected by reason, and what was changed; samples of the rejected."""

    read: list[int]
    rejected: list[Counter[str]]
    changed: list[Counter[str]]
    samples: list[RejectedSample]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which lines are used, and in which split: `split` indexes SPLITS.

    `dropped` says, by reason, which are not; `leader` is the line that each is a duplicate of, or itself.
    """

    split: npt.NDArray[np.int8]
    leader: Integers
    dropped: dict[str, Flags]

    @property
    def kept(self) -> Flags:
        """Which lines no reason drops."""
        kept: Flags = ~np.logical_or.reduce(list(self.dropped.values()))
        return kept


def collect(slices: Sequence[Slice], tables: Sequence[EncodedSlice], files: int) -> tuple[Documents, Records]:
    """Join the small columns of all slices; a record's position becomes its number in the whole file."""
    counters: list[list[Counter[str]]] = [[Counter() for _ in range(files)] for _ in range(2)]
    records = Records(read=[0] * files, rejected=counters[0], changed=counters[1], samples=[])
    documents = no_documents(sum(len(table.part) for table in tables))
    end = 0
    for number, (parts, table) in enumerate(zip(slices, tables, strict=True)):
        part_files = np.array([part.file for part in parts], dtype=np.int32)
        before = np.array([records.read[part.file] for part in parts], dtype=np.int64)
        begin, end = end, end + len(table.part)
        documents.slice[begin:end] = number
        documents.number[begin:end] = np.arange(len(table.part))
        documents.file[begin:end] = part_files[table.part]
        documents.position[begin:end] = before[table.part] + table.record
        documents.tokens[begin:end] = np.diff(table.first)
        documents.trained[begin:end] = table.trained
        documents.key[begin:end] = table.key
        documents.is_head[begin:end] = heads(table)
        for sample in table.samples:
            record = int(before[sample.file]) + sample.record
            records.samples.append(replace(sample, file=parts[sample.file].file, record=record))
        for part, count, reasons, changed in zip(parts, table.records, table.rejected, table.changed, strict=True):
            records.read[part.file] += count
            records.rejected[part.file].update(reasons)
            records.changed[part.file].update(changed)
    return documents, records


def no_documents(count: int) -> Documents:
    """Return empty columns of `count` lines, to be filled: joining pieces would need twice the memory for a while."""
    small = {name: np.empty(count, np.int32) for name in ("slice", "number", "file", "tokens", "trained")}
    return Documents(
        **small,
        position=np.empty(count, np.int64),
        key=np.empty((count, 2), np.uint64),
        is_head=np.empty(count, np.bool_),
    )


def heads(table: EncodedSlice) -> Flags:
    """Return which lines of a slice are the first of their document. Raises DataError if a document has two keys."""
    is_head = np.ones(len(table.part), np.bool_)
    is_head[1:] = (table.part[1:] != table.part[:-1]) | (table.record[1:] != table.record[:-1])
    changes = (table.key[1:] != table.key[:-1]).any(axis=1)
    if (changes & ~is_head[1:]).any():
        raise DataError("two lines of one document have different hashes; this is a bug: please report it")
    return is_head


def select(
    documents: Documents, tables: Sequence[EncodedSlice], is_text: Callable[[Integers], Flags], config: DataConfig
) -> Selection:
    """Return which documents are used, and in which split. `is_text` says which of some lines are running text."""
    return without_crossing(documents, tables, select_unique(documents, tables, is_text, config), config)


def select_unique(
    documents: Documents, tables: Sequence[EncodedSlice], is_text: Callable[[Integers], Flags], config: DataConfig
) -> Selection:
    """Return which documents repeat no other, and their splits by their own hashes; splits are not compared yet."""
    head = np.flatnonzero(documents.is_head)
    split = splits_of(documents.key[head], (config.validation_fraction, config.test_fraction)).astype(np.int8)
    leader = first_equal(documents.key[head]) if config.cleaning.duplicates else np.arange(len(head))
    repeats = leader != np.arange(len(head))
    dropped = {DUPLICATE: repeats}
    if config.cleaning.near_duplicates != "off":
        may_drop = is_text(head) if config.cleaning.near_duplicates == "text" else np.ones(len(head), np.bool_)
        dropped[NEAR_DUPLICATE] = drop_near(tables, head, leader, may_drop, config.cleaning.near_threshold)
    return spread(Selection(split=split, leader=leader, dropped=dropped), documents.is_head, head)


def without_crossing(
    documents: Documents, tables: Sequence[EncodedSlice], selection: Selection, config: DataConfig
) -> Selection:
    """Return the selection without documents that cross, unless near duplicates are not searched for."""
    if config.cleaning.near_duplicates == "off":
        return selection
    head = np.flatnonzero(documents.is_head)
    leader = np.searchsorted(head, selection.leader[head])
    split = selection.split[head]
    crosses = drop_crossing(tables, head, leader, split, selection.kept[head])
    dropped = {reason: flags[head] for reason, flags in selection.dropped.items()}
    dropped |= {reason: flags | dropped[reason] if reason in dropped else flags for reason, flags in crosses.items()}
    return spread(Selection(split=split, leader=leader, dropped=dropped), documents.is_head, head)


def drop_near(
    tables: Sequence[EncodedSlice], head: Integers, leader: Integers, may_drop: Flags, threshold: float
) -> Flags:
    """Return which documents are near duplicates of an earlier one and may be dropped; set `leader` to that one."""
    near = np.zeros(len(leader), np.bool_)
    unique = leader == np.arange(len(leader))
    if not (may_drop & unique).any():
        return near
    chosen = np.flatnonzero(unique)
    first = chosen[clusters(signatures_of(tables, head[chosen]), threshold)]
    follows = (first != chosen) & may_drop[chosen]
    chosen, first = chosen[follows], first[follows]
    alike = short_ones_agree(tables, head[chosen], head[first], threshold)
    near[chosen[alike]] = True
    leader[chosen[alike]] = first[alike]
    leader[:] = leader[leader]  # an equal of what is dropped here follows it to its leader
    return near


def signatures_of(tables: Sequence[EncodedSlice], lines: Integers) -> npt.NDArray[np.uint8]:
    """Return the signatures of these lines, which are in order: [lines, BINS]."""
    result = np.empty((len(lines), BINS), np.uint8)
    before = begin = 0
    for table in tables:
        end = int(np.searchsorted(lines, before + len(table.part)))
        result[begin:end] = table.signature[lines[begin:end] - before]
        before, begin = before + len(table.part), end
    return result


def drop_crossing(
    tables: Sequence[EncodedSlice], head: Integers, leader: Integers, split: npt.NDArray[np.int8], wanted: Flags
) -> dict[str, Flags]:
    """Return, by reason, which of the wanted documents are dropped; set `leader` to the one that each crosses with."""
    lines = sum(len(table.part) for table in tables)
    dropped = {f"{NEAR_DUPLICATE} of {name}": np.zeros(len(head), np.bool_) for name in SPLITS}
    dropped[OF_MANY] = np.zeros(len(head), np.bool_)
    if not (split > 0).any():
        return dropped
    is_wanted, split_of_line = np.zeros(lines, np.bool_), np.zeros(lines, np.int8)
    is_wanted[head[wanted]] = True
    split_of_line[head] = split
    found = crossing(tables, is_wanted, split_of_line)
    for line, of in (found.templates, found.later):
        leader[np.searchsorted(head, line)] = np.searchsorted(head, of)
    dropped[OF_MANY][np.searchsorted(head, found.templates[0])] = True
    later = np.searchsorted(head, found.later[0])
    for number, name in enumerate(SPLITS):
        dropped[f"{NEAR_DUPLICATE} of {name}"][later[split[leader[later]] == number]] = True
    return dropped


def spread(selection: Selection, is_head: Flags, head: Integers) -> Selection:
    """Return the selection for all lines: each line follows its document."""
    if len(head) == len(is_head):
        return selection
    # `of` is the number of the document that each line is of; `leader` counts documents and becomes a line again.
    of = np.cumsum(is_head) - 1
    dropped = {reason: flags[of] for reason, flags in selection.dropped.items()}
    return Selection(split=selection.split[of], leader=head[selection.leader[of]], dropped=dropped)


def drawn_repeats(documents: Documents, selection: Selection, limit: int) -> list[Repeat]:
    """Return up to `limit` dropped documents of each reason, those with the smallest hashes, and their leaders."""
    result = []
    for reason, flags in selection.dropped.items():
        dropped = np.flatnonzero(flags & documents.is_head)
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
    # Keys are 128 bits, and an exact order of them all is slow. So the first 64 are sorted, less their low bits; only
    # what is equal to a neighbour there, which is little, is put in order exactly.
    hashes = key[:, 0].copy()
    place = sort_with_places(hashes)
    same = np.zeros(len(key) + 1, np.bool_)
    same[1:-1] = hashes[1:] == hashes[:-1]
    some = np.sort(place[same[1:] | same[:-1]])  # the only ones that can be equal to another
    order = some[np.lexsort((key[some, 1], key[some, 0]))]  # stable: of equal keys, the first document stays first
    differs = np.ones(len(order), np.bool_)
    differs[1:] = (key[order][1:] != key[order][:-1]).any(axis=1)
    result = np.arange(len(key))
    result[order] = order[np.maximum.accumulate(np.where(differs, np.arange(len(order)), 0))]
    return result


def splits_of(key: Keys, held_out: Sequence[float]) -> Integers:
    """Return the split of each document by its own hash: 0, or 1 + the number of the share in `held_out` it lies in."""
    ends = [np.uint64(min(int(sum(held_out[: n + 1]) * 2**64), 2**64 - 1)) for n in range(len(held_out))]
    place = np.searchsorted(np.array(ends, np.uint64), key[:, 0], side="right")
    return np.where(place < len(ends), place + 1, 0)
