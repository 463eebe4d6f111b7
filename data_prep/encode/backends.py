"""What turns text into ids, behind one interface: gigatoken where it is installed, else `tokenizers`."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]
MANY, LONG = 1024, 1024  # texts, and bytes of each: from here gigatoken's batches are worth importing awkward, 0.25 s
CHUNK = 2**15  # ids looked at together: what is looked up stays in the cache
FAST, REFERENCE = "gigatoken", "tokenizers"


@dataclass(frozen=True, slots=True)
class Ragged:
    """The ids of several texts, one after the other; text i's are ids[first[i]:first[i + 1]]."""

    ids: Ids
    first: Offsets

    def __getitem__(self, index: int) -> Ids:
        return self.ids[self.first[index] : self.first[index + 1]]

    def __len__(self) -> int:
        return len(self.first) - 1

    def __iter__(self) -> Iterator[Ids]:
        return (self[index] for index in range(len(self)))


class TokenizerBackend(Protocol):
    """What turns text into ids. Every engine must give the ids that `tokenizers` gives."""

    def encode_plain(self, texts: Sequence[bytes]) -> Ragged:
        """Return the ids of texts in UTF-8 in which nothing is a control token, whatever it looks like."""

    def encode_cut(self, texts: Sequence[bytes], cuts: Sequence[int]) -> tuple[Ragged, Offsets, Offsets]:
        """Return what `encode_plain` does, and how many tokens of each text end, and begin, before its byte cuts[i].

        They differ by one where a token lies across the cut, which is where a character begins. An engine that counts
        them by the tokens' bytes has seen that these spell the texts.
        """

    def encode_marked(self, texts: Sequence[str]) -> list[tuple[Ids, Offsets]]:
        """Return the ids of texts with control tokens in them, and each token's span: [tokens, 2] characters."""

    def spells(self, ids: Ids, text: bytes) -> bool:
        """Return whether ids spell the bytes of a text, as far as the engine can check quickly."""


@dataclass(frozen=True, slots=True)
class Outlines:
    """Of each id's bytes: how many they are, the first and the last as one number."""

    size: Offsets
    edges: npt.NDArray[np.uint16]


class UnsupportedRulesError(Exception):
    """Rules that an engine cannot follow; the text says why."""


def engine_version(name: str) -> str | None:
    """Return an engine's name and version as the manifest spells them, None if it is not installed."""
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=2)
def parsed_rules(rules: str) -> Tokenizer:
    """Return the tokenizer of some rules, the same object each time: parsing a large vocabulary takes 0.5 s."""
    return Tokenizer.from_str(rules)


