"""What is held out if there are few documents: a passage of each long text, or at least one document.

A corpus of a dozen books cannot spare one for validation, and a hash that picks one document in fifty may pick none. So
one span of tokens of each long text is held out, and the two around it are trained on; no token is in both. Where the
span lies follows from the document's own hash, and it begins and ends with a paragraph or a line if one ends nearby.
Repetitions of it elsewhere in the same book are not removed: the validation loss is that of an author seen in training.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.wording import count_of
from data_prep.arrays import Integers
from data_prep.config import DataConfig
from data_prep.encode.encoded_slices import EncodedSlice
from data_prep.fetch.sources import Slice
from data_prep.select.dedup_and_split import Documents, Flags, Selection, without_crossing
from data_prep.select.long_documents import LINE, PARAGRAPH, Ends, Split, next_start, split_document
from data_prep.select.quoted_passages import quoted
from data_prep.shards import SPLITS

log = logging.getLogger(__name__)

HELD_OUT_VERSION = 1  # part of the manifest's config digest: raise it when other documents or passages are held out
FEW_DOCUMENTS = 200  # texts: fewer hold out passages
LEAST_TOKENS = 64  # of a passage
TRIED = 20  # documents, until one is similar to no other
LEAST_DOCUMENTS = 10  # from which on one is held out whatever the hashes say
SNAP_SHARE = 4  # of a passage: so far back a paragraph's end is looked for
TRAIN, VALIDATION = SPLITS.index("train"), SPLITS.index("validation")


@dataclass(frozen=True, kw_only=True)
class Passage:
    """The tokens `begin` to `end` of a document; `splits` cuts its three spans, by their starts, for best_fit."""

    begin: int
    end: int
    splits: Mapping[int, Split] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DocumentSpans:
    """Documents, or spans of them: which document, from which of its tokens, how many, how many are trained."""

    document: Integers
    start: Integers
    tokens: Integers
    trained: Integers


def passages_in(
    tables: Iterable[EncodedSlice], slices: Sequence[Slice], is_text: Flags, config: DataConfig, ends: Ends
) -> dict[int, Passage]:
    """Return, by the document's number, the passage that each long text may hold out.

    `is_text` is by file. Empty if the configuration, or the number of texts, rules passages out.
    """
    passages: dict[int, Passage] = {}
    if config.validation == "documents" or config.validation_fraction == 0:
        return passages
    known = cache(ends)
    before = texts = 0
    for parts, table in zip(slices, tables, strict=True):
        of_text = is_text[np.array([part.file for part in parts], np.int64)][table.part]
        texts += int(np.count_nonzero(of_text))
        if config.validation == "auto" and texts >= 2 * FEW_DOCUMENTS:  # some of them may be dropped
            return {}
        long = of_text & (np.diff(table.first) * config.validation_fraction >= LEAST_TOKENS)
        for number in np.flatnonzero(long).tolist():
            tokens = np.s_[table.first[number] : table.first[number + 1]]
            passages[before + number] = passage_of(table.ids[tokens], int(table.key[number, 1]), config, known())
        before += len(table.part)
    return passages


def passage_of(ids: npt.NDArray[Any], place: int, config: DataConfig, ends: npt.NDArray[np.uint8]) -> Passage:
    """Return the passage of a text that `place`, a number of 64 bits, chooses."""
    wanted = round(len(ids) * config.validation_fraction)
    first = (place * (len(ids) - wanted)) >> 64
    kinds = ends[ids]
    choices = [(np.flatnonzero(kinds >= kind) + 1, wanted // SNAP_SHARE) for kind in (PARAGRAPH, LINE)]
    begin, end = (next_start(limit, choices) for limit in (first, first + wanted))
    splits = {}
    for start, stop in ((0, begin), (begin, end), (end, len(ids))):
        if stop - start > config.row_tokens:
            splits[start] = split_document(ids[start:stop], np.ones(stop - start, np.uint8), config.row_tokens, ends)
    return Passage(begin=begin, end=end, splits=splits)


def held_out(
    documents: Documents,
    tables: Sequence[EncodedSlice],
    selection: Selection,
    is_text: Flags,
    config: DataConfig,
    found: Mapping[int, Passage],
) -> tuple[Selection, dict[int, Passage]]:
    """Return the selection with long texts in train, and their passages that are held out; log what was done.

    `is_text` is by document. A passage that also stands in another text is not held out.
    """
    kept = selection.kept & documents.is_head
    texts = int(np.count_nonzero(kept & is_text))
    if config.validation != "passages" and (config.validation != "auto" or texts >= FEW_DOCUMENTS):
        return selection, {}
    passages = {number: one for number, one in found.items() if kept[number] and selection.split[number] <= VALIDATION}
    elsewhere = quoted(tables, {number: (one.begin, one.end) for number, one in passages.items()}, kept)
    if not passages:
        return selection, {}
    split = selection.split.copy()
    split[list(passages)] = TRAIN
    passages = {number: one for number, one in passages.items() if number not in elsewhere}
    log.info(
        "validation: about %g of each long text, %s, as there are too few to hold out whole ones: %d (data.validation)",
        config.validation_fraction,
        count_of(len(passages), "passage"),
        texts,
    )
    if elsewhere:
        told = count_of(len(elsewhere), "passage")
        log.info("validation: %s found in other texts too, so not held out", told)
    return replace(selection, split=split), passages


def with_one_held_out(
    documents: Documents, tables: Sequence[EncodedSlice], selection: Selection, config: DataConfig
) -> Selection:
    """Return the selection with a document in validation, if it has none and can spare one; log that.

    It is the one with the smallest hash of those that are similar to no other.
    """
    kept = selection.kept & documents.is_head
    is_wanted = config.validation_fraction > 0 and np.count_nonzero(kept) >= LEAST_DOCUMENTS
    if not is_wanted or (kept & (selection.split == VALIDATION)).any():
        return selection
    candidates = np.flatnonzero(kept & (selection.split == TRAIN))
    candidates = candidates[np.lexsort((documents.key[candidates, 1], documents.key[candidates, 0]))]
    for chosen in candidates[:TRIED].tolist():
        following = np.flatnonzero(documents.is_head[chosen + 1 :])
        split = selection.split.copy()
        split[chosen : chosen + 1 + (int(following[0]) if len(following) else len(split))] = VALIDATION  # all its lines
        moved = replace(selection, split=split)
        if np.array_equal(without_crossing(documents, tables, moved, config).kept, selection.kept):
            log.info("validation: none of %d documents fell into it, so one is held out", np.count_nonzero(kept))
            return moved
    return selection


def spans_to_pack(
    split: str, numbers: Integers, documents: Documents, passages: Mapping[int, Passage], splits_of: Mapping[int, Split]
) -> tuple[DocumentSpans, dict[int, Split]]:
    """Return the spans of the chosen documents to pack in a split and, by place, how those longer than a row are cut.

    In train the passages are left out; in validation they follow the whole documents. `splits_of` cuts whole
    documents.
    """
    columns: list[tuple[int, int, int, int]] = []
    cuts: dict[int, Split] = {}
    more = sorted(passages) if split == "validation" else []
    for number in [*numbers.tolist(), *more] if passages else []:
        one, length = passages.get(number), int(documents.tokens[number])
        if one is None:
            columns.append((number, 0, length, int(documents.trained[number])))
            cuts |= {len(columns) - 1: splits_of[number]} if number in splits_of else {}
            continue
        for start, stop in [(one.begin, one.end)] if split == "validation" else [(0, one.begin), (one.end, length)]:
            if stop > start:
                cuts |= {len(columns): one.splits[start]} if start in one.splits else {}
                columns.append((number, start, stop - start, stop - start - (start == 0)))
    if not passages:
        cuts = {place: splits_of[number] for place, number in enumerate(numbers.tolist()) if number in splits_of}
        counted = (documents.tokens[numbers].astype(np.int64), documents.trained[numbers].astype(np.int64))
        values = [numbers, np.zeros(len(numbers), np.int64), *counted]
    else:
        values = list(np.array(columns, np.int64).reshape(-1, 4).T)
    return DocumentSpans(**dict(zip(("document", "start", "tokens", "trained"), values, strict=True))), cuts
