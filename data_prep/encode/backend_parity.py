"""The parity check: an engine must give the ids that `tokenizers` gives, before it is used and again in every slice.

A fixed set of hard texts decides whether it is used at all. Then the tokens of every text must spell it: each must be
as long as the bytes up to the next token, and begin and end with the same bytes. In each slice the two engines are also
compared wherever two kinds of characters meet for the first time, so that a kind of text found in one document of ten
thousand is compared too, and at places that grow sparser as the slice grows longer, so that the cost is bounded however
large a slice is.
"""

from __future__ import annotations

import itertools
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import ConfigError, DataError
from data_prep.encode.backends import (
    FAST,
    REFERENCE,
    Ids,
    Offsets,
    Ragged,
    TokenizerBackend,
    UnsupportedRulesError,
    engine_version,
    open_backend,
)
from data_prep.encode.parity_sample import ParitySample, excerpts_at

log = logging.getLogger(__name__)

PROOF_VERSION = 3  # part of the manifest: raise it when the hard set or the sampling changes
FAST_FROM_BYTES = 4 * 2**20  # of the corpus; below it the check takes longer than the encoding
WHOLE = 1024  # bytes up to which a text is compared whole

SENTENCES = (
    "I'll say it's SHE'S we've they'd you're I'm don't 'tis 'S 'Re don\u2019t",
    "  two  spaces   three\t\ttabs \t mixed\n\n\nlines \n and \r\n ends   ",
    "1 12 123 1234 12345 3.14 1,000,000 0x1F 1e-9 2026-01-31 ½ ² ٣٤ 一二三",
    "def f(x): return {\"a\": [1, 2.5], 'b': x**2 != 3} # ok\n\n    if x:\n\t\tpass",
    "https://example.org/a?b=c&d=%20#e someone@example.org <p class='x'>&nbsp;</p>",
    "ﬁ ﬀ Ǆ ß ẞ İ \u0131 \u017f K Å é e\u0301 ą\u0323\u0301 한 하\u11ab ไทย हिन्दी العربية עִבְרִית",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇵🇱 👍🏽 \u200b\u200d\u00ad\u2060\u180e\u202e\u00a0\u3000\u2028\u2029\u0085",
    "camelCase SCREAMING_CASE kebab-case snake_case ALLCAPSthenlower lowerTHENCAPS 4you b4",
    "a" * 300,
    " " * 300 + "x",
    "\n" * 64 + "y" + "\n \n" * 32,
    "ab" * 200 + "-=" * 100 + "...!?!?" * 20 + "0" * 130,
    "",
)


class BackendMismatchError(DataError):
    """An engine gave other ids than `tokenizers`; the text says for what."""


def hard_set(controls: Sequence[str]) -> Iterator[str]:
    """Yield the fixed texts: what pre-tokenizers do differently, control tokens as text, all scripts.

    Of the ideographs and syllables, which come in their tens of thousands, every 64th.
    """
    every = (chr(code) for code in range(9, 0x20000) if not 0x3400 <= code < 0xE000 or code % 64 == 0)
    characters = (c for c in every if unicodedata.category(c) not in ("Cn", "Co", "Cs"))
    yield from SENTENCES
    for control in controls:
        yield from (control, f"a{control}b", f" {control} \n{control[:-1]} {control[1:]} {control.upper()}")
    while chunk := list(itertools.islice(characters, 64)):
        yield "".join(f"x{c} {c}1" for c in chunk)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The engine to encode with, named with its version; what it was compared on, and why a faster one is not used."""

    engine: str
    texts: int = 0
    refused: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what the manifest says of the engine."""
        compared = {"version": PROOF_VERSION, "texts": self.texts, "with": engine_version(REFERENCE)}
        return {"name": self.engine, "proof": compared if self.texts else None, "refused": self.refused}


