"""Prompts from held-out documents, exactly as training would have seen them: ids from the shards, not text again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.shards import ShardReader

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

TEXT_PROMPT_TOKENS = 32  # length of the prompt taken from a document that is not a conversation
ROWS_PER_PROMPT = 4  # rows looked at for each prompt that is wanted, as some have none


@dataclass(frozen=True, kw_only=True)
class HeldOutPrompt:
    """A held-out prompt and its continuation in the document, as ids.

    `is_single`: the continuation is all that is trained of the document, as in a pair.
    """

    prompt: list[int]
    reference: list[int]
    is_single: bool = False


@dataclass(frozen=True)
class Document:
    """The ids [tokens] of a document that begins in a row, and where its answers begin and end; of a text, the rest."""

    ids: Ids
    answers: list[tuple[int, int]]
    is_single: bool

    def prompt(self, answer: tuple[int, int]) -> HeldOutPrompt:
        start, stop = answer
        ids = self.ids.tolist()
        return HeldOutPrompt(prompt=ids[:start], reference=ids[start:stop], is_single=self.is_single)


def held_out_prompts(reader: ShardReader, conversational: bool, wanted: int, reply_tokens: int) -> list[HeldOutPrompt]:
    """Return up to `wanted` prompts from rows spread evenly over the split, the first document of each row first.

    Each document gives one: of a conversation, what precedes one of its answers, which is the reference; of a text, its
    first tokens. The later part of a conversation that was cut gives none, as its prompt is elsewhere. Where they can
    be chosen, prompts leave `reply_tokens` of a row's length for a reply.
    """
    count = min(len(reader), wanted * ROWS_PER_PROMPT)
    rows = [number * len(reader) // count for number in range(count)]
    rounds = [list(documents_of_row(reader, row, conversational)) for row in spread(rows)]
    documents: list[Document] = []
    for depth in range(max(map(len, rounds), default=0)):
        documents += [those[depth] for those in rounds if depth < len(those)]
        if len(documents) >= wanted:
            break
    return one_of_each(documents[:wanted], reader.row_tokens - reply_tokens)


def one_of_each(documents: list[Document], longest: int) -> list[HeldOutPrompt]:
    """Return one prompt of each document: its last, of the next one the last but one, and so on, in turn.

    Prompts of more than `longest` tokens are passed over, and such as an earlier document gave, while there are others:
    conversations that all open with the assistant's greeting would else be judged by it.
    """
    seen: set[bytes] = set()
    found = []
    for number, document in enumerate(documents):
        answers = [one for one in document.answers if one[0] <= longest] or document.answers[:1]
        turn = len(answers) - 1 - number % len(answers)
        in_turn = [*answers[turn:], *answers[:turn]]
        chosen = next((one for one in in_turn if document.ids[: one[0]].tobytes() not in seen), in_turn[0])
        seen.add(document.ids[: chosen[0]].tobytes())
        found.append(document.prompt(chosen))
    return found


def spread(rows: list[int]) -> list[int]:
    """Return rows so that any first few of them are spread over all."""
    return [row for start in range(ROWS_PER_PROMPT) for row in rows[start::ROWS_PER_PROMPT]]


def documents_of_row(reader: ShardReader, row: int, conversational: bool) -> Iterator[Document]:
    """Yield the documents of a row that have an answer with something before it."""
    arrays = reader.rows([row])
    end = 0
    for piece in reader.pieces(row):
        begin, end = end, end + piece.tokens
        if conversational and piece.start > 0:  # a later part of a long conversation, without its prompt
            continue
        ids = arrays.input_ids[0, begin:end].astype(np.int32)
        spans = answers_in(arrays.loss_mask[0, begin:end]) if conversational else [(TEXT_PROMPT_TOKENS, len(ids))]
        is_single = conversational and len(spans) == 1
        if len(spans) > 1 and spans[-1][1] == reader.row_tokens:  # it may have been cut there
            spans.pop()
        if spans := [(start, stop) for start, stop in spans if 0 < start < stop]:
            yield Document(ids, spans, is_single)


def answers_in(mask: Mask) -> list[tuple[int, int]]:
    """Return where each run of trained tokens begins and ends, of a document's loss mask [tokens]."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
