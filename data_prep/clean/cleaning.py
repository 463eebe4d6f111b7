"""Clean a document before it is hashed and encoded: repair it, then check it against the rules."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from cluster.errors import ConfigError
from data_prep.clean.front_matter import without_front_matter
from data_prep.clean.language import LANGUAGE_VERSION, NO_LANGUAGE, find_language, known_languages, prose_of
from data_prep.clean.privacy import KINDS, PRIVACY_VERSION, scrub
from data_prep.clean.quality import QUALITY_VERSION, apply_rules
from data_prep.config import CleaningConfig
from data_prep.read.parts import Document, Rejected, Turn
from data_prep.shards.text_form import with_line_feeds, with_windows_characters

CLEANING_VERSION = (5, PRIVACY_VERSION, QUALITY_VERSION, LANGUAGE_VERSION)  # part of every slice's digest

UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")

# A lead byte of UTF-8 and a byte that follows it, each read as a character of Latin-1 or Windows-1252
FOLLOWING = (
    "[\x80-\xbf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201e\u2020-\u2022"
    "\u2026\u2030\u2039\u203a\u20ac\u2122]"
)
MOJIBAKE = re.compile("[\xc2-\xf4]" + FOLLOWING)
EXCERPT_CHARS = 500
C4_COUNTS = ("quality c4: documents", "quality c4: lines", "quality c4: characters")


class Cleaner:
    """Repairs documents and rejects some, as the configuration says; `check_languages` has accepted its languages.

    `changed` counts what was changed in the kept documents: occurrences of each kind of private data, lines and
    characters that quality rules removed, and documents for everything else.
    """

    def __init__(self, config: CleaningConfig) -> None:
        self.config = config
        self.changed: Counter[str] = Counter()
        self.pending: Counter[str] = Counter()  # of the current document, which may still be rejected
        private = config.private.model_dump()
        self.private = [kind for kind in KINDS if private[kind] != "keep"]
        self.dropped = [kind for kind in KINDS if private[kind] == "drop"]

    def cleaned(self, document: Document) -> Document | Rejected:
        """Return a document repaired, or why it is rejected and how it begins."""
        is_running = document.shape == "text"
        turns = tuple(turn.map_texts(lambda text: self.repaired(text, is_running)) for turn in document.turns)
        return self.checked(document, turns)

    def without_front_matter(self, document: Document) -> Document:
        """Return the text of a Markdown file without its front matter; it is counted when the document is cleaned."""
        text = document.turns[0].text
        left = without_front_matter(text) if self.config.front_matter else text
        if len(left) == len(text):
            return document
        self.pending["front matter removed"] = 1
        return replace(document, turns=(Turn("text", left),))

    def without_spaces(self, document: Document) -> Document | Rejected:
        """Do what `cleaned` does for a running text in which only spaces at the ends of lines are to be removed."""
        text = document.turns[0].text
        text = without_trailing_spaces(text) if self.config.whitespace else text
        return self.checked(document, (Turn("text", text),))

    def checked(self, document: Document, turns: tuple[Turn, ...]) -> Document | Rejected:
        """Return a document with its repaired turns and without its private data, or why it is rejected."""
        reason = self.reason_to_reject(document.shape, turns)
        if reason is None and document.shape == "text" and self.config.quality:
            turns, reason = self.without_poor_lines(turns[0].text)
        if self.private:
            turns, private_reason = self.scrubbed(turns)
            reason = reason or private_reason
        if reason is None and self.pending:
            self.changed.update(self.pending)
        self.pending.clear()
        if reason is not None:
            return Rejected(document.record, reason, excerpt(turns))
        return replace(document, turns=turns)

    def without_poor_lines(self, text: str) -> tuple[tuple[Turn, ...], str | None]:
        """Return a running text as the quality rules leave it, and why it is rejected, or None."""
        left, reason = apply_rules(text, self.config.quality)
        if len(left) < len(text):
            removed = (1, text.count("\n") - left.count("\n"), len(text) - len(left))
            self.pending.update(dict(zip(C4_COUNTS, removed, strict=True)))
        return (Turn("text", left),), reason

    def repaired(self, text: str, is_running: bool) -> str:
        """Return a text repaired and in its normal form; trailing spaces stay in prompts: they may be meant."""
        if self.config.repair and not text.isascii():
            text = self.decoded_well(text)
        if self.config.control_characters and UNWANTED.search(text):
            text = UNWANTED.sub("", with_line_feeds(text))
        if self.config.unicode != "off" and not text.isascii():
            text = unicodedata.normalize("NFC" if self.config.unicode == "nfc" else "NFKC", text)
        if self.config.whitespace and is_running:
            text = without_trailing_spaces(text)
        return text

    def turn_text(self, text: str) -> str:
        """Return a text as it is in the turns of documents, and count nothing."""
        text = scrub(self.repaired(text, is_running=False), self.private)[0]
        self.pending.clear()
        return text

    def decoded_well(self, text: str) -> str:
        """Return a text without mojibake and with the characters of Windows-1252 that were read as controls."""
        result = with_windows_characters(without_mojibake(text))
        if result != text:
            self.pending["repaired"] = 1
        return result

    def reason_to_reject(self, shape: str, turns: Sequence[Turn]) -> str | None:
        """Return why turns are rejected whatever their quality, or None."""
        trained = turns[-1:] if shape == "pair" else turns
        if not any(turn.said().strip() for turn in trained):
            return "empty"
        size = sum(len(turn.said()) for turn in turns)
        if size < self.config.min_chars:
            return f"shorter than {self.config.min_chars} characters"
        if self.config.max_chars is not None and size > self.config.max_chars:
            return f"longer than {self.config.max_chars} characters"
        return self.language_reason(turns) if self.config.languages else None

    def language_reason(self, turns: Sequence[Turn]) -> str | None:
        """Return which other language turns are in, or None: by all that they say, without code and tool calls."""
        prose = prose_of("\n".join(said for turn in turns for said in (turn.text, reasoning_of(turn)) if said))
        language, probability = find_language(prose) if prose else (NO_LANGUAGE, 1.0)
        if probability < self.config.language_probability:
            return "language: uncertain"
        if language == NO_LANGUAGE:
            self.pending["language not judged"] = 1
            return None
        return None if language in self.config.languages else f"language: {language}"

    def scrubbed(self, turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], str | None]:
        """Return turns without their private data, and why they are rejected, or None."""
        counts: Counter[str] = Counter()

        def scrubbed(text: str) -> str:
            text, found = scrub(text, self.private)
            counts.update(found)
            return text

        result = tuple(turn.map_texts(scrubbed) for turn in turns)
        dropped = next((kind for kind in self.dropped if counts[kind]), None)
        if counts:
            self.pending.update(counts)
            self.pending["documents with private data"] = 1
        return result, None if dropped is None else f"private data: {dropped}"

    def without_private(self, rejected: Rejected) -> Rejected:
        """Return a record that could not be read with its excerpt scrubbed, since samples of it are kept."""
        return replace(rejected, excerpt=scrub(rejected.excerpt, self.private)[0]) if self.private else rejected


def reasoning_of(turn: Turn) -> str:
    """Return the reasoning of an answer as a text; nothing if it has none."""
    return str(turn.more.get("reasoning_content") or "")


def without_mojibake(text: str) -> str:
    """Return a text without mojibake; ftfy, which is slow, sees only the lines that may hold some."""
    if MOJIBAKE.search(text) is None:
        return text
    return "\n".join(repaired_line(line) if MOJIBAKE.search(line) else line for line in text.split("\n"))


def repaired_line(line: str) -> str:
    """Return a line with its mojibake undone, as ftfy does."""
    from ftfy import fix_encoding  # takes 0.1 s to import, and most corpora never need it

    return fix_encoding(line)


def without_trailing_spaces(text: str) -> str:
    """Return a text without spaces at the ends of its lines and empty lines at its end."""
    return "\n".join(map(str.rstrip, text.split("\n"))).rstrip("\n")


def excerpt(turns: Sequence[Turn]) -> str:
    """Return how a document begins, for people."""
    said = (turn.text if turn.role == "text" else f"{turn.role}: {turn.said()}" for turn in turns)
    return "\n".join(said)[:EXCERPT_CHARS]


def check_languages(codes: Sequence[str]) -> None:
    """Raise ConfigError if one of the codes is of no language that can be detected."""
    unknown = [code for code in codes if code not in known_languages()]
    if unknown:
        raise ConfigError(
            f"data.cleaning.languages: {', '.join(unknown)}: not among the languages that can be detected: "
            f"{', '.join(sorted(known_languages()))}"
        )
