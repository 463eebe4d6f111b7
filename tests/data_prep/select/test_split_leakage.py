from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from data_prep.clean.near_duplicates import summaries
from data_prep.encode.encoded_slices import EncodedSlice, whole_mask
from data_prep.encode.usable_records import text_key
from data_prep.select.split_leakage import COMMON, TEMPLATE, crossing
from tests.data_prep.clean.test_near_duplicates import shingles, words_of

Words = list[str]


def table_of(texts: Sequence[str], lines: Sequence[int] | None = None) -> EncodedSlice:
    """Return an encoded slice of these texts, each of as many lines: sequences of 3 tokens."""
    lines = [1] * len(texts) if lines is None else lines
    document = np.repeat(np.arange(len(texts)), lines)
    summed = summaries([texts[n].encode() for n in document.tolist()])
    count = len(document)
    keys = b"".join(text_key(text.encode()) for text in texts)
    key = np.frombuffer(keys, dtype=">u8").astype(np.uint64).reshape(-1, 2)
    return EncodedSlice(
        part=np.zeros(count, np.int32),
        record=document,
        key=key[document],
        first=np.arange(count + 1) * 3,
        ids=np.ones(3 * count, np.uint16),
        trained=np.full(count, 2),
        mask=whole_mask([None], [3 * count]),
        signature=summed.signature,
        sketches=summed.sketches,
        records=[len(texts)],
        rejected=[{}],
        changed=[{}],
        samples=[],
    )


def left_out(texts: Sequence[str], splits: Sequence[int]) -> set[int]:
    found = crossing([table_of(texts)], np.ones(len(texts), np.bool_), np.array(splits, np.int8))
    return {*found.templates[0].tolist(), *found.later[0].tolist()}


def overlap(one: str, other: str) -> tuple[float, float]:
    """Return the exact Jaccard similarity and containment."""
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b), len(a & b) / min(len(a), len(b))


def changed_down_to(words: Words, bound: float, measure: int, seed: int) -> str:
    """Return words of which so many are exchanged that the similarity is just not below the bound."""
    best = " ".join(words)
    copy = list(words)
    for place in random.Random(seed).sample(range(len(words)), len(words)):
        copy[place] = f"new{place}"
        if overlap(" ".join(words), " ".join(copy))[measure] < bound:
            break
        best = " ".join(copy)
    return best


def planted(kind: str, size: int, seed: int) -> tuple[str, str]:
    words, around = words_of(size, seed), words_of(4 * size, seed + 10**6)
    if kind == "alike":
        return " ".join(words), changed_down_to(words, 0.7, 0, seed)
    if kind == "beginning":
        kept = next(n for n in range(size, 0, -1) if (n - 5) / (size - 4) < 0.7 or n == 10)
        return " ".join(words), " ".join(words[:kept])
    inner = changed_down_to(words, 0.9, 1, seed)
    return " ".join(words), " ".join([*around[:size], inner, *around[size:]])


@pytest.mark.parametrize("kind", ["alike", "beginning", "contained"])
@pytest.mark.parametrize("size", [10, 13, 20, 40, 100, 400])
@pytest.mark.parametrize("is_first_held", [True, False])
def test_no_pair_as_alike_or_contained_as_the_bounds_is_in_two_splits(
    kind: str, size: int, is_first_held: bool
) -> None:
    pairs = [planted(kind, size, seed) for seed in range(40)]
    assert all(overlap(*pair)[0] >= 0.7 or overlap(*pair)[1] >= 0.9 for pair in pairs)

    texts = [text for pair in pairs for text in pair]
    out = left_out(texts, [int(n % 2 != is_first_held) for n in range(80)])

    assert out >= {2 * n + 1 for n in range(40)} or kind != "alike" or size > 40
    assert sum(not {2 * n, 2 * n + 1} & out for n in range(40)) <= (size > 40)


def test_texts_that_share_little_are_in_two_splits() -> None:
    texts = []
    for seed in range(60):
        words, others = words_of(80, seed), words_of(80, seed + 500)
        texts += [" ".join(words), " ".join([*words[:40], *others[:40]])]

    assert all(overlap(*texts[n : n + 2])[1] > 0.4 for n in range(0, 120, 2))
    assert left_out(texts, [0, 1] * 60) == set()


def test_distinct_short_texts_cross_with_nothing() -> None:
    texts = [" ".join(words_of(1 + seed % 25, seed)) for seed in range(2000)]
    bells = [f"How many bells ring at hour {n}? Exactly {n % 12} bells." for n in range(300)]

    assert left_out([*texts, *bells], [int(n % 20 == 0) for n in range(2300)]) == set()


def test_held_out_document_that_is_like_many_others_is_left_out_itself() -> None:
    words = words_of(60, 1)
    texts = [" ".join([*words, f"end{n}"]) for n in range(TEMPLATE + 10)]

    few = left_out(texts[: TEMPLATE + 1], [1] + [0] * TEMPLATE)
    many = left_out(texts, [1] + [0] * (TEMPLATE + 9))

    assert few == set(range(1, TEMPLATE + 1))
    assert many == {0}


def test_of_two_that_cross_the_later_is_left_out_unless_the_earlier_is() -> None:
    words = words_of(130, 2)
    chain = [" ".join(words[15 * n : 15 * n + 100]) for n in range(3)]
    assert [overlap(chain[a], chain[b])[0] > 0.7 for a, b in ((0, 1), (1, 2), (0, 2))] == [True, True, False]

    assert left_out(chain, [0, 1, 0]) == {1}
    assert left_out(chain, [0, 1, 2]) == {1}
    assert left_out(chain, [1, 1, 0]) == {2}


def test_marks_that_very_many_held_out_documents_have_find_none_but_rare_ones_do() -> None:
    words = words_of(30, 3)
    texts = [" ".join([*words, *words_of(30, n + 10)]) for n in range(COMMON + 20)]
    copies = [text.rsplit(" ", 1)[0] for text in texts[:5]]

    assert left_out([*texts, *copies], [1] * len(texts) + [0] * 5) == set(range(len(texts), len(texts) + 5))


def test_what_crosses_does_not_depend_on_the_slices() -> None:
    texts = []
    for seed in range(30):
        words = words_of(60, seed)
        texts += [" ".join([*words, f"end{n}"]) for n in range(1 + seed % 4)] + [" ".join(words[:40])]
    texts = random.Random(4).sample(texts, len(texts))
    split = np.random.default_rng(5).integers(0, 3, len(texts)).astype(np.int8)
    wanted = np.ones(len(texts), np.bool_)

    whole = crossing([table_of(texts)], wanted, split)
    parts = crossing([table_of(texts[:7]), table_of(texts[7:50]), table_of(texts[50:])], wanted, split)

    assert len(whole.later[0]) > 10
    assert [*map(np.ndarray.tolist, whole.later)] == [*map(np.ndarray.tolist, parts.later)]
