"""From documents to token ids and a loss mask, with an exchangeable tokenizer backend (`data.engine`)."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import orjson

from cluster.disk.atomic_files import digest_of, write_text
from data_prep.documents import canonical
from data_prep.encode.backend_parity import CheckedBackend
from data_prep.encode.backends import REFERENCE, Ragged, TokenizerBackend, open_backend
from data_prep.encode.conversations import ChatTemplate, Span, UnusableError, Written, texts_said, written
from data_prep.encode.template_forms import Fed, Forms
from data_prep.read.parts import Document, Rejected
from data_prep.rows.record_shapes import folded
from data_prep.shards.writing import id_type

BATCH = 256  # documents handed to the engine at once
MAY_MARK = ("assistant", "system", "developer")  # roles that may write tokens that mark parts of a turn
BATCH_BYTES = 2 * 2**20  # likewise of running text: what is compared with the reference stays in the processor's cache


TrainOn = Literal["all", "last"]

NO_ANSWER = "no turn has the role 'assistant'"
NOT_TRAINED = "every answer is marked as not to be trained"
NO_TOKEN = "no trained token"
NOTHING_SAID = "no answer to train says anything"
SILENT = "answers that say nothing, which are not trained"
CONTROL_TOKEN = "control token in a message"
FURTHER = "sequences more than conversations, since the chat template writes earlier turns otherwise"
UNSTOPPED = "answers that the chat template ends without a stop token"
EMPTY_THOUGHT = "answers that begin with an empty reasoning, since the chat template's prompt opens one"
JOINED = "answers whose first token also holds the end of the prompt, which no server gives"
ACROSS = "pairs with a token across the end of the prompt, which is trained"
RUN_TOGETHER = "pairs whose prompt ends and whose completion begins with a letter or digit, and nothing between"
UNMARKED = "flags of training on turns that are no answers, which are never trained"


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """All that encoding depends on. `bos` is None unless the tokenizer adds it by itself; `engine` has its version.

    No message may contain a control token, except for the `marker_tokens` among them, which the system and the
    assistant may write.
    """

    rules: str
    vocab_size: int
    bos: int | None
    eos: int
    pad: int
    chat_template: str | None
    special_tokens: dict[str, str]
    control_tokens: tuple[str, ...]
    marker_tokens: tuple[str, ...] = ()
    train_on: TrainOn = "all"
    engine: str = REFERENCE

    def digests(self) -> tuple[str, str]:
        """Return the digest of all that encoding depends on, and of what that of running text depends on."""
        described = {**asdict(self), "rules": hashlib.sha256(self.rules.encode()).hexdigest()}
        of_turns = dict.fromkeys(("chat_template", "control_tokens", "marker_tokens", "train_on"))
        return digest_of(described), digest_of({**described, **of_turns})


def trusted_engine(spec: EncoderSpec) -> TokenizerBackend:
    """Return the engine of a spec; any but the reference is compared with it on a sample of what it encodes."""
    engine = open_backend(spec.engine, spec.rules)
    if spec.engine.startswith(REFERENCE):
        return engine
    return CheckedBackend(engine, open_backend(REFERENCE, spec.rules))


def write_spec(path: Path, spec: EncoderSpec) -> None:
    """Write a spec for the workers to read, whole or not at all."""
    write_text(path, orjson.dumps(asdict(spec)).decode())  # the rules are megabytes


def read_spec(path: Path) -> EncoderSpec:
    """Return the spec that `write_spec` wrote."""
    values = orjson.loads(path.read_bytes())
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return EncoderSpec(**{**values, **lists})


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sequence's ids and which of them are trained; the first never is, since nothing precedes it."""

    input_ids: npt.NDArray[np.uint32]
    loss_mask: npt.NDArray[np.bool_]


