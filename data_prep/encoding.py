"""From documents to token ids and a loss mask, by an engine that can be exchanged."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from cluster.files import digest_of, write_text
from data_prep.conversations import Span, UntoldMaskError, render
from data_prep.documents import Document, Rejected, Turn
from data_prep.engines import REFERENCE, Engine, Ragged, open_engine
from data_prep.proof import ProvedEngine
from data_prep.shard_writing import id_type

BATCH = 256  # documents handed to the engine at once
BATCH_BYTES = 2 * 2**20  # likewise of running text: what the proof looks at stays in the processor's cache


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """All that encoding depends on. `bos` is None unless the tokenizer adds it by itself; `engine` has its version."""

    rules: str
    vocab_size: int
    bos: int | None
    eos: int
    pad: int
    chat_template: str | None
    special_tokens: dict[str, str]
    control_tokens: tuple[str, ...]
    engine: str = REFERENCE

    def digests(self) -> tuple[str, str]:
        """Return the digest of all that encoding depends on, and of what the encoding of running text does."""
        described = {**asdict(self), "rules": hashlib.sha256(self.rules.encode()).hexdigest()}
        return digest_of(described), digest_of({**described, "chat_template": None})


def trusted_engine(spec: EncoderSpec) -> Engine:
    """Return the engine of a spec; any but the reference is compared with it on a sample of what it encodes."""
    engine = open_engine(spec.engine, spec.rules)
    if spec.engine.startswith(REFERENCE):
        return engine
    return ProvedEngine(engine, open_engine(REFERENCE, spec.rules))


def write_spec(path: Path, spec: EncoderSpec) -> None:
    """Write a spec for the workers to read, whole or not at all."""
    write_text(path, orjson.dumps(asdict(spec)).decode())  # the rules are megabytes


def read_spec(path: Path) -> EncoderSpec:
    values = orjson.loads(path.read_bytes())
    return EncoderSpec(**{**values, "control_tokens": tuple(values["control_tokens"])})


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document's ids and which of them are trained; the first never is, for nothing precedes it."""

    input_ids: npt.NDArray[np.uint32]
    loss_mask: npt.NDArray[np.bool_]


class UnusableDocumentError(Exception):
    """A document that cannot be trained on: `record` says which, the text says why."""

    def __init__(self, record: int, reason: str) -> None:
        super().__init__(record, reason)
        self.record, self.reason = record, reason


