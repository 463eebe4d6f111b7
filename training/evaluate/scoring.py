"""The loss of each held-out document: of its trained tokens, as training counts them.

The model is called as in training, with the documents of a row isolated, so that the sum over documents is the loss
that training reports. A document that was cut, or a conversation that gave several sequences, is one document here: its
tokens are added up over rows, and so are their bytes, wherever a cut is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel

from data_prep.shards import ShardReader
from training.generate.token_text import byte_tokens
from training.step.batches import MicroBatch, micro_batch, nothing_of
from training.step.packed_model import Isolation, PackedModel

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character: 3 bytes itself
Key = tuple[int, int]  # a document: its source file's number and its position there
Passes = Callable[[MicroBatch], Sequence[MicroBatch]]
"""Returns what the model is called with for a micro batch; see StepEngine.forward_passes."""


@dataclass(frozen=True, kw_only=True)
class DocumentScore:
    """The summed loss of a document's trained tokens, their number, and the bytes of their text."""

    nats: float
    tokens: int
    bytes: int

    def __add__(self, other: DocumentScore) -> DocumentScore:
        return DocumentScore(
            nats=self.nats + other.nats, tokens=self.tokens + other.tokens, bytes=self.bytes + other.bytes
        )


Scores = dict[Key, DocumentScore]


def score_rows(
    packed: PackedModel, passes: Passes, tokenizer: Any, reader: ShardReader, rows: Iterable[int | None]
) -> Scores:
    """Return the score of each document with a trained token in these rows. The model must be in evaluation mode.

    For a row that is None, the model is called in company with other ranks, and nothing is scored.
    """
    scores: Scores = {}
    for row in rows:
        if row is None:
            for company in passes(nothing_of(micro_batch(reader.rows([0]), index=0))):
                packed.token_losses(company)
            continue
        arrays = reader.rows([row])
        batch = micro_batch(arrays, index=0)
        nats = segment_losses(packed, batch, passes(batch))
        ends = np.cumsum(arrays.piece_tokens[0]).tolist()
        for number, (piece, end) in enumerate(zip(reader.pieces(row), ends, strict=True)):
            ids, mask = arrays.input_ids[0, end - piece.tokens : end], arrays.loss_mask[0, end - piece.tokens : end]
            if not mask.any():
                continue
            size = text_bytes(tokenizer, ids[mask].tolist())
            part = DocumentScore(nats=nats[number], tokens=int(mask.sum()), bytes=size)
            key = (piece.source, piece.position)
            scores[key] = scores[key] + part if key in scores else part
    return scores


def text_bytes(tokenizer: Any, ids: Sequence[int]) -> int:
    """Return the bytes of the text of these tokens; of a character that they begin or end within, those they hold.

    So the parts of a text have as many bytes as the text, wherever it was cut.
    """
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if REPLACEMENT not in text:
        return len(text.encode())
    known = byte_tokens(tokenizer)
    if not known.keys().isdisjoint(ids):
        return fallback_bytes(tokenizer, ids, known)
    return len(text.encode()) - replacement_bytes(tokenizer, ids)


def fallback_bytes(tokenizer: Any, ids: Sequence[int], known: Mapping[int, int]) -> int:
    """Return the bytes of the text, each token of one byte, of which the `known` are, counted as one.

    A run of such tokens that is not UTF-8 as a whole would decode to a replacement character for each. With another
    character of one byte in their place, the text is as long as its tokens make it, and the rest of it is the same.
    """
    letter = next(token for token, byte in known.items() if byte == ord("A"))
    ids = [letter if token in known else token for token in ids]
    return len(tokenizer.decode(ids, skip_special_tokens=True).encode())


def replacement_bytes(tokenizer: Any, ids: Sequence[int]) -> int:
    """Return how many bytes byte-level BPE adds to a text by decoding what is no character; 0 for other tokenizers.

    Tokens of such a tokenizer spell their bytes in an alphabet of 256 characters; added tokens are text. What they
    spell is only believed if it is the decoded text.
    """
    values = byte_values()
    tokens = tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)
    spelt = (bytes(values[char] for char in one) if values.keys() >= set(one) else one.encode() for one in tokens)
    raw = b"".join(spelt)
    replaced = raw.decode(errors="replace")
    as_spelt = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(replaced.encode()) - len(raw) if replaced == as_spelt else 0


@cache
def byte_values() -> dict[str, int]:
    """Return the byte that each character of the byte-level alphabet stands for.

    Characters of Latin-1 stand for their own byte; those above it, in order, for the bytes that are left.
    """
    alphabet = sorted(ByteLevel.alphabet())
    own = {char: ord(char) for char in alphabet if ord(char) < 256}
    left = sorted(set(range(256)) - set(own.values()))
    return own | dict(zip(alphabet[len(own) :], left, strict=True))


def segment_losses(packed: PackedModel, batch: MicroBatch, passes: Sequence[MicroBatch]) -> list[float]:
    """Return the summed loss of each segment of a micro batch, 0 for those without a trained token."""
    if packed.isolation is not Isolation.ONE_A_ROW:
        (only,) = passes
        ends = np.cumsum(batch.segments)
        return sums_by(np.searchsorted(ends, target_places(only), side="right"), packed.token_losses(only), len(ends))
    of_rows: list[float] = []
    for part in passes:
        rows = target_places(part) // part.input_ids.shape[1]
        of_rows += sums_by(rows, packed.token_losses(part), len(part.input_ids))
    # one_document_a_row leaves out what has no trained token, and sorts the others by length, the longest first
    masks = torch.split(batch.loss_mask.flatten(), batch.segments)
    order = sorted((n for n, mask in enumerate(masks) if mask.any()), key=lambda n: -batch.segments[n])
    sums = dict(zip(order, of_rows, strict=False))  # passes that only keep other ranks company come last
    return [sums.get(number, 0.0) for number in range(len(batch.segments))]


def target_places(batch: MicroBatch) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return where the trained tokens lie in the flattened rows."""
    return (batch.trained.places + 1).numpy()


def sums_by(groups: np.ndarray[Any, Any], losses: torch.Tensor, count: int) -> list[float]:
    """Return the sum of the losses of each group, in fp64."""
    return np.bincount(groups, weights=losses.double().cpu().numpy(), minlength=count).tolist()  # type: ignore[no-any-return]


def merged(parts: Iterable[Mapping[Key, DocumentScore]]) -> Scores:
    """Return the scores of all ranks, documents in order."""
    scores: Scores = {}
    for part in parts:
        for key, score in part.items():
            scores[key] = scores[key] + score if key in scores else score
    return dict(sorted(scores.items()))


def summary(scores: Mapping[Key, DocumentScore]) -> dict[str, float]:
    """Return the pooled loss in nats per token, perplexity and bits per byte, and the mean over documents."""
    nats, tokens, size = (
        sum(getattr(score, name) for score in scores.values()) for name in ("nats", "tokens", "bytes")
    )
    loss = nats / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / max(1, size),
        "document_loss": float(np.mean([score.nats / score.tokens for score in scores.values()])),
    }
