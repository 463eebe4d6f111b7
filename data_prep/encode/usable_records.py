"""What is usable of a part of a file: each record read, cleaned, and either kept or rejected with a reason.

Every record takes the same way: `read_blocks` gives it as bytes or as a row; `may_change` tells which texts of a column
are clean as they are; `document_of` makes a document of any other, the `Cleaner` cleans it and the `Encoder` says
whether it can be encoded.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data_prep.clean.cleaning import Cleaner, excerpt
from data_prep.clean.near_duplicates import Summaries, summaries
from data_prep.clean.prefilter import NOTHING, SPACES, may_change
from data_prep.config import CleaningConfig
from data_prep.documents import canonical
from data_prep.encode.encoding import Encoder
from data_prep.read.parts import Document, FilePart, Rejected, Turn, document_of
from data_prep.read.record_blocks import Texts, read_blocks
from data_prep.rows.record_shapes import BETWEEN


@dataclass(frozen=True, kw_only=True)
class ReadPart:
    """What reading and cleaning made of a part's records, and how often it changed what.

    The usable ones are `texts` in UTF-8 if the part is running text, else `documents`. `said` is the source's system
    text for every row, as cleaning leaves it.
    """

    records: list[int]
    texts: list[bytes] | None
    documents: list[Document]
    rejected: list[Rejected]
    changed: dict[str, int]
    said: str = ""

    def content_keys(self) -> Iterator[bytes]:
        """Yield the 128-bit hash of each usable record's cleaned content."""
        if self.texts is None:
            return map(content_key, self.documents)
        return map(text_key, self.texts)

    def summaries(self) -> Summaries:
        """Return the signatures and sketches by which near duplicates are found."""
        if self.texts is None:
            own = [own_words(document, self.said) for document in self.documents]
            return summaries([text.encode("utf-8", "replace") for text in own])
        return summaries(self.texts)


def read_usable(part: FilePart, encoder: Encoder, config: CleaningConfig, limit: int | None = None) -> ReadPart:
    """Return a part's usable documents and the rejected records, up to `limit` of them all."""
    cleaner = Cleaner(config)
    is_text = part.columns.shape == "text"
    layout = part.columns.layout
    records: list[int] = []
    texts: list[bytes] = []
    documents: list[Document] = []
    rejected: list[Rejected] = []
    for record, outcome in enumerate(itertools.islice(outcomes_of(part, encoder, cleaner), limit)):
        if isinstance(outcome, Rejected):
            rejected.append(outcome)
            continue
        records.append(record)
        if isinstance(outcome, bytes):
            texts.append(outcome)
        elif is_text:
            texts.append(outcome.turns[0].text.encode())
        else:
            documents.append(outcome)
    return ReadPart(
        records=records,
        texts=texts if is_text else None,
        documents=documents,
        rejected=rejected,
        changed=dict(sorted((+cleaner.changed).items())),
        said=cleaner.turn_text(layout.said or "") if layout is not None else "",
    )


def own_words(document: Document, said: str) -> str:
    """Return all that a document says but for what its source says in every row, which is no sign of a duplicate."""
    first, *rest = document.turns
    if said and f"{first.text}{BETWEEN}".startswith(f"{said}{BETWEEN}"):  # or what it begins with
        first = replace(first, text=first.text.removeprefix(said))
    return "\n".join(turn.said() for turn in (first, *rest))


def outcomes_of(part: FilePart, encoder: Encoder, cleaner: Cleaner) -> Iterator[bytes | Document | Rejected]:
    """Yield what becomes of each record of a part: a document, or why it is not used.

    A text of a column that cleaning cannot change stays bytes: most of a corpus of running text never becomes a
    `Document`, which makes it fast.
    """
    end_token = encoder.spec.special_tokens.get("eos_token", "").encode()
    record = itertools.count()  # last in each zip, which then takes no number for the end of a block
    for block in read_blocks(part):
        if isinstance(block, Texts):
            changes = may_change(block, cleaner.config, end_token).tolist()
            for text, change, number in zip(block, changes, record, strict=False):
                if change == NOTHING:
                    yield text
                else:
                    read = Document(number, "text", (Turn("text", text.decode()),))
                    yield usable(read, encoder, cleaner, only_spaces=change == SPACES)
        else:
            for raw, number in zip(block, record, strict=False):
                document = document_of(number, raw, part.columns)
                if number == 0 and isinstance(document, Document) and part.begins_markdown:
                    document = cleaner.without_front_matter(document)
                yield usable(document, encoder, cleaner)


def usable(
    document: Document | Rejected, encoder: Encoder, cleaner: Cleaner, *, only_spaces: bool = False
) -> Document | Rejected:
    """Return a record as it is encoded, or why it is not used and how it begins."""
    if isinstance(document, Rejected):
        return cleaner.without_private(document)
    cleaned = cleaner.without_spaces(document) if only_spaces else cleaner.cleaned(document)
    if isinstance(cleaned, Rejected):
        return cleaned
    encodable = encoder.usable(cleaned)
    return replace(encodable, excerpt=excerpt(cleaned.turns)) if isinstance(encodable, Rejected) else encodable


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
    """Return the first 128 bits of the SHA-256 of a shape and parts, each with its length: no two lists hash alike."""
    digest = hashlib.sha256(shape.encode())  # with the processor's SHA instructions twice as fast as BLAKE2
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()[:16]