class HuggingFaceBackend:
    """The `tokenizers` library: the reference for every other."""

    def __init__(self, rules: str) -> None:
        self.rules = rules

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the rules; a copy of its own if the rules cut or pad texts."""
        found = parsed_rules(self.rules)
        if found.truncation is None and found.padding is None:
            return found
        return Tokenizer.from_str(json.dumps(bare_rules(self.rules)))

    @contextmanager
    def bare(self, *, plain: bool) -> Iterator[Tokenizer]:
        """Give the tokenizer without what trims spaces from spans; `plain`: in which no token is a control token.

        Others may hold the same object: it is theirs again afterwards.
        """
        tokenizer = self.tokenizer
        processor = tokenizer.post_processor
        tokenizer.post_processor, tokenizer.encode_special_tokens = None, plain
        try:
            yield tokenizer
        finally:
            tokenizer.post_processor, tokenizer.encode_special_tokens = processor, False

    def encode_plain(self, texts: Sequence[bytes]) -> Ragged:
        with self.bare(plain=True) as tokenizer:
            encodings = tokenizer.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        return ragged([np.array(encoding.ids, dtype=np.uint32) for encoding in encodings])

    def encode_cut(self, texts: Sequence[bytes], cuts: Sequence[int]) -> tuple[Ragged, Offsets, Offsets]:
        with self.bare(plain=True) as tokenizer:
            encodings = tokenizer.encode_batch([text.decode() for text in texts], add_special_tokens=False)
        counts = np.zeros((2, len(texts)), dtype=np.int64)
        for number, (encoding, text, cut) in enumerate(zip(encodings, texts, cuts, strict=True)):
            at = len(text[:cut].decode())
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            counts[:, number] = np.count_nonzero(offsets[:, 1] <= at), np.count_nonzero(offsets[:, 0] < at)
        return ragged([np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]), counts[0], counts[1]

    def encode_marked(self, texts: Sequence[str]) -> list[tuple[Ids, Offsets]]:
        with self.bare(plain=False) as tokenizer:
            encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(encoding.ids, dtype=np.uint32), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))
            for encoding in encodings
        ]

    def spells(self, ids: Ids, text: bytes) -> bool:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=False)).encode() == text


class GigatokenBackend:
    """The `gigatoken` library. It gives no spans: they are counted from the bytes that each token stands for.

    Where a text is not the bytes of its tokens one after the other (a normalizer, a marked space), `tokenizers` gives
    the ids and the spans of that text. Its methods raise UnsupportedRulesError.
    """

    def __init__(self, rules: str) -> None:
        self.rules = bare_rules(rules)
        self.reference = HuggingFaceBackend(rules)

    @cached_property
    def marked(self) -> Any:
        """The tokenizer to which control tokens in a text are such."""
        return open_gigatoken(self.rules)

    @cached_property
    def plain(self) -> Any:
        """The tokenizer to which control tokens in a text are ordinary text."""
        ordinary = [token for token in self.rules["added_tokens"] if not token["special"]]
        return open_gigatoken({**self.rules, "added_tokens": ordinary})

    @cached_property
    def outlines(self) -> Outlines:
        """The outlines of the ids of `plain`."""
        return outlines_of(spellings(self.plain))

    @cached_property
    def token_bytes(self) -> Offsets:
        """How many bytes each id of `marked` stands for."""
        return np.array([len(token) for token in spellings(self.marked)], dtype=np.int64)

    def encode_plain(self, texts: Sequence[bytes]) -> Ragged:
        return encode_all(self.plain, list(texts))

    def encode_cut(self, texts: Sequence[bytes], cuts: Sequence[int]) -> tuple[Ragged, Offsets, Offsets]:
        # The texts lie one after the other, as do the bytes of their tokens: where each token ends follows from how
        # many bytes the tokens before it have, and a search finds how many of them come before a cut. Where the bytes
        # of the tokens are not those of the texts (a normalizer, a marked space), `tokenizers` tells the places.
        encoded = self.encode_plain(texts)
        ends = np.cumsum(self.outlines.size.take(encoded.ids.astype(np.intp)))
        begins = np.concatenate([[0], ends])
        text_ends = np.cumsum([len(text) for text in texts])
        if not (np.array_equal(begins[encoded.first[1:]], text_ends) and self.spells(encoded.ids, b"".join(texts))):
            return self.reference.encode_cut(texts, cuts)
        places = text_ends - [len(text) for text in texts] + np.array(cuts, dtype=np.int64)
        ended = np.searchsorted(ends, places, side="right") - encoded.first[:-1]
        return encoded, ended, np.searchsorted(begins[:-1], places, side="left") - encoded.first[:-1]

    def encode_marked(self, texts: Sequence[str]) -> list[tuple[Ids, Offsets]]:
        raw = [text.encode() for text in texts]
        encoded = encode_all(self.marked, raw)
        return [self.with_spans(*item, encoded[index]) for index, item in enumerate(zip(texts, raw, strict=True))]

    def spells(self, ids: Ids, text: bytes) -> bool:
        """Return whether each id is as long as the bytes up to the next one, with the same first and last byte."""
        raw = np.frombuffer(text, np.uint8)
        begin = 0
        for at in range(0, len(ids), CHUNK):
            numbers = ids[at : at + CHUNK].astype(np.intp)
            if int(numbers.max()) >= len(self.outlines.size):
                return False
            sizes = self.outlines.size.take(numbers)
            ends = np.cumsum(sizes) + begin
            if ends[-1] > len(text) or not sizes.all():
                return False
            edges = raw.take(ends - sizes).astype(np.uint16) << 8 | raw.take(ends - 1)
            if not np.array_equal(edges, self.outlines.edges.take(numbers)):
                return False
            begin = int(ends[-1])
        return begin == len(text)

    def with_spans(self, text: str, raw: bytes, ids: Ids) -> tuple[Ids, Offsets]:
        """Return ids and the characters that each is of; the reference gives both where tokens do not spell a text."""
        ends = np.cumsum(self.token_bytes[ids])
        if len(raw) != (int(ends[-1]) if len(ends) else 0) or self.marked.decode(ids) != raw:
            return self.reference.encode_marked([text])[0]
        begins = ends - self.token_bytes[ids]
        if text.isascii():
            return ids, np.stack([begins, ends], axis=1)
        characters = np.cumsum((np.frombuffer(raw, dtype=np.uint8) & 0xC0) != 0x80) - 1  # of each byte
        return ids, np.stack([characters[begins], characters[ends - 1] + 1], axis=1)


ENGINES: dict[str, Callable[[str], TokenizerBackend]] = {FAST: GigatokenBackend, REFERENCE: HuggingFaceBackend}


@lru_cache(maxsize=2)  # the engine that passed the parity check also encodes, if that is the same process
def open_backend(name: str, rules: str) -> TokenizerBackend:
    """Return an engine by the name, or name and version, that `engine_version` gives."""
    return ENGINES[name.split()[0]](rules)


def bare_rules(rules: str) -> dict[str, Any]:
    """Return rules without what trims spaces from spans or adds tokens: bos and eos are added by the encoder."""
    return {**json.loads(rules), "post_processor": None, "truncation": None, "padding": None}


def open_gigatoken(rules: dict[str, Any]) -> Any:
    """Return gigatoken's tokenizer. Raises UnsupportedRulesError."""
    import gigatoken  # 0.3 s, so only where it is used

    try:
        return gigatoken.Tokenizer.from_json(json.dumps(rules))
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise UnsupportedRulesError(str(error)) from None


