"""The text of tokens that continue others, at once or as they come."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

SETTLED_TOKENS = 32  # decoded again with each new token, at most
UNDECODED = re.compile("[\udc80-\udcff]")  # what Python's "surrogateescape" makes of a byte that is no text


@lru_cache(maxsize=4)
def byte_tokens(tokenizer: Any) -> Mapping[int, int]:
    """Return the byte of each token like `<0xE4>`, by id; empty if the tokenizer does not decode these as bytes.

    Llama 2, Mistral and Gemma spell characters that their vocabulary lacks with such tokens. Their decoder,
    ByteFallback, takes adjacent ones together, and if a single byte is no text it gives none of their characters: a run
    of them cannot be decoded before it has ended, nor from its middle. So `decoded` joins the bytes itself, and
    replaces the wrong ones only, as SentencePiece does.
    """
    ids = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in range(256)])
    known = {token: byte for byte, token in enumerate(ids) if token is not None and token != tokenizer.unk_token_id}
    letter = next((token for token, byte in known.items() if byte == ord("A")), None)
    return known if letter is not None and tokenizer.decode([letter]) == "A" else {}


def text_of_bytes(values: Iterable[int]) -> str:
    """Return the characters of bytes; each byte that belongs to none is a U+FFFD."""
    return UNDECODED.sub("\ufffd", bytes(values).decode("utf-8", "surrogateescape"))


def incomplete_tokens(tokenizer: Any, ids: Sequence[int]) -> int:
    """Return how many byte tokens at the end are the beginning of a character: at most 3."""
    known = byte_tokens(tokenizer)
    for size in range(min(3, len(ids)), 0, -1):
        tail = bytes(known[token] for token in ids[-size:] if token in known)
        if len(tail) == size and codecs.utf_8_decode(tail, "surrogateescape", False) == ("", 0):
            return size
    return 0


def decoded(tokenizer: Any, before: Sequence[int], new: Sequence[int]) -> str:
    """Return the text of new ids as they continue the ids before: a leading space is kept.

    Byte tokens at the end that are not a whole character yet have no text.
    """
    known = byte_tokens(tokenizer)
    text, last = "", list(before[-1:])
    for is_bytes, run in groupby(new[: len(new) - incomplete_tokens(tokenizer, new)], known.__contains__):
        ids = list(run)
        text += text_of_bytes(known[token] for token in ids) if is_bytes else continued(tokenizer, last, ids)
        last = ids[-1:]
    return text


def continued(tokenizer: Any, last: list[int], new: list[int]) -> str:
    """Return what the tokenizer's decoder adds to the text of the last id for new ids."""
    begin = tokenizer.decode(last, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text = tokenizer.decode([*last, *new], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text[len(begin) :])


class GrowingText:
    """The text of an answer as its tokens come. Its beginning is decoded once only."""

    def __init__(self, tokenizer: Any, before: Sequence[int]) -> None:
        self.tokenizer, self.before = tokenizer, list(before[-1:])
        self.new: list[int] = []
        self.settled = ""

    def add(self, tokens: Sequence[int]) -> str:
        """Take new tokens, and return the whole text."""
        self.new.extend(tokens)
        text = decoded(self.tokenizer, self.before, self.new)
        end = len(self.new) - incomplete_tokens(self.tokenizer, self.new)
        if end < SETTLED_TOKENS or text.endswith("\ufffd") or not self.has_text(self.new[end - 1]):
            return self.settled + text
        self.settled += text
        self.before, self.new = self.new[end - 1 : end], self.new[end:]
        return self.settled

    def has_text(self, token: int) -> bool:
        """Return whether a token can be the context of the next ones: a leading space after it is kept."""
        return bool(self.tokenizer.decode([token], skip_special_tokens=True).strip())