class Encoder:
    """Encodes documents of every shape with one engine."""

    def __init__(self, spec: EncoderSpec, engine: Engine | None = None) -> None:
        self.spec = spec
        self.engine = engine or trusted_engine(spec)
        self.start = np.array([] if spec.bos is None else [spec.bos], dtype=np.uint32)
        self.end = np.array([spec.eos], dtype=np.uint32)

    def is_conversation(self, document: Document) -> bool:
        """Tell whether the chat template writes the document."""
        return document.shape == "messages" or (document.shape == "pair" and self.spec.chat_template is not None)

    def usable(self, document: Document) -> Document | Rejected:
        """Return the document as it is encoded, or why it is not.

        An end token that the source spells after the last text goes: the encoder writes the real one. Any other control
        token that a message spells would end its turn, so such a conversation is not used.
        """
        last = document.turns[-1]
        end = self.spec.special_tokens.get("eos_token")
        if end and last.text.rstrip().endswith(end):
            last = Turn(last.role, last.text.rstrip().removesuffix(end))
            document = Document(document.record, document.shape, (*document.turns[:-1], last))
            if not last.text.strip():
                return Rejected(document.record, "empty")
        if self.is_conversation(document):
            said = (turn.role + turn.text for turn in document.turns)
            if any(token in text for text in said for token in self.spec.control_tokens):
                return Rejected(document.record, "control token in a message")
        return document

    def begin_slice(self) -> None:
        """Begin a slice: its sample for the engine's proof depends on nothing before it."""
        if isinstance(self.engine, ProvedEngine):
            self.engine.begin()

    def encode(self, documents: Sequence[Document]) -> list[Encoded]:
        """Return the ids and masks of pairs and conversations, in order.

        Raises UnusableDocumentError if nothing in one is trained.
        """
        result: dict[int, Encoded] = {}
        kinds = {False: self.encode_pairs, True: self.encode_conversations}
        for kind, encode in kinds.items():
            chosen = [i for i, document in enumerate(documents) if kind == self.is_conversation(document)]
            for first in range(0, len(chosen), BATCH):
                batch = chosen[first : first + BATCH]
                result.update(zip(batch, encode([documents[i] for i in batch]), strict=True))
        for index, document in enumerate(documents):
            if not result[index].loss_mask.any():
                raise UnusableDocumentError(document.record, no_trained_token(document))
        return [result[index] for index in range(len(documents))]

    def encode_texts(self, texts: Sequence[bytes]) -> Ragged:
        """Return the ids of running texts in UTF-8 and their ends; all but the first of each are trained."""
        if not texts:
            return Ragged(np.empty(0, dtype=id_type(self.spec.vocab_size)), np.zeros(1, dtype=np.int64))
        batches = [self.bounded(self.engine.encode_plain(batch)) for batch in batches_of(texts)]
        counts = np.concatenate([np.diff(batch.first) for batch in batches])
        return Ragged(np.concatenate([batch.ids for batch in batches]), np.concatenate([[0], np.cumsum(counts)]))

    def bounded(self, texts: Ragged) -> Ragged:
        """Return texts' ids with the ids that begin and end a text."""
        ids = np.insert(texts.ids.astype(id_type(self.spec.vocab_size)), texts.first[1:], self.spec.eos)
        first = texts.first + np.arange(len(texts.first))
        if self.spec.bos is not None:
            ids = np.insert(ids, first[:-1], self.spec.bos)
            first = first + np.arange(len(first))
        return Ragged(ids, first)

    def encode_pairs(self, documents: Sequence[Document]) -> list[Encoded]:
        """Prompt, then completion and its end, which are trained."""
        prompts, answers = (
            self.engine.encode_plain([document.turns[turn].text.encode() for document in documents]) for turn in (0, 1)
        )
        given = np.diff(prompts.first) + len(self.start)
        first = np.concatenate([[0], np.cumsum(given + np.diff(answers.first) + 1)])
        ids = np.empty(first[-1], dtype=np.uint32)
        mask = np.ones(first[-1], dtype=np.bool_)
        result = []
        for index, (begin, end) in enumerate(itertools.pairwise(first.tolist())):
            np.concatenate([self.start, prompts[index], answers[index], self.end], out=ids[begin:end])
            mask[begin : begin + max(int(given[index]), 1)] = False
            result.append(Encoded(ids[begin:end], mask[begin:end]))
        return result

    def encode_conversations(self, documents: Sequence[Document]) -> list[Encoded]:
        """The chat template's text; what the assistant says and its stop token are trained."""
        rendered = [self.rendered(document) for document in documents]
        encodings = self.engine.encode_marked([text for text, _ in rendered])
        result = []
        for (_, spans), (ids, offsets) in zip(rendered, encodings, strict=True):
            mask = tokens_in(spans, offsets)
            mask[:1] = False
            result.append(Encoded(ids, mask))
        return result

    def rendered(self, document: Document) -> tuple[str, list[Span]]:
        messages = [{"role": turn.role, "content": turn.text} for turn in document.turns]
        try:
            return render(messages, str(self.spec.chat_template), self.spec.special_tokens)
        except UntoldMaskError as error:
            raise UnusableDocumentError(
                document.record, f"the chat template does not tell what to train: {error}"
            ) from None


def batches_of(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield texts until they are about BATCH_BYTES, at least one at a time."""
    begin = size = 0
    for index, text in enumerate(texts):
        size += len(text)
        if size >= BATCH_BYTES:
            yield texts[begin : index + 1]
            begin, size = index + 1, 0
    if begin < len(texts):
        yield texts[begin:]


def tokens_in(spans: Sequence[Span], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which tokens hold a character of the spans; `offsets` is [tokens, 2]."""
    mask = np.zeros(len(offsets), dtype=np.bool_)
    for start, end in spans:
        mask |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
    return mask


def no_trained_token(document: Document) -> str:
    """Say why nothing in a document is trained, and what to do."""
    if document.shape == "messages" and all(turn.role != "assistant" for turn in document.turns):
        roles = ", ".join(sorted({turn.role for turn in document.turns}))
        return f"no trained token: no turn has the role 'assistant' (roles here: {roles}); add the answer or delete it"
    return "no trained token: the template marks nothing that the assistant says; mend the document or the template"
