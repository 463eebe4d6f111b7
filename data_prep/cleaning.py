"""What every text goes through before it is hashed and encoded."""

from __future__ import annotations

import re
import unicodedata

CLEANING_VERSION = 1  # part of every slice's digest: raise it when a rule below changes

UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")


def clean(text: str) -> str:
    """Return `text` in Unicode NFC with `\\n` line ends and without control characters but `\\n` and `\\t`.

    Lone surrogates, which JSON can spell and UTF-8 cannot, go too. Spaces stay: in a prompt they can be meant.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", UNWANTED.sub("", text))


def clean_lines(text: str) -> str:
    """Return running text cleaned, without spaces at the ends of lines and empty lines at the end."""
    return "\n".join(line.rstrip() for line in clean(text).split("\n")).rstrip("\n")
