"""Which language a text is in, by the n-grams of py3langid (Lui, Baldwin 2012, "langid.py")."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

LANGUAGE_VERSION = 2  # part of every slice's digest: raise it when the model or what it is given changes

EXCERPT_CHARS = 400  # looked at in each of the EXCERPTS of a long text
EXCERPTS = 3
NO_LANGUAGE = "zxx"  # ISO 639-2: no linguistic content
LEAST_BYTES = 20  # of prose: "ok" and "thanks" show no language
LEAST_SHARE = 0.6  # of a text that is prose: what is left of code are its keywords
FENCED = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.M | re.S)
SIGN = re.compile(r"[0-9{}\[\]<>=_/\\|@#$^&*+~`.(:]")
WITHIN_CODE = re.compile(r"[A-Za-z)\"'][.(:]+[A-Za-z()]")  # record.text, print(text, f(): no end of a sentence


def find_language(text: str) -> tuple[str, float]:
    """Return the ISO 639-1 code of a text's most likely language and its probability, from 0 to 1."""
    code, probability = identifier().classify(excerpts_of(text))
    return str(code), float(probability)


def prose_of(text: str) -> str:
    """Return what of a text tells its language; nothing if it is too little, or if the text is mostly something else.

    Left out are fenced blocks, and words that hold digits or the signs of programs, markup and addresses.
    """
    if "`" in text or "~" in text:  # one character is found many times faster than three
        text = FENCED.sub("\n", text)
    return prose_in(excerpts_of(text)) or (prose_in(text) if len(text) > EXCERPT_CHARS * EXCERPTS else "")


def prose_in(text: str) -> str:
    """Return a text without its words that hold signs of code; nothing if too little is left.

    Only where a sign is found is the word around it looked at: most prose has few.
    """
    if code_sign(text, 0) is not None:
        text = " ".join(text.split())
        prose = "".join(prose_parts(text))
        text = prose if len(prose) >= LEAST_SHARE * len(text) else ""
    return text if len(text.encode("utf-8", "replace")) >= LEAST_BYTES and any(map(str.isalpha, text)) else ""


def prose_parts(text: str) -> Iterator[str]:
    """Yield what stands between words with signs of code; in scripts without spaces, a sentence is one such word."""
    at = 0
    while (sign := code_sign(text, at)) is not None:
        begin = max(at, text.rfind(" ", at, sign) + 1)
        end = text.find(" ", sign)
        end = len(text) if end < 0 else end
        is_sentence = sum(char > "\x7f" for char in text[begin:end]) * 2 > end - begin
        yield text[at : end if is_sentence else begin]
        at = end
    yield text[at:]


def code_sign(text: str, begin: int) -> int | None:
    """Return where the next sign of code stands."""
    for sign in SIGN.finditer(text, begin):
        at = sign.start()
        if sign.group() not in ".(:" or (at and WITHIN_CODE.match(text, at - 1)):
            return at
    return None


def excerpts_of(text: str) -> str:
    """Return a text's beginning, middle and end: they tell its language as well as the whole."""
    if len(text) <= EXCERPT_CHARS * EXCERPTS:
        return text
    step = (len(text) - EXCERPT_CHARS) // (EXCERPTS - 1)
    return "\n".join(text[n * step : n * step + EXCERPT_CHARS] for n in range(EXCERPTS))


@lru_cache(maxsize=1)
def identifier() -> Any:
    """Return py3langid's model, which takes 0.3 s to load, with probabilities instead of scores."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=1)
def known_languages() -> frozenset[str]:
    """Return the codes that `find_language` can return."""
    return frozenset(str(code) for code in identifier().labels)
