"""Rules that tell a page worth reading from a menu, a list of links or a broken page; made for English web text.

gopher       Rae et al. 2021, "Scaling language models: methods, analysis & insights from training Gopher", A1.1
repetition   the same place: how much of a page is repeated lines, paragraphs and runs of words
c4           Raffel et al. 2020, "Exploring the limits of transfer learning", 2.2: lines that are no sentences go, then
             pages of too few
fineweb      Penedo et al. 2024, "The FineWeb datasets", 3.6

The thresholds are the papers'; words are what stands between spaces. Left out is Gopher's upper limit of 100,000 words,
which is one for web pages: every longer novel would go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_prep.arrays import Integers, mix

QUALITY_VERSION = 2  # part of every slice's digest: raise it when a rule below changes

Rule = Literal["gopher", "repetition", "c4", "fineweb"]

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("*", "-", "\u2013", "\u2022", "\u2023", "\u2043", "\u25a0", "\u25aa", "\u25cf", "\u25e6")
LETTER = re.compile(r"[^\W\d_]")
SENTENCE_ENDS = (".", "!", "?", '"', "'", "\u201d", "\u2019", "\u3002", "\uff01", "\uff1f")
SENTENCE = re.compile("[.!?]+[\"')\u201d\u2019]*(?:\\s|$)|[\u3002\uff01\uff1f]")
POLICY = re.compile(r"terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")

TOP_GRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED_GRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def apply_rules(text: str, rules: Iterable[Rule]) -> tuple[str, str | None]:
    """Return a text as the rules leave it, and the first reason to reject it, or None."""
    for rule in rules:
        if rule == "c4":
            text = without_broken_lines(text)
        reason = REASONS[rule](text)
        if reason is not None:
            return text, f"quality: {rule}: {reason}"
    return text, None


def gopher_reason(text: str) -> str | None:
    """Return why a page fails the rules of Gopher, or None."""
    words = text.split()
    lines = text.splitlines()
    if len(words) < 50:
        return "fewer than 50 words"
    letters = sum(map(len, words))
    checks = {
        "mean word length": 3 * len(words) <= letters <= 10 * len(words),
        "symbols": text.count("#") + text.count("...") + text.count("…") <= 0.1 * len(words),
        "bullet points": sum(line.lstrip().startswith(BULLETS) for line in lines) <= 0.9 * len(lines),
        "ellipses": sum(line.rstrip().endswith(("...", "…")) for line in lines) <= 0.3 * len(lines),
        "words without letters": sum(map(has_letter, words)) >= 0.8 * len(words),
        "stop words": len(STOP_WORDS.intersection(map(str.lower, words))) >= 2,
    }
    return first_failed(checks)


def has_letter(word: str) -> bool:
    """Return whether a word has a letter of any script."""
    return word.isalpha() or LETTER.search(word) is not None


def first_failed(checks: dict[str, bool]) -> str | None:
    """Return the name of the first check that does not hold, or None."""
    return next((name for name, holds in checks.items() if not holds), None)


def repetition_reason(text: str) -> str | None:
    """Return why a page fails Gopher's rules of repetition, or None."""
    for name, pieces in (("lines", text.splitlines()), ("paragraphs", text.split("\n\n"))):
        pieces = [stripped for piece in pieces if (stripped := piece.strip())]
        pieces_share, chars_share = repeated_shares(pieces)
        if pieces_share > 0.3 or chars_share > 0.2:
            return f"repeated {name}"
    return repeated_runs(text.split())


def repeated_shares(pieces: Sequence[str]) -> tuple[float, float]:
    """Return which share of pieces repeat an earlier one, and the share of their characters."""
    seen = dict.fromkeys(pieces)
    chars = sum(map(len, pieces))
    if len(seen) == len(pieces):
        return 0.0, 0.0
    return 1 - len(seen) / len(pieces), 1 - sum(map(len, seen)) / chars


def repeated_runs(words: Sequence[str]) -> str | None:
    """Say if the most frequent run of 2 to 4 words, or all repeated runs of 5 to 10, are too much of a text."""
    number = {word: index for index, word in enumerate(dict.fromkeys(words))}
    grams = mix(np.fromiter(map(number.__getitem__, words), np.uint64, len(words)))
    singles = grams.copy()
    chars = np.fromiter(map(len, words), np.int64, len(words))
    total = int(chars.sum())
    for size in range(2, min(10, len(words)) + 1):
        grams = mix(grams[:-1]) + singles[size - 1 :]
        order = np.argsort(grams, kind="stable")
        repeats = grams[order][1:] == grams[order][:-1]
        if not repeats.any():
            return None  # then no longer run is repeated either
        if size in TOP_GRAMS:
            if top_gram_chars(order, repeats, chars, size) > TOP_GRAMS[size] * total:
                return f"the most frequent run of {size} words"
        elif covered_chars(order[1:][repeats], chars, size) > REPEATED_GRAMS[size] * total:
            return f"repeated runs of {size} words"
    return None


def top_gram_chars(order: Integers, repeats: npt.NDArray[np.bool_], chars: Integers, size: int) -> int:
    """Return the characters in all occurrences of the most frequent run; none if it occurs once."""
    starts = np.flatnonzero(np.concatenate([[True], ~repeats]))
    counts = np.diff(np.append(starts, len(order)))
    top = int(counts.argmax())
    begin = int(order[starts[top]])
    return int(counts[top] * chars[begin : begin + size].sum())


def covered_chars(begins: Integers, chars: Integers, size: int) -> int:
    """Return the characters in runs of `size` words from `begins`, each counted once."""
    steps = np.zeros(len(chars) + 1, np.int64)
    np.add.at(steps, begins, 1)
    np.add.at(steps, begins + size, -1)
    return int(chars[np.cumsum(steps)[:-1] > 0].sum())


def without_broken_lines(text: str) -> str:
    """Return a text without the lines that are no sentence of three words or more, or speak of cookies and scripts."""
    kept = [line for line in text.split("\n") if not line.strip() or is_sentence_line(line)]
    return "\n".join(kept).strip("\n")


def is_sentence_line(line: str) -> bool:
    """Return whether C4 keeps a line: a sentence of three words or more that is no notice of scripts or cookies."""
    end = line.rstrip()
    if not end.endswith(SENTENCE_ENDS) or end.endswith("...") or len(end.split(maxsplit=3)) < 3:
        return False
    lower = end.lower()
    return "javascript" not in lower and POLICY.search(lower) is None


def c4_reason(text: str) -> str | None:
    """Return why a page fails the rules of C4 for pages, or None; its lines are cleaned already."""
    checks = {
        "lorem ipsum": "lorem ipsum" not in text.lower(),
        "curly bracket": "{" not in text,
        "fewer than 5 sentences": len(SENTENCE.findall(text)) >= 5,
    }
    return first_failed(checks)


def fineweb_reason(text: str) -> str | None:
    """Return why a page fails the rules of FineWeb, or None."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return "no lines"
    checks = {
        "lines without punctuation": sum(line.rstrip().endswith(SENTENCE_ENDS) for line in lines) > 0.12 * len(lines),
        "short lines": sum(len(line) <= 30 for line in lines) < 0.67 * len(lines),
        "repeated lines": repeated_shares(lines)[1] < 0.1,
    }
    return first_failed(checks)


REASONS: dict[Rule, Callable[[str], str | None]] = {
    "gopher": gopher_reason,
    "repetition": repetition_reason,
    "c4": c4_reason,
    "fineweb": fineweb_reason,
}
