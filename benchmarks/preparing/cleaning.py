"""The default cleaning of a document, step by step: text repair, signature, content hash; and the optional steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.measuring import corpus_texts, measure, size_of
from data_prep.clean.cleaning import Cleaner
from data_prep.clean.near_duplicates import signatures
from data_prep.config import CleaningConfig
from data_prep.encode.usable_records import content_key
from data_prep.read.parts import Document, Turn

ADDED: dict[str, dict[str, Any]] = {
    "with private data": {"private": dict.fromkeys(("email", "phone", "ip", "card", "iban"), "replace")},
    "with language": {"languages": ["en"]},
    **{f"with {rule}": {"quality": [rule]} for rule in ("gopher", "repetition", "c4", "fineweb")},
}


def cleaned(documents: list[Document], **settings: object) -> list[Document]:
    cleaner = Cleaner(CleaningConfig.model_validate(settings))
    results = (cleaner.cleaned(document) for document in documents)
    return [result for result in results if isinstance(result, Document)]


def whole(documents: list[Document]) -> None:
    kept = cleaned(documents)
    signatures([document.turns[0].text for document in kept])
    for document in kept:
        content_key(document)


def main() -> None:
    for name, chars in (("books", 14_000), ("books", 2000), ("peps", None)):
        texts = corpus_texts(name, chars)
        documents = [Document(0, "text", (Turn("text", text),)) for text in texts]
        variants: dict[str, Callable[[], object]] = {
            "default, whole": partial(whole, documents),
            "default, text repair alone": partial(cleaned, documents),
        }
        if chars == 14_000:
            for label, settings in ADDED.items():
                variants[label] = partial(cleaned, documents, **settings)
        measure(f"cleaning, {name}, {chars or 'whole'}", variants, size_of(texts))
