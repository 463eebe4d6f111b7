"""Near duplicates on real text: planted copies found, leaks between splits, and documents that are excluded rightly."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.measuring import corpus_texts
from data_prep.clean.document_marks import Marked, distinct, do_cross
from data_prep.clean.near_duplicates import clusters, summaries
from data_prep.config import CleaningConfig

WORD = re.compile(r"[^\W_]+")
TEXTS = 300
LENGTHS = (60, 120, 250, 500, 1000, 2000)
SHORT_LENGTHS = (10, 15, 20, 40, 60, 120, 300, 1000)
SHARES = (0.01, 0.02, 0.05)
BANDS = {"datatrove": (14, 8), "NeMo Curator": (20, 13)}
Words = list[str]


def main() -> None:
    documents = [WORD.findall(text.lower()) for name in ("books", "peps") for text in corpus_texts(name)]
    drawn = random.Random(3)
    print(json.dumps({"case": "near, found by arithmetic", "by Jaccard": dict(probabilities())}))
    for share in SHARES:
        for length in LENGTHS:
            print(json.dumps(planted_copies(documents, length, share, drawn)), flush=True)
    for kind in ("words exchanged", "beginning", "contained"):
        for length in SHORT_LENGTHS:
            print(json.dumps(leaks(documents, length, kind, drawn)), flush=True)


def probabilities() -> Iterator[tuple[str, dict[str, float]]]:
    """Yield by similarity how often each setting of bands finds a pair of long documents."""
    for similarity in (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
        found = {name: 1 - (1 - similarity**rows) ** bands for name, (bands, rows) in BANDS.items()}
        yield str(similarity), {name: round(share, 3) for name, share in found.items()}


def pieces(documents: Sequence[Words], length: int, drawn: random.Random) -> list[Words]:
    every = [d[begin : begin + length] for d in documents for begin in range(0, len(d) - length, length)]
    return drawn.sample(every, min(TEXTS, len(every)))


def shingles(words: Words) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def jaccard(one: Words, other: Words) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def containment(one: Words, other: Words) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / min(len(a), len(b))


def joined(texts: Sequence[Words]) -> list[bytes]:
    return [" ".join(words).encode() for words in texts]


def planted_copies(documents: Sequence[Words], length: int, share: float, drawn: random.Random) -> dict[str, object]:
    """Return how many copies with a share of their words exchanged are found, beside what others' bands find."""
    texts = pieces(documents, length, drawn)
    copies = []
    for words in texts:
        copy = list(words)
        for place in drawn.sample(range(length), max(1, round(share * length))):
            copy[place] = drawn.choice(drawn.choice(documents))
        copies.append(copy)
    leader = clusters(summaries(joined([*texts, *copies])).signature, CleaningConfig().near_threshold)
    similar = np.array([jaccard(*pair) for pair in zip(texts, copies, strict=True)])
    removed = np.flatnonzero(leader != np.arange(len(leader)))
    every = [*texts, *copies]
    exact = np.array([jaccard(every[n], every[leader[n]]) for n in removed.tolist()])
    return {
        "case": "near, planted copies",
        "words": length,
        "exchanged": share,
        "jaccard": round(float(similar.mean()), 3),
        "found": round(float((leader[len(texts) :] == np.arange(len(texts))).mean()), 3),
        **{name: round(float((1 - (1 - similar**rows) ** bands).mean()), 3) for name, (bands, rows) in BANDS.items()},
        "removed of at least 0.55": round(float((exact >= 0.55).mean()), 3) if len(exact) else None,
    }


def leaks(documents: Sequence[Words], length: int, kind: str, drawn: random.Random) -> dict[str, object]:
    """Return how many pairs just at the bounds of what may not cross are missed."""
    pairs = [at_the_bound(words, documents, kind, drawn) for words in pieces(documents, length, drawn)]
    sides = [marked(joined(side)) for side in zip(*pairs, strict=True)]
    number = np.arange(len(pairs))
    missed = ~do_cross(sides[0], number, sides[1], number)
    return {"case": "near, leaks", "words": length, "kind": kind, "pairs": len(pairs), "missed": int(missed.sum())}


def marked(texts: Sequence[bytes]) -> Marked:
    everything = np.ones(len(texts), np.bool_)
    summed = summaries(texts)
    hashes, counts = summed.sketches.hashes(everything)
    return distinct(hashes, counts, np.arange(len(texts)), np.zeros(len(texts), np.int8), summed.signature)


def at_the_bound(words: Words, documents: Sequence[Words], kind: str, drawn: random.Random) -> tuple[Words, Words]:
    """Return a text and one whose similarity with it, or containment, is just not below the bound."""
    if kind == "beginning":
        count = len(words)
        while count > 10 and jaccard(words, words[: count - 1]) >= 0.7:
            count -= 1
        return words, words[:count]
    measure, bound = (jaccard, 0.7) if kind == "words exchanged" else (containment, 0.9)
    best, copy = words, list(words)
    for place in drawn.sample(range(len(words)), len(words)):
        copy[place] = drawn.choice(drawn.choice(documents))
        if measure(words, copy) < bound:
            break
        best = list(copy)
    if kind == "words exchanged":
        return words, best
    around = [drawn.choice(drawn.choice(documents)) for _ in range(4 * len(words))]
    return words, [*around[: len(words)], *best, *around[len(words) :]]
