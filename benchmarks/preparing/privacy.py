"""Private data: books have almost none, specifications an address every few kilobytes; the floor is a single regex."""

from __future__ import annotations

import re

from benchmarks.measuring import corpus_texts, measure, size_of
from data_prep.clean.privacy import KINDS, scrub

ATOM = rb"[A-Za-z0-9_+%-]"
EMAIL = re.compile(
    rb"(?<![A-Za-z0-9.@_+%-])" + ATOM + rb"{1,64}(?:\." + ATOM + rb"{1,64}){0,8}"
    rb"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_@]|-[A-Za-z0-9])"
)


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
