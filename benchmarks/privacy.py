"""Private data: books have next to none, specifications an address every few kilobytes; the floor is one regex."""

from __future__ import annotations

import re

from benchmarks.measuring import corpus_texts, measure, size_of
from data_prep.privacy import EMAIL, KINDS, scrub


def scrub_all(texts: list[str]) -> None:
    for text in texts:
        scrub(text, KINDS)


def one_regex(texts: list[str], pattern: re.Pattern[bytes]) -> None:
    for text in texts:
        pattern.sub(b"[EMAIL]", text.encode())


def main() -> None:
    for name, chars in (("books", None), ("books", 2000), ("peps", None)):
        texts = corpus_texts(name, chars)
        variants = {
            "all kinds": lambda texts=texts: scrub_all(texts),
            "e-mail regex alone": lambda texts=texts: one_regex(texts, EMAIL),
        }
        measure(f"privacy, {name}, {chars or 'whole'}", variants, size_of(texts))