class Encoder:
    """Encodes documents of every shape with one engine; `changed` counts what is encoded differently from the rows."""

    def __init__(self, spec: EncoderSpec, engine: TokenizerBackend | None = None) -> None:
        self.spec = spec
        self.engine = engine or trusted_engine(spec)
        self.start = np.array([] if spec.bos is None else [spec.bos], dtype=np.uint32)
        self.end = np.array([spec.eos], dtype=np.uint32)
        self.changed: Counter[str] = Counter()
        self.boundaries = tuple(token for token in spec.control_tokens if token not in set(spec.marker_tokens))

    @cached_property
    def forms(self) -> Forms:
        """The forms that the chat template accepts; created for the first conversation, since it renders probes."""
        return Forms(ChatTemplate(str(self.spec.chat_template), self.spec.special_tokens), self.changed)

    def is_conversation(self, document: Document) -> bool:
        """Return whether the document is rendered by the chat template."""
        return document.shape == "messages" or (document.shape == "pair" and self.spec.chat_template is not None)

    def usable(self, document: Document) -> Document | Rejected:
        """Return the document as it is encoded, or why it is rejected.

        An end token that the source spells after the last text is removed: the encoder appends the real one. Any other
        control token in a message would end its turn, or let a user speak as somebody else, so such a conversation is
        rejected. Tokens that mark parts of an answer (`<tool_call>` in some tokenizers) are allowed where the system or
        the assistant writes them.
        """
        if document.shape == "pair" and self.spec.chat_template is None:
            if document.variables.get("tools"):
                return Rejected(document.record, "tools, and no chat template to write them with")
            document = replace(document, turns=folded(document.turns))
        last = document.turns[-1]
        end = self.spec.special_tokens.get("eos_token")
        if end and last.text.rstrip().endswith(end):
            last = replace(last, text=last.text.rstrip().removesuffix(end))
            document = replace(document, turns=(*document.turns[:-1], last))
            if not last.said().strip():
                return Rejected(document.record, "empty")
        if self.is_conversation(document) and self.holds_control(document):
            return Rejected(document.record, CONTROL_TOKEN)
        return document

    def holds_control(self, document: Document) -> bool:
        """Return whether a control token stands where none is allowed."""
        if document.variables and any(token in canonical(document.variables) for token in self.boundaries):
            return True
        for turn in document.turns:
            tokens = self.boundaries if turn.role in MAY_MARK else self.spec.control_tokens
            text = turn.role + turn.said()
            if any(token in text for token in tokens):
                return True
        return False

    def begin_slice(self) -> None:
        """Begin a slice: which of its texts are compared with the reference depends on nothing before it."""
        if isinstance(self.engine, CheckedBackend):
            self.engine.begin()

    def encode(self, documents: Sequence[Document]) -> list[list[Encoded] | Rejected]:
        """Return the sequences of each pair and conversation, or why it has none."""
        result: dict[int, list[Encoded] | Rejected] = {}
        kinds = {False: self.encode_pairs, True: self.encode_conversations}
        for kind, encode in kinds.items():
            chosen = [i for i, document in enumerate(documents) if kind == self.is_conversation(document)]
            for first in range(0, len(chosen), BATCH):
                batch = chosen[first : first + BATCH]
                result.update(zip(batch, encode([documents[i] for i in batch]), strict=True))
        return [result[index] for index in range(len(documents))]

    def encode_texts(self, texts: Sequence[bytes]) -> Ragged:
        """Return the ids of running texts in UTF-8 and their ends; all but the first of each are trained."""
        if not texts:
            return Ragged(np.empty(0, dtype=id_type(self.spec.vocab_size)), np.zeros(1, dtype=np.int64))
        batches = [self.bounded(self.engine.encode_plain(batch)) for batch in batches_of(texts)]
        counts = np.concatenate([np.diff(batch.first) for batch in batches])
        return Ragged(np.concatenate([batch.ids for batch in batches]), np.concatenate([[0], np.cumsum(counts)]))

    def bounded(self, texts: Ragged) -> Ragged:
        """Return texts' ids with the begin and end tokens added."""
        ids = np.insert(texts.ids.astype(id_type(self.spec.vocab_size)), texts.first[1:], self.spec.eos)
        first = texts.first + np.arange(len(texts.first))
        if self.spec.bos is not None:
            ids = np.insert(ids, first[:-1], self.spec.bos)
            first = first + np.arange(len(first))
        return Ragged(ids, first)

    def encode_pairs(self, documents: Sequence[Document]) -> list[list[Encoded] | Rejected]:
        """Encode prompt and completion as one text, and its end; a token with a character of the completion is trained.

        Parts encoded one by one would not be what the model meets: SentencePiece puts a space before each.
        """
        prompts = ["\n\n".join(turn.text for turn in document.turns[:-1]).encode() for document in documents]
        texts = [prompt + document.turns[-1].text.encode() for prompt, document in zip(prompts, documents, strict=True)]
        encoded, given, begun = self.engine.encode_cut(texts, list(map(len, prompts)))
        self.changed[RUN_TOGETHER] += sum(map(runs_together, documents))
        self.changed[ACROSS] += int(np.count_nonzero(begun > given))
        given = given + len(self.start)
        first = encoded.first + np.arange(len(encoded.first)) * (len(self.start) + 1)
        ids = np.empty(first[-1], dtype=np.uint32)
        mask = np.ones(first[-1], dtype=np.bool_)
        result: list[list[Encoded] | Rejected] = []
        for index, (begin, end) in enumerate(itertools.pairwise(first.tolist())):
            np.concatenate([self.start, encoded[index], self.end], out=ids[begin:end])
            mask[begin : begin + max(int(given[index]), 1)] = False
            result.append(checked([Encoded(ids[begin:end], mask[begin:end])], documents[index].record))
        return result

    def encode_conversations(self, documents: Sequence[Document]) -> list[list[Encoded] | Rejected]:
        """Encode the chat template's text; what the assistant says and its stop token are trained."""
        written_as = [self.written(document) for document in documents]
        sequences = [one for several in written_as if not isinstance(several, Rejected) for one in several]
        encodings = iter(self.engine.encode_marked([sequence.text for sequence in sequences]))
        result: list[list[Encoded] | Rejected] = []
        for document, several in zip(documents, written_as, strict=True):
            if isinstance(several, Rejected):
                result.append(several)
                continue
            encoded = []
            for sequence in several:
                ids, offsets = next(encodings)
                mask = tokens_in(sequence.spans, offsets)
                self.changed[JOINED] += begun_before(sequence.spans, offsets)
                mask[:1] = False
                encoded.append(Encoded(ids, mask))
            self.changed[FURTHER] += len(encoded) - 1
            result.append(checked(encoded, document.record))
        return result

    def written(self, document: Document) -> list[Written] | Rejected:
        """Return a conversation's sequences as text, or why it is rejected."""
        try:
            fed = self.forms.fed(document)
            answers = self.trained_answers(fed)
            sequences = written(self.forms.template, fed.messages, fed.variables, answers)
        except UnusableError as error:
            return Rejected(document.record, error.reason, error.detail)
        said = [one.text[start:end] for one in sequences for start, end in one.spans]
        if not self.forms.template.is_marked:  # markers may stand around parts of an answer
            self.changed[UNSTOPPED] += sum(not text.endswith(self.spec.control_tokens) for text in said)
        self.changed[EMPTY_THOUGHT] += sum(text.startswith("</think>") for text in said)
        return sequences

    def trained_answers(self, fed: Fed) -> list[int]:
        """Return the places of the answers to train: those that `train_on` selects and the row does not exclude.

        An answer that the row's own flag includes is trained whatever `train_on` says. Raises UnusableError.
        """
        answers = [place for place, message in enumerate(fed.messages) if message["role"] == "assistant"]
        if not answers:
            roles = ", ".join(sorted({str(message["role"]) for message in fed.messages}))
            raise UnusableError(NO_ANSWER, f"roles here: {roles}")
        self.changed[UNMARKED] += sum(
            flag is True and message["role"] != "assistant"
            for flag, message in zip(fed.flags, fed.messages, strict=True)
        )
        wanted = answers if self.spec.train_on == "all" else answers[-1:]
        chosen = [place for place in answers if fed.flags[place] or (place in wanted and fed.flags[place] is None)]
        if not chosen:
            raise UnusableError(NOT_TRAINED)
        saying = [place for place in chosen if any(texts_said(fed.messages[place]))]
        self.changed[SILENT] += len(chosen) - len(saying)
        if not saying:
            raise UnusableError(NOTHING_SAID)
        return saying


def runs_together(pair: Document) -> bool:
    """Return whether the last word of the prompt and the first of the completion would be read as one."""
    met = pair.turns[-2].text[-1:] + pair.turns[-1].text[:1]
    return len(met) == 2 and met.isalnum()


def begun_before(spans: Sequence[Span], offsets: npt.NDArray[np.int64]) -> int:
    """Return in how many spans the first token begins before the span; `offsets` is [tokens, 2]."""
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    holding = np.searchsorted(offsets[:, 1], starts, side="right")
    return int(np.count_nonzero(offsets[np.minimum(holding, len(offsets) - 1), 0] < starts)) if len(offsets) else 0


def checked(encoded: list[Encoded], record: int) -> list[Encoded] | Rejected:
    """Return the sequences in which something is trained; a rejection if there are none."""
    return [one for one in encoded if one.loss_mask.any()] or Rejected(record, NO_TOKEN)


def batches_of(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield batches of texts of about BATCH_BYTES, at least one text each."""
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
