"""Show a few rows as text: where documents begin, and which tokens are trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cluster.wording import count_of
from data_prep.config import DataConfig
from data_prep.encode.encoded_slices import encode_parts
from data_prep.encode.encoding import Encoder
from data_prep.encode.tokenizer import encoder_spec, load_tokenizer
from data_prep.fetch.corpus import fetch_corpus
from data_prep.fetch.provenance import document_place
from data_prep.fetch.sources import Corpus, cut_slices
from data_prep.pack.row_assembly import RowFormat, gather_rows
from data_prep.pack.row_plan import make_plan
from data_prep.select.long_documents import line_ends
from data_prep.shards.writing import PackedRow

PREVIEW_BYTES = 128 * 2**10  # read from each source
GREEN, DIM, RESET = "\x1b[32m", "\x1b[2m", "\x1b[0m"


def preview(
    config: DataConfig,
    folder: Path,
    model_path: str | None,
    count: int,
    *,
    colour: bool,
    may_add_tokens: bool = False,
) -> str:
    """Return `count` rows made from the beginning of each source, as text; nothing is prepared.

    Trained text is green, or enclosed in ⟦ and ⟧ without `colour`. URLs are fetched and a tokenizer is trained as in
    `prepare`, which then reuses both.
    """
    corpus = fetch_corpus(config, folder)
    loaded = load_tokenizer(config, model_path, corpus, folder / "work", may_add_tokens=may_add_tokens)
    tokenizer = loaded.tokenizer
    spec = encoder_spec(tokenizer, corpus, config.train_on)
    encoder = Encoder(spec)
    by_source = itertools.groupby(
        cut_slices(corpus, PREVIEW_BYTES), key=lambda parts: corpus.files[parts[0].file].info.source
    )
    slices = [next(group) for _, group in by_source]
    tables = [encode_parts(parts, encoder, config.cleaning) for parts in slices]
    plan = make_plan(config, corpus, slices, tables, 0, partial(line_ends, tokenizer)).splits["train"]
    row_format = RowFormat(row_tokens=config.row_tokens, vocab_size=spec.vocab_size, pad=spec.pad)
    chosen = {round(n) for n in np.linspace(0, plan.rows - 1, min(count, plan.rows))}
    rows = itertools.chain.from_iterable(gather_rows(plan, tables.__getitem__, row_format))
    shown = (show_row(n, row, corpus, tokenizer, colour=colour) for n, row in enumerate(rows) if n in chosen)
    return "\n\n".join(shown)


def show_row(number: int, row: PackedRow, corpus: Corpus, tokenizer: Any, *, colour: bool) -> str:
    """Return one row as text: a line of counts, then each segment below a line that names its document."""
    used = sum(piece.tokens for piece in row.pieces)
    lines = [
        f"row {number}: {count_of(len(row.pieces), 'document')}, {used} tokens, {int(row.loss_mask.sum())} trained, "
        f"{len(row.input_ids) - used} padding"
    ]
    at = 0
    for piece in row.pieces:
        place = document_place(corpus.files[piece.source].info, piece.position)
        begins = "" if piece.start == 0 else f", from its token {piece.start}"
        lines.append(f"── {place}{begins}, {count_of(piece.tokens, 'token')}")
        lines.append("".join(marked_text(row, at, at + piece.tokens, tokenizer, colour=colour)))
        at += piece.tokens
    return "\n".join(lines)


def marked_text(row: PackedRow, begin: int, end: int, tokenizer: Any, *, colour: bool) -> Iterator[str]:
    """Yield the text of a span of a row, decoded as a whole, with the trained text marked."""
    opening, closing = (GREEN, RESET) if colour else ("⟦", "⟧")
    dim, undim = (DIM, RESET) if colour else ("", "")
    at = 0
    for trained, run in itertools.groupby(range(begin, end), key=lambda i: bool(row.loss_mask[i])):
        last = list(run)[-1] + 1
        ids = row.input_ids[begin:last].tolist()
        upto = str(tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))
        upto = upto if last == end else upto.rstrip("\ufffd")  # a character cut here belongs to the next run
        text, at = upto[at:], len(upto)
        yield f"{opening}{text}{closing}" if trained else f"{dim}{text}{undim}"
