"""What became of every document and every token, and the proof that nothing is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import DataError
from cluster.wording import count_of
from data_prep.clean.cleaning import C4_COUNTS
from data_prep.clean.privacy import KINDS
from data_prep.fetch.sources import Corpus, not_read
from data_prep.rows.record_shapes import name_list
from data_prep.select.dedup_and_split import Documents, Records, Selection
from data_prep.shards import Manifest, ShardInfo

FULL, MANY_ROWS = 0.9, 20  # if many rows are less full than that, the summary says what would fill them


def count_documents(
    corpus: Corpus, records: Records, documents: Documents, selection: Selection
) -> dict[str, dict[str, Any]]:
    """Return, by source: files, files passed over by suffix, documents read, kept, rejected by reason, what was
    changed, and tokens.

    `trained_tokens` is before packing, which masks the first token of each segment that a cut begins.
    Raises DataError if a document is unaccounted for.
    """

    def by_file(values: npt.NDArray[Any]) -> list[int]:
        return [int(n) for n in np.bincount(documents.file, weights=values, minlength=len(corpus.files))]

    kept = selection.kept
    dropped = {reason: by_file(flags & documents.is_head) for reason, flags in selection.dropped.items()}
    dropped_by_file = [{reason: counts[n] for reason, counts in dropped.items()} for n in range(len(corpus.files))]
    columns = zip(
        corpus.files,
        records.read,
        records.rejected,
        records.changed,
        by_file(kept & documents.is_head),
        dropped_by_file,
        by_file(documents.tokens * kept),
        by_file(documents.trained * kept),
        strict=True,
    )
    counts: dict[str, dict[str, Any]] = {}
    for file, read, rejected, changed, keeps, left_out, tokens, trained in columns:
        label = file.info.source
        empty = {"files": 0, "read": 0, "kept": 0, "rejected": Counter(), "tokens": 0, "trained_tokens": 0}
        extra = {"changed": Counter(), "passed_over": corpus.passed_over[label], "unused": not_read(corpus, label)}
        entry = counts.setdefault(label, {**empty, **extra})
        for name, count in (("files", 1), ("read", read), ("kept", keeps), ("tokens", tokens)):
            entry[name] += count
        entry["trained_tokens"] += trained
        entry["rejected"].update(rejected + Counter(left_out))
        entry["changed"].update(changed)
    for label, entry in counts.items():
        for name in ("rejected", "changed"):
            entry[name] = dict(sorted(entry[name].items()))
        balance(f"documents of {label}", entry["read"], entry["kept"] + sum(entry["rejected"].values()))
    return counts


def count_tokens(shards: Sequence[ShardInfo], row_tokens: int, expected: int, trained: range) -> dict[str, int]:
    """Return the tokens of all rows by use. Raises DataError unless they are exactly the kept documents'.

    `trained` is how many may be trained: packing masks the first token of a segment that begins inside a document.
    """
    rows = sum(shard.rows for shard in shards)
    tokens = sum(shard.tokens for shard in shards)
    found = sum(shard.trained_tokens for shard in shards)
    balance("tokens", expected, tokens)
    balance("trained tokens", min(max(found, trained.start), trained.stop - 1), found)
    return {"trained": found, "masked": tokens - found, "padding": rows * row_tokens - tokens}


def reasons_of(entry: Mapping[str, Any]) -> str:
    """Return a source's rejected documents by reason, for people."""
    return ", ".join(f"{count:,} {reason}" for reason, count in entry["rejected"].items())


def changes_of(changed: Mapping[str, int]) -> str:
    """Return what cleaning changed in a corpus, for people."""
    private = [f"{changed[kind]:,} private {kind}" for kind in KINDS if kind in changed]
    if "documents with private data" in changed:  # older manifests do not tell
        private[-1] += f" in {count_of(changed['documents with private data'], 'document')}"
    documents, lines, characters = (changed.get(name, 0) for name in C4_COUNTS)
    parts = f"{count_of(lines, 'line')} / {count_of(characters, 'character')}"
    removed = f"{count_of(documents, 'document')} with {parts} removed by quality c4"
    told = {*KINDS, *C4_COUNTS, "documents with private data"}
    others = [f"{count:,} {what}" for what, count in sorted(changed.items()) if what not in told]
    return ", ".join(private + [removed] * bool(documents) + others)


def balance(what: str, expected: int, found: int) -> None:
    """Raise DataError if two counts of the same thing differ."""
    if expected != found:
        raise DataError(
            f"the ledger does not balance: {expected} {what} went in, {found} came out; delete the folder `work` "
            "beside the shards and run the command again; if this persists, it is a bug: please report it"
        )


def summary(manifest: Manifest) -> str:
    """Return what became of the corpus as a table by source, for people."""
    lines = [("source", "documents", "kept", "tokens", "trained", "rejected")]
    for label, entry in manifest.documents.items():
        rejected = reasons_of(entry) or "-"
        share = entry["trained_tokens"] / entry["tokens"] if entry["tokens"] else 0.0
        numbers = (f"{entry['read']:,}", f"{entry['kept']:,}", f"{entry['tokens']:,}", f"{share:.1%}")
        lines.append((label, *numbers, rejected))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    table = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:5], widths[1:], strict=True)), line[5]]
        )
        for line in lines
    ]
    changed: Counter[str] = sum((Counter(entry.get("changed", {})) for entry in manifest.documents.values()), Counter())
    if changed:
        table.append("changed: " + changes_of(changed))
    for label, entry in manifest.documents.items():
        if entry.get("unused"):
            table.append(f"columns not used of {label}: {name_list(entry['unused'])}")
    rows = {split: manifest.rows(split) for split in manifest.splits}
    hint = f"; few documents fit together into {manifest.row_tokens} tokens: a larger data.row_tokens leaves less empty"
    used = manifest.tokens["trained"] + manifest.tokens["masked"]
    total = used + manifest.tokens["padding"]
    return "\n".join(
        [
            *table,
            f"rows of {manifest.row_tokens} tokens ({manifest.packing}): "
            + ", ".join(f"{count:,} {split}{filled_text(manifest.fill.get(split))}" for split, count in rows.items()),
            f"tokens in rows: {used:,} of {total:,} ({used / total:.2%} full), "
            f"{manifest.tokens['trained']:,} trained, {manifest.tokens['masked']:,} masked"
            + (hint if used < FULL * total and sum(rows.values()) >= MANY_ROWS else ""),
        ]
    )


def filled_text(share: float | None) -> str:
    """Return which share of a split's rows is tokens of documents; manifests of some older versions do not tell."""
    return "" if share is None else f" ({share:.2%} full)"