def choose_backend(
    wanted: str, rules: str, controls: Sequence[str], corpus_bytes: int, *, is_text: bool = False
) -> Choice:
    """Return the engine for a corpus: the fast one if it is here, worth its proof, and proves itself.

    `wanted` is a name, or 'auto'; in running text there are no control tokens to prove.
    Raises ConfigError if an engine that was named is not installed.
    """
    fast, reference = engine_version(FAST), str(engine_version(REFERENCE))
    if wanted == FAST and fast is None:
        raise ConfigError(f"data.engine: {FAST} is not installed here; `pip install {FAST}`, or write `engine: auto`")
    if wanted == REFERENCE or fast is None or (wanted == "auto" and corpus_bytes < FAST_FROM_BYTES):
        return Choice(engine=reference)
    try:
        engines = open_backend(fast, rules), open_backend(REFERENCE, rules)
        texts = prove_plain(*engines, controls) + (0 if is_text else prove_marked(*engines, controls))
    except (UnsupportedRulesError, BackendMismatchError) as problem:
        return refused(fast, problem)
    return Choice(engine=fast, texts=texts)


def refused(engine: str, problem: Exception) -> Choice:
    """Return the reference, and say why the engine is not used."""
    reference = str(engine_version(REFERENCE))
    log.warning("%s is not used with this tokenizer: %s; encoding with %s", engine, problem, reference)
    return Choice(engine=reference, refused=f"{engine}: {problem}")


def prove_plain(engine: TokenizerBackend, reference: TokenizerBackend, controls: Sequence[str]) -> int:
    """Compare an engine with the reference on the hard set; return its size. Raises BackendMismatchError."""
    texts = list(hard_set(controls))
    compare(engine, reference, texts)
    return len(texts)


def prove_marked(engine: TokenizerBackend, reference: TokenizerBackend, controls: Sequence[str]) -> int:
    """Compare an engine with the reference on turns between control tokens; return how many.

    Raises BackendMismatchError.
    """
    turns = [f"{control}user\n {text}{control} {text}" for control in controls for text in SENTENCES]
    compare_marked(engine.encode_marked(turns), reference.encode_marked(turns), turns)
    return len(turns)


