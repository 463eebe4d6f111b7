from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.near_duplicates import BINS, band_rows, clusters, signatures


def words_of(count: int, seed: int) -> list[str]:
    drawn = random.Random(seed)
    return ["".join(drawn.choices("abcdefghijklmnop", k=drawn.randint(2, 9))) for _ in range(count)]


def changed(words: list[str], share: float, seed: int) -> list[str]:
    drawn = random.Random(seed)
    return [f"new{drawn.randrange(10**6)}" if drawn.random() < share else word for word in words]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text)
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def similarity(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


@pytest.mark.parametrize("count", [40, 300, 5000])
def test_the_share_of_equal_bytes_is_the_similarity(count):
    estimated, true = [], []
    for seed in range(40):
        words = words_of(count, seed)
        texts = [" ".join(words), " ".join(changed(words, seed / 800, seed))]
        one, other = signatures(texts)
        estimated.append((one == other).mean())
        true.append(similarity(*texts))

    errors = np.array(estimated) - np.array(true)
    assert abs(errors.mean()) < 0.02 and np.abs(errors).max() < 0.2
    assert np.ptp(true) > 0.2


def test_two_in_a_hundred_words_exchanged_is_a_near_duplicate_and_ten_is_none():
    originals = [words_of(400, seed) for seed in range(60)]
    few = [changed(words, 0.01, seed) for seed, words in enumerate(originals)]
    many = [changed(words, 0.1, seed) for seed, words in enumerate(originals)]

    found = clusters(signatures([" ".join(words) for words in [*originals, *few, *many]]), 0.8)

    assert found[:60].tolist() == list(range(60))
    assert (found[60:120] == np.arange(60)).mean() > 0.9
    assert found[120:].tolist() == list(range(120, 180))


def test_case_punctuation_and_spaces_make_no_difference():
    one, other = signatures(["“Hello,” he said - twice.", "hello  he SAID\ntwice"])

    assert (one == other).all()


def test_texts_without_words_are_like_nothing():
    assert clusters(signatures(["?!", "...", "", "a"]), 0.8).tolist() == [0, 1, 2, 3]


def test_languages_without_spaces_are_compared_by_their_signs():
    text = "".join(chr(0x4E00 + n * 37 % 5000) for n in range(300))

    one, near, far = signatures([text, text.replace(text[50], "x"), text[::-1]])

    assert 0.9 < (one == near).mean() < 1 and (one == far).mean() < 0.1


@given(st.lists(st.text(alphabet="ab \u00e9\u4e2d.", max_size=60), min_size=1, max_size=12), st.integers(0, 12))
def test_a_signature_does_not_depend_on_the_neighbours(texts, cut):
    assert np.array_equal(np.concatenate([signatures(texts[:cut]), signatures(texts[cut:])]), signatures(texts))


def test_a_long_text_between_others_has_the_signature_that_it_has_alone():
    texts = ["one two three", " ".join(words_of(60_000, 1)), "four five six seven eight nine"]

    together = signatures(texts)

    assert np.array_equal(together, np.concatenate([signatures([text]) for text in texts]))
    assert together.shape == (3, BINS)


def test_clusters_join_what_is_alike_through_others_and_are_named_by_their_first():
    chain = [words_of(1000, 7)]
    for step in range(12):
        chain.append(changed(chain[-1], 0.008, step))
    texts = [" ".join(words) for words in chain]
    assert similarity(texts[0], texts[-1]) < 0.8

    order = random.Random(1).sample(range(13), 13)
    found = clusters(signatures(["something else entirely", *(texts[n] for n in order)]), 0.8)

    assert found.tolist() == [0] + [1] * 13


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_miss_at_most_one_in_twenty_at_the_threshold(threshold):
    rows = band_rows(threshold)

    assert (1 - threshold**rows) ** (BINS // rows) <= 0.05
    assert rows == BINS or (1 - threshold ** (rows + 1)) ** (BINS // (rows + 1)) > 0.05
