from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.arrays import Integers
from data_prep.pack.packing import Packing, best_fit, concat, pack
from data_prep.select.long_documents import Split

lengths_of = st.lists(st.integers(1, 200), max_size=60).map(lambda values: np.array(values, dtype=np.int64))
rows_of = st.integers(8, 64)


def used_tokens(packing: Packing, lengths: Integers) -> list[tuple[int, int]]:
    """Every (document, token) in the rows, in their order."""
    pieces = zip(packing.document.tolist(), packing.start.tolist(), packing.tokens.tolist(), strict=True)
    return [(document, token) for document, start, tokens in pieces for token in range(start, start + tokens)]


def fill(packing: Packing) -> list[int]:
    return [int(packing.tokens[a:b].sum()) for a, b in zip(packing.first[:-1], packing.first[1:], strict=True)]


@pytest.mark.parametrize("method", ["concat", "best_fit"])
@given(lengths=lengths_of, row_tokens=rows_of, seed=st.integers(0, 2**63))
def test_packing_loses_no_token_and_uses_none_twice(method: Any, lengths: Integers, row_tokens: int, seed: int) -> None:
    packing = pack(method, lengths, row_tokens, seed)

    every = [(document, token) for document, length in enumerate(lengths.tolist()) for token in range(length)]
    assert sorted(used_tokens(packing, lengths)) == every
    assert all(0 < tokens <= row_tokens for tokens in fill(packing))
    assert packing.first[0] == 0 and packing.first[-1] == len(packing.tokens)


@given(lengths=lengths_of, row_tokens=rows_of)
def test_concat_keeps_the_order_and_pads_only_the_last_row(lengths: Integers, row_tokens: int) -> None:
    packing = concat(lengths, row_tokens)

    assert used_tokens(packing, lengths) == sorted(used_tokens(packing, lengths))
    assert all(tokens == row_tokens for tokens in fill(packing)[:-1])


@given(lengths=lengths_of, row_tokens=rows_of)
def test_best_fit_cuts_no_document_that_fits_into_a_row(lengths: Integers, row_tokens: int) -> None:
    packing = best_fit(lengths, row_tokens, seed=0)

    short = lengths[packing.document] <= row_tokens
    assert (packing.start[short] == 0).all()
    assert (packing.tokens[short] == lengths[packing.document][short]).all()


def line_splits(lengths: Integers, row_tokens: int, line: int) -> dict[int, Split]:
    """Splits of documents that are made of lines of `line` tokens."""
    long = [(number, length) for number, length in enumerate(lengths.tolist()) if length > row_tokens]
    return {
        number: Split(np.arange(0, length, row_tokens), np.arange(length // line * line, 0, -line)[::-1])
        for number, length in long
    }


@given(lengths=lengths_of, row_tokens=rows_of, line=st.integers(1, 9), seed=st.integers(0, 2**63))
def test_filling_rows_up_loses_no_token_and_cuts_no_document_that_fits_into_a_row(
    lengths: Integers, row_tokens: int, line: int, seed: int
) -> None:
    packing = best_fit(lengths, row_tokens, seed, line_splits(lengths, row_tokens, line))

    every = [(document, token) for document, length in enumerate(lengths.tolist()) for token in range(length)]
    assert sorted(used_tokens(packing, lengths)) == every
    assert all(0 < tokens <= row_tokens for tokens in fill(packing))
    assert (packing.start[lengths[packing.document] <= row_tokens] == 0).all()


def test_the_last_pieces_of_long_documents_fill_rows_up_to_a_line_s_end() -> None:
    lengths = np.array([1024 + 300] * 20 + [800] * 20, dtype=np.int64)

    packing = best_fit(lengths, 1024, 0, line_splits(lengths, 1024, 5))

    cuts = packing.start[packing.start % 1024 != 0]
    assert packing.rows == -(-lengths.sum() // 1024)
    assert 0 < len(cuts) < 30 and (cuts % 5 == 0).all()


@given(lengths=lengths_of, row_tokens=rows_of)
def test_best_fit_leaves_no_two_rows_that_would_fit_into_one(lengths: Integers, row_tokens: int) -> None:
    rows = sorted(fill(best_fit(lengths, row_tokens, seed=0)))

    assert len(rows) < 2 or rows[0] + rows[1] > row_tokens


def test_best_fit_orders_rows_by_the_seed_and_not_by_length() -> None:
    lengths = np.arange(1, 400, dtype=np.int64) % 60 + 1
    one, same, other = (best_fit(lengths, 64, seed) for seed in (1, 1, 2))

    longest = [int(one.tokens[first]) for first in one.first[:-1]]
    assert longest != sorted(longest, reverse=True)
    assert (one.document == same.document).all()
    assert not (one.document == other.document).all()


def test_rows_of_items_of_much_the_same_length_are_full() -> None:
    lengths = (350 + 150 * np.sin(np.arange(3000) * 12.9898) ** 3).astype(np.int64)

    packing = best_fit(lengths, 2048, seed=0)

    assert lengths.sum() / (packing.rows * 2048) > 0.995


def test_a_long_document_is_packed_in_the_pieces_it_is_split_into() -> None:
    packing = best_fit(np.array([100, 30], dtype=np.int64), 64, 0, {0: Split(np.array([0, 40, 90]), None)})

    pieces = sorted(zip(packing.document.tolist(), packing.start.tolist(), packing.tokens.tolist(), strict=True))
    assert pieces == [(0, 0, 40), (0, 40, 50), (0, 90, 10), (1, 0, 30)]