class CheckedBackend:
    """An engine that is compared with the reference on a sample of what it encodes.

    `begin` starts a slice: what was compared before it does not count. Raises BackendMismatchError.
    """

    def __init__(self, engine: TokenizerBackend, reference: TokenizerBackend) -> None:
        self.engine, self.reference = engine, reference
        sentences = encoded_texts(SENTENCES)
        self.keeps_bytes = all(
            engine.spells(ids, text) for text, ids in zip(sentences, engine.encode_plain(sentences), strict=True)
        )
        self.begin()

    def begin(self) -> None:
        """Begin a slice: what was compared before does not count for it."""
        self.sample = ParitySample()

    def encode_plain(self, texts: Sequence[bytes]) -> Ragged:
        encoded = self.engine.encode_plain(texts)
        self.prove(texts, encoded)
        return encoded

    def encode_cut(self, texts: Sequence[bytes], cuts: Sequence[int]) -> tuple[Ragged, Offsets, Offsets]:
        encoded, *counts = self.engine.encode_cut(texts, cuts)
        whole = self.prove(texts, encoded, is_cut=True)
        compared = [texts[index] for index in whole]
        theirs, *expected = self.reference.encode_cut(compared, [cuts[index] for index in whole])
        for text, index, ids in zip(compared, whole, theirs, strict=True):
            check_same(text, encoded[index], ids)
        for mine, other in zip(counts, expected, strict=True):
            for index in np.flatnonzero(mine[whole] != other).tolist():
                raise BackendMismatchError(f"it gave other places of tokens for {excerpt_of(compared[index])}")
        return encoded, counts[0], counts[1]

    def prove(self, texts: Sequence[bytes], encoded: Ragged, *, is_cut: bool = False) -> list[int]:
        """Compare what was encoded at the places of the sample; return the texts that are to be compared whole.

        Those are compared here too, unless `is_cut`: then the engine has seen that its ids spell the texts, and what
        calls this compares the places too. Raises BackendMismatchError.
        """
        joined = b"".join(texts)
        if not is_cut:
            self.check_spelling(encoded, texts, joined)
        excerpts: list[bytes] = []
        whole: list[int] = []
        for index, places in self.sample.places(texts, joined):
            if len(texts[index]) <= WHOLE:
                whole.append(index)
            else:
                excerpts += excerpts_at(texts[index], places)
        here = [] if is_cut else whole
        chosen = [*(texts[index] for index in here), *excerpts]
        ours = [*(encoded[index] for index in here), *self.engine.encode_plain(excerpts)]
        for text, mine, theirs in zip(chosen, ours, self.reference.encode_plain(chosen), strict=True):
            check_same(text, mine, theirs)
        return whole

    def encode_marked(self, texts: Sequence[str]) -> list[tuple[Ids, Offsets]]:
        encoded = self.engine.encode_marked(texts)
        raw = encoded_texts(texts)
        chosen = [index for index, _ in self.sample.places(raw, b"".join(raw))]
        sample = [texts[index] for index in chosen]
        compare_marked([encoded[index] for index in chosen], self.reference.encode_marked(sample), sample)
        return encoded

    def spells(self, ids: Ids, text: bytes) -> bool:
        return self.engine.spells(ids, text)

    def check_spelling(self, encoded: Ragged, texts: Sequence[bytes], joined: bytes) -> None:
        """Raise BackendMismatchError unless the ids spell the texts, where the tokenizer keeps every byte."""
        if len(encoded) != len(texts):
            raise BackendMismatchError(f"it gave the ids of {len(encoded)} texts for {len(texts)}")
        if not self.keeps_bytes or self.engine.spells(encoded.ids, joined):
            return
        for index, text in enumerate(texts):
            if not self.engine.spells(encoded[index], text):
                raise BackendMismatchError(f"its ids do not spell {excerpt_of(text)}")
        raise BackendMismatchError("its ids end texts elsewhere than the texts end")


def encoded_texts(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def compare(engine: TokenizerBackend, reference: TokenizerBackend, texts: Sequence[str]) -> None:
    """Raise BackendMismatchError unless both engines give the same ids of all texts."""
    raw = encoded_texts(texts)
    for text, ours, theirs in zip(raw, engine.encode_plain(raw), reference.encode_plain(raw), strict=True):
        check_same(text, ours, theirs)


def compare_marked(
    ours: Sequence[tuple[Ids, Offsets]], theirs: Sequence[tuple[Ids, Offsets]], texts: Sequence[str]
) -> None:
    """Raise BackendMismatchError unless ids and spans are the same."""
    for text, (ids, spans), (their_ids, their_spans) in zip(texts, ours, theirs, strict=True):
        check_same(text.encode(), ids, their_ids)
        if not np.array_equal(spans, their_spans):
            raise BackendMismatchError(f"it gave other spans of tokens for {excerpt_of(text.encode())}")


def check_same(text: bytes, ours: Ids, theirs: Ids) -> None:
    """Raise BackendMismatchError unless ids are equal; it says where they differ first."""
    if not np.array_equal(ours, theirs):
        length = min(len(ours), len(theirs))
        at = int(np.flatnonzero(np.append(ours[:length] != theirs[:length], True))[0])
        raise BackendMismatchError(
            f"it gave the ids ...{ours[at : at + 4].tolist()} where `tokenizers` gives "
            f"...{theirs[at : at + 4].tolist()}, at token {at} of {excerpt_of(text)}"
        )


def excerpt_of(raw: bytes) -> str:
    """Return a text as a message shows it: quoted, a long one without its middle."""
    text = raw.decode()
    return repr(text if len(text) <= 80 else f"{text[:60]}[...]{text[-15:]}")