def spellings(tokenizer: Any) -> list[bytes]:
    """Return the bytes of each of gigatoken's ids; nothing for ids that do not exist."""
    vocab: dict[int, bytes] = tokenizer.vocab
    return [vocab.get(number, b"") for number in range(max(vocab) + 1)]


def outlines_of(spelled: Sequence[bytes]) -> Outlines:
    """Return the outlines of ids that stand for these bytes."""
    return Outlines(
        size=np.array([len(token) for token in spelled], np.int64),
        edges=np.array([token[0] << 8 | token[-1] if token else 0 for token in spelled], np.uint16),
    )


def encode_all(tokenizer: Any, raw: list[bytes]) -> Ragged:
    """Return gigatoken's ids of all texts, on this thread: the slices are spread over processes already."""
    if len(raw) < MANY or sum(map(len, raw)) > LONG * len(raw):
        return ragged([tokenizer.encode(text) for text in raw])
    layout = tokenizer.encode_batch(raw, parallel=False).layout
    first = layout.offsets.data.astype(np.int64, copy=False)
    return Ragged(layout.content.data[: first[-1]], first)


def ragged(arrays: Sequence[Ids]) -> Ragged:
    """Return arrays one after the other."""
    first = np.zeros(len(arrays) + 1, dtype=np.int64)
    np.cumsum([len(array) for array in arrays], out=first[1:])
    return Ragged(np.concatenate([np.empty(0, dtype=np.uint32), *arrays]), first)
