"""MinHash signatures, compared with datasketch and rensa where they are installed, on five-word shingles too."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.measuring import corpus_texts, measure, size_of
from data_prep.clean.near_duplicates import BINS, clusters, signatures
from data_prep.clean.shingles import SHINGLE_WORDS

WORD = re.compile(r"\w+")
PEER_CHARS = 800_000  # peers are an order slower; they get a part of the corpus


def shingles(text: str) -> list[str]:
    words = WORD.findall(text.lower())
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]


def with_datasketch(texts: list[str]) -> None:
    from datasketch import MinHash

    for text in texts:
        MinHash(num_perm=BINS).update_batch([shingle.encode() for shingle in shingles(text)])


def with_rensa(texts: list[str]) -> None:
    from rensa import RMinHash

    for text in texts:
        sketch = RMinHash(num_perm=BINS, seed=1)
        sketch.update(shingles(text))
        sketch.digest()


def main() -> None:
    for chars in (400, 2000, 14_000):
        texts = corpus_texts("books", chars)
        measure(f"minhash, books, {chars}", {"signatures": partial(signatures, texts)}, size_of(texts))
    part = corpus_texts("books", 2000)[: PEER_CHARS // 2000]
    variants: dict[str, Callable[[], object]] = {"signatures": lambda: signatures(part)}
    for name, run in (("datasketch", with_datasketch), ("rensa", with_rensa)):
        if importlib.util.find_spec(name):
            variants[name] = partial(run, part)
    measure("minhash, beside peers, 2000", variants, size_of(part))
    random = np.random.default_rng(0).integers(0, 256, (200_000, BINS), dtype=np.uint8)
    measure("minhash, bands of 200,000 documents", {"clusters": lambda: clusters(random, 0.8)}, random.nbytes)
