from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.clean.near_duplicates import BINS, band_rows, clusters, signatures, summaries
from data_prep.clean.shingles import word_hashes
from data_prep.config import CleaningConfig
from data_prep.shards import Manifest

THRESHOLD = CleaningConfig().near_threshold


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
def test_the_share_of_equal_bytes_is_the_similarity(count: int) -> None:
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


def test_two_in_a_hundred_words_exchanged_is_a_near_duplicate_and_ten_is_none() -> None:
    originals = [words_of(400, seed) for seed in range(60)]
    few = [changed(words, 0.01, seed) for seed, words in enumerate(originals)]
    many = [changed(words, 0.1, seed) for seed, words in enumerate(originals)]

    found = clusters(signatures([" ".join(words) for words in [*originals, *few, *many]]), 0.8)

    assert found[:60].tolist() == list(range(60))
    assert (found[60:120] == np.arange(60)).mean() > 0.9
    assert found[120:].tolist() == list(range(120, 180))


@pytest.mark.parametrize(("share", "found"), [(0.01, 0.99), (0.02, 0.95), (0.05, 0.3)])
def test_copies_with_some_words_exchanged_are_found_as_often_as_promised(share: float, found: float) -> None:
    originals = [words_of(count, count + n) for count in (60, 150, 400, 1000) for n in range(40)]
    copies = []
    for number, words in enumerate(originals):
        places = random.Random(number).sample(range(len(words)), max(1, round(share * len(words))))
        copies.append([f"new{n}" if n in set(places) else word for n, word in enumerate(words)])

    leader = clusters(signatures([" ".join(words) for words in [*originals, *copies]]), THRESHOLD)

    assert leader[:160].tolist() == list(range(160))
    assert (leader[160:] == np.arange(160)).mean() >= found


def test_case_punctuation_and_spaces_make_no_difference() -> None:
    said = "“Hello,” he said - twice… and went. "
    one, other = summaries([(said * 4).encode(), ("hello  he SAID\ntwice AND went; " * 4).encode()]).signature

    assert (one == other).all() and (one != 0xFF).any()


def test_texts_without_words_are_like_nothing() -> None:
    assert clusters(signatures(["?!", "...", "", "a"]), 0.8).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ภาษาไทย", 7),
        ("ພາສາລາວ", 7),
        ("မြန်မာ", 6),
        ("ភាសាខ្មែរ", 9),
        ("བོད་སྐད་ཡིག", 3),
        ("हिन्दी में लिखा", 3),
        ("क्‍ष नमस्ते", 2),
        ("ქართული ენა", 2),
        ("中文abc字。", 4),
        ("\uff21\uff22\uff0c\uff23\uff24", 2),
        ("don\u2019t — stop", 3),
    ],
)
def test_scripts_without_spaces_are_split_into_characters_and_marks_cut_no_word(text: str, words: int) -> None:
    assert word_hashes([text.encode()])[1].tolist() == [words]


@pytest.mark.parametrize("letters", [(0x0E01, 0x0E3A), (0x0E81, 0x0EAE), (0x1000, 0x1021), (0x1780, 0x17A3)])
def test_near_duplicates_are_found_in_scripts_without_spaces_and_distinct_texts_kept(letters: tuple[int, int]) -> None:
    drawn = random.Random(letters[0])
    texts = ["".join(chr(drawn.randrange(*letters)) for _ in range(400)) for _ in range(20)]
    near = [text[:200] + text[203:] for text in texts]

    found = clusters(signatures([*texts, *near]), THRESHOLD)

    assert found.tolist() == [*range(20), *range(20)]


def test_near_duplicates_are_found_by_tibetan_syllables() -> None:
    drawn = random.Random(3)
    texts = ["་".join(chr(0x0F40 + drawn.randrange(40)) * 2 for _ in range(200)) for _ in range(20)]

    found = clusters(signatures([*texts, *(text[:300] + text[303:] for text in texts)]), THRESHOLD)

    assert found.tolist() == [*range(20), *range(20)]


def test_distinct_texts_of_few_words_are_never_near_duplicates() -> None:
    texts = [" ".join(words_of(1 + seed % 19, seed)) for seed in range(1500)]
    bells = [f"How many bells ring at hour {n}? Exactly {n % 12} bells." for n in range(200)]

    found = clusters(signatures([*texts, *bells]), 0.5)

    assert found.tolist() == list(range(1700))


def test_template_that_differs_in_one_word_is_a_near_duplicate_only_if_it_is_long(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest]
) -> None:
    short = "please tell me which of the following {} is said to live in the sea and not on land or not"
    long = short + " and why it is so, in words that a child of ten years would read without any help"
    names = ["whale", "otter", "heron"]

    manifest = prepared(lines_file(*({"text": t.format(name)} for t in (short, long) for name in names)), cleaning={})

    assert [entry["rejected"] for entry in manifest.documents.values()] == [{"near duplicate": 2}]


def test_languages_without_spaces_are_compared_by_their_signs() -> None:
    text = "".join(chr(0x4E00 + n * 37 % 5000) for n in range(300))

    one, near, far = signatures([text, text.replace(text[50], "x"), text[::-1]])

    assert 0.9 < (one == near).mean() < 1 and (one == far).mean() < 0.1


@given(st.lists(st.text(alphabet="ab \u00e9\u4e2d.", max_size=60), min_size=1, max_size=12), st.integers(0, 12))
def test_a_signature_does_not_depend_on_the_neighbours(texts: list[str], cut: int) -> None:
    assert np.array_equal(np.concatenate([signatures(texts[:cut]), signatures(texts[cut:])]), signatures(texts))


def test_a_long_text_between_others_has_the_signature_that_it_has_alone() -> None:
    texts = [" ".join(words_of(30, 2)), " ".join(words_of(60_000, 1)), " ".join(words_of(24, 3))]

    together = signatures(texts)

    assert np.array_equal(together, np.concatenate([signatures([text]) for text in texts]))
    assert together.shape == (3, BINS)


def test_whatever_is_dropped_is_itself_like_the_one_that_is_kept() -> None:
    chain = [words_of(1000, 7)]
    for step in range(12):
        chain.append(changed(chain[-1], 0.008, step))
    texts = [" ".join(words) for words in chain]
    assert similarity(texts[0], texts[-1]) < 0.8

    order = random.Random(1).sample(range(13), 13)
    signed = signatures(["something else entirely", *(texts[n] for n in order)])
    found = clusters(signed, 0.8)

    assert 2 < len(set(found.tolist())) < 8 and (found[found] == found).all()
    assert ((signed == signed[found]).mean(axis=1) >= 0.8).all()


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_miss_at_most_one_in_twenty_at_the_threshold(threshold: float) -> None:
    rows = band_rows(threshold)

    assert (1 - threshold**rows) ** (BINS // rows) <= 0.05
    assert rows == BINS or (1 - threshold ** (rows + 1)) ** (BINS // (rows + 1)) > 0.05
