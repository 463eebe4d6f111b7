"""Which language a text is in, by the n-grams of py3langid (Lui, Baldwin 2012, "langid.py")."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

LANGUAGE_VERSION = 1  # part of every slice's digest: raise it when the model or the stretches below change

STRETCH = 400  # characters looked at, at each of STRETCHES places of a text
STRETCHES = 3


def find_language(text: str) -> tuple[str, float]:
    """Return the ISO 639-1 code of a text's most likely language and its probability."""
    code, probability = identifier().classify(stretches_of(text))
    return str(code), float(probability)


def stretches_of(text: str) -> str:
    """Return a text's beginning, middle and end: they tell its language as well as the whole."""
    if len(text) <= STRETCH * STRETCHES:
        return text
    step = (len(text) - STRETCH) // (STRETCHES - 1)
    return "\n".join(text[n * step : n * step + STRETCH] for n in range(STRETCHES))


@lru_cache(maxsize=1)
def identifier() -> Any:
    """Return py3langid's model, which takes 0.3 s to load, with probabilities instead of scores."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=1)
def known_languages() -> frozenset[str]:
    """Return the codes that `find_language` can return."""
    return frozenset(str(code) for code in identifier().labels)
