"""The plan of the whole corpus: which documents are kept, in which split, and which row each token goes to."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from cluster.errors import DataError
from data_prep.arrays import Integers, Small
from data_prep.clean.rejected_samples import RejectedSample, Repeat, drawn
from data_prep.config import DataConfig
from data_prep.encode.encoded_slices import EncodedSlice
from data_prep.fetch.sources import Corpus, Slice
from data_prep.pack.packing import Packing, pack
from data_prep.select.dedup_and_split import OF_MANY, Documents, collect, drawn_repeats, select_unique, without_crossing
from data_prep.select.held_out_passages import DocumentSpans, held_out, passages_in, spans_to_pack, with_one_held_out
from data_prep.select.ledger import count_documents, reasons_of
from data_prep.select.long_documents import Ends, Split, split_document
from data_prep.select.mixture import mixed
from data_prep.select.source_refusals import check_refused, tell_run_together
from data_prep.select.split_leakage import TEMPLATE
from data_prep.shards import SPLITS

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """Some rows: row r holds the segments first[r] to first[r + 1].

    Segment i is tokens[i] of document number[i] of slice slice[i], from start[i]; the document is record position[i] of
    the corpus file file[i].
    """

    first: Integers
    slice: Small
    number: Small
    start: Integers
    tokens: Integers
    file: Small
    position: Integers

    @property
    def rows(self) -> int:
        return len(self.first) - 1

    def part(self, begin: int, end: int) -> RowPlan:
        """Return the rows from `begin` to `end`."""
        segments = np.s_[self.first[begin] : self.first[end]]
        return RowPlan(
            first=self.first[begin : end + 1] - self.first[begin],
            **{
                name: getattr(self, name)[segments]
                for name in ("slice", "number", "start", "tokens", "file", "position")
            },
        )


@dataclass(frozen=True, kw_only=True)
class PackingPlan:
    """The rows of each split, the counts that the manifest and its ledger need, and samples of what was left out.

    `cuts` is the number of segments that begin inside a document: each may cost one trained token.
    """

    splits: dict[str, RowPlan]
    counts: dict[str, dict[str, Any]]
    tokens: int
    trained: int
    cuts: int
    conversational: bool
    samples: list[RejectedSample]
    repeats: list[Repeat]


def packing_method(config: DataConfig, corpus: Corpus) -> str:
    """Return the packing that 'auto' stands for: running text is joined, anything else is not cut."""
    if config.packing != "auto":
        return config.packing
    return "concat" if corpus.is_text else "best_fit"


def make_plan(
    config: DataConfig,
    corpus: Corpus,
    slices: Sequence[Slice],
    tables: Sequence[EncodedSlice],
    seed: int,
    ends: Ends,
) -> PackingPlan:
    """Return where every token of the slices goes; `ends` gives what each token ends, as `line_ends` tells.

    Raises DataError if nothing is left to train on.
    """
    method = packing_method(config, corpus)
    splits_of = long_splits(tables, config.row_tokens, ends) if method == "best_fit" else {}
    documents, records = collect(slices, tables, len(corpus.files))
    check_refused(corpus, records)
    tell_run_together(corpus, records)
    is_text = np.array([file.columns.shape == "text" for file in corpus.files])
    unique = select_unique(documents, tables, lambda lines: is_text[documents.file[lines]], config)
    found = passages_in(tables, slices, is_text, config, ends)
    unique, passages = held_out(documents, tables, unique, is_text[documents.file], config, found)
    selection = without_crossing(documents, tables, unique, config)
    if not passages:
        selection = with_one_held_out(documents, tables, selection, config)
    counts = count_documents(corpus, records, documents, selection)
    chosen = {s: np.flatnonzero(selection.kept & (selection.split == number)) for number, s in enumerate(SPLITS)}
    chosen["train"], epochs = mixed(config, corpus, documents, chosen["train"])
    for label, value in epochs.items():
        counts[label]["epochs"] = round(value, 6)
    sizes = {split: int(np.count_nonzero(documents.is_head[numbers])) for split, numbers in chosen.items()}
    check_splits({**sizes, "validation": sizes["validation"] + len(passages)}, counts, config)
    splits = {}
    tokens = trained = 0
    for split, numbers in chosen.items():
        spans, cuts = spans_to_pack(split, numbers, documents, passages, splits_of)
        packing = pack(method, spans.tokens, config.row_tokens, seed, cuts)
        splits[split] = plan_rows(packing, documents, spans)
        tokens += int(spans.tokens.sum())
        trained += int(spans.trained.sum())
    used = np.concatenate(list(chosen.values()))
    return PackingPlan(
        splits=splits,
        counts=counts,
        tokens=tokens,
        trained=trained,
        cuts=sum(int(np.count_nonzero(plan.start)) for plan in splits.values()),
        samples=drawn(records.samples, config.cleaning.rejected_samples),
        repeats=drawn_repeats(documents, selection, config.cleaning.rejected_samples),
        conversational=not is_text[documents.file[used]].all(),
    )


def long_splits(tables: Iterable[EncodedSlice], row_tokens: int, ends: Ends) -> dict[int, Split]:
    """Return how each sequence that is longer than a row is split, by its number."""
    known = cache(ends)  # it looks at every token of the vocabulary: only where a document is that long
    splits_of: dict[int, Split] = {}
    before = 0
    for table in tables:
        for number in np.flatnonzero(np.diff(table.first) > row_tokens).tolist():
            tokens = np.s_[table.first[number] : table.first[number + 1]]
            splits_of[before + number] = split_document(table.ids[tokens], table.mask[tokens], row_tokens, known())
        before += len(table.part)
    return splits_of


def plan_rows(packing: Packing, documents: Documents, chosen: DocumentSpans) -> RowPlan:
    """Return the plan of a packing of the chosen spans of documents."""
    index = chosen.document[packing.document]
    return RowPlan(
        first=packing.first,
        slice=documents.slice[index],
        number=documents.number[index],
        start=packing.start + chosen.start[packing.document],
        tokens=packing.tokens,
        file=documents.file[index],
        position=documents.position[index],
    )


def check_splits(sizes: dict[str, int], counts: dict[str, dict[str, Any]], config: DataConfig) -> None:
    """Raise DataError if there is nothing to train on; warn if nothing is held out that should be."""
    if sizes["train"] == 0:
        reasons = "; ".join(f"{label}: {reasons_of(entry) or 'none'}" for label, entry in counts.items())
        raise DataError(
            f"no document is left to train on ({sizes['validation']} held out for validation; rejected of {reasons}); "
            "fix the sources, lower data.validation_fraction, or see what data.cleaning rejects"
        )
    if sizes["validation"] > 0 or config.validation_fraction == 0:
        return
    of_many = sum(entry["rejected"].get(OF_MANY, 0) for entry in counts.values())
    if of_many:
        log.warning(
            "validation is empty: %d documents that were held out were rejected as '%s': each shares most of its words "
            "with more than %d others, such as a long system prompt; shorten that prompt, or leave out its column and "
            'write it as the source\'s `system: "..."`, which is not compared, or set data.validation_fraction to 0',
            of_many,
            OF_MANY,
            TEMPLATE,
        )
    else:
        log.warning(
            "validation is empty: none of %d documents fell into data.validation_fraction %g; raise it, add documents, "
            "or set it to 0",
            sizes["train"],
            config.validation_fraction,
        )


def shard_plans(split: str, plan: RowPlan, shard_rows: int) -> list[tuple[str, RowPlan]]:
    """Return the name of each shard of a split, relative to the data folder, and its rows."""
    count = -(-plan.rows // shard_rows)
    return [
        (f"{split}/data-{n:05d}-of-{count:05d}.arrow", plan.part(n * shard_rows, min((n + 1) * shard_rows, plan.rows)))
        for n in range(count)
    ]
