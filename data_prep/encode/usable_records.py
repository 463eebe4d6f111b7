"""What is usable of a part of a file: its records read, cleaned, and either kept or rejected with a reason."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.clean.cleaning import Cleaner, excerpt
from data_prep.clean.near_duplicates import Summaries, summaries
from data_prep.clean.prefilter import NOTHING, SPACES, may_change
from data_prep.config import CleaningConfig
from data_prep.documents import canonical
from data_prep.encode.encoding import Encoder
from data_prep.read.columns import TextBatch, Texts, read_batches
from data_prep.read.parts import Document, FilePart, Rejected, Turn, read_part


@dataclass(frozen=True, kw_only=True)
class ReadPart:
    """What reading and cleaning made of a part's records, and how often it mended what.

    The usable ones are `texts` in UTF-8, of a part of running text, or else `documents`.
    """

    records: list[int]
    texts: list[bytes] | None
    documents: list[Document]
    rejected: list[Rejected]
    changed: dict[str, int]

    def content_keys(self) -> Iterator[bytes]:
        """Yield the 128-bit hash of each usable record's cleaned content."""
        if self.texts is None:
            return map(content_key, self.documents)
        return map(text_key, self.texts)

    def summaries(self) -> Summaries:
        """Return what near duplicates are told by."""
        if self.texts is None:
            said = ["\n".join(turn.said() for turn in document.turns) for document in self.documents]
            return summaries([text.encode("utf-8", "replace") for text in said])
        return summaries(self.texts)


def read_usable(part: FilePart, encoder: Encoder, config: CleaningConfig, limit: int | None = None) -> ReadPart:
    """Return a part's usable documents and the rejected records, up to `limit` of them all."""
    cleaner = Cleaner(config)
    is_text = part.columns.shape == "text"
    items = usable_texts(part, encoder, cleaner) if is_text else usable_documents(part, encoder, cleaner)
    records: list[int] = []
    texts: list[bytes] = []
    documents: list[Document] = []
    rejected: list[Rejected] = []
    for record, item in enumerate(itertools.islice(items, limit)):
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        records.append(record)
        if isinstance(item, Document):
            documents.append(item)
        else:
            texts.append(item)
    return ReadPart(
        records=records,
        texts=texts if is_text else None,
        documents=documents,
        rejected=rejected,
        changed=dict(sorted((+cleaner.changed).items())),
    )


def usable_documents(part: FilePart, encoder: Encoder, cleaner: Cleaner) -> Iterator[Document | Rejected]:
    """Yield each record of a part, cleaned, or why it is not used."""
    for item in read_part(part):
        yield usable(item, encoder, cleaner, only_spaces=False)


def usable_texts(part: FilePart, encoder: Encoder, cleaner: Cleaner) -> Iterator[bytes | Rejected]:
    """Yield each record of a part of running text; only what cleaning may change is made a document on the way."""
    end = encoder.spec.special_tokens.get("eos_token", "").encode()
    for batch in read_batches(part):
        for item, only_spaces in changeable(batch, cleaner.config, end):
            if isinstance(item, bytes):
                yield item
                continue
            checked = usable(item, encoder, cleaner, only_spaces=only_spaces)
            yield checked if isinstance(checked, Rejected) else checked.turns[0].text.encode()


def changeable(
    batch: TextBatch, config: CleaningConfig, end: bytes
) -> Iterator[tuple[bytes | Document | Rejected, bool]]:
    """Yield texts that no cleaning changes as bytes, others as documents, and whether it is only their spaces."""
    if not isinstance(batch.items, Texts):
        yield from ((item, False) for item in batch.items)
        return
    data = batch.items.data.data
    first = batch.items.first.tolist()
    for number, changes in enumerate(may_change(batch.items, config, end).tolist()):
        raw = bytes(data[first[number] : first[number + 1]])
        if changes == NOTHING:
            yield raw, False
        else:
            yield Document(batch.record + number, "text", (Turn("text", raw.decode()),)), changes == SPACES


def usable(item: Document | Rejected, encoder: Encoder, cleaner: Cleaner, *, only_spaces: bool) -> Document | Rejected:
    """Return a record as it is encoded, or why it is not used and how it begins."""
    if isinstance(item, Rejected):
        return cleaner.without_private(item)
    cleaned = cleaner.without_spaces(item) if only_spaces else cleaner.cleaned(item)
    if isinstance(cleaned, Rejected):
        return cleaned
    checked = encoder.usable(cleaned)
    return (
        Rejected(checked.record, checked.reason, excerpt(cleaned.turns)) if isinstance(checked, Rejected) else checked
    )


def content_key(document: Document) -> bytes:
    """Return the 128-bit hash of a document's cleaned content."""
    parts = [part for turn in document.turns for part in (turn.role, turn.text)]
    rest = [turn.more if turn.is_trained is None else [turn.more, turn.is_trained] for turn in document.turns]
    if document.variables or any(rest):
        parts.append(canonical([rest, document.variables]))
    return hashed(document.shape, [part.encode() for part in parts])


def text_key(text: bytes) -> bytes:
    """Return what `content_key` gives a running text."""
    return hashed("text", (b"text", text))


def hashed(shape: str, parts: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256(shape.encode())  # in the processor's own instructions twice as fast as BLAKE2
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()[:16]
