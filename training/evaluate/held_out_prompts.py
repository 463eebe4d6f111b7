"""Prompts from held-out documents, exactly as training would have seen them: ids from the shards, not text again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.shards import ShardReader

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


def held_out_prompts(reader: ShardReader, conversational: bool, wanted: int) -> list[HeldOutPrompt]:
    """Return up to `wanted` prompts from rows spread evenly over the split, the first document of each row first.

    Of a conversation, the prompt is what precedes its first trained tokens, and these are the reference; of a text, its
    first tokens are the prompt. The later part of a conversation that was cut gives none, as its prompt is elsewhere.
    """
    count = min(len(reader), wanted * ROWS_PER_PROMPT)
    rows = [number * len(reader) // count for number in range(count)]
    rounds = [list(prompts_of_row(reader, row, conversational)) for row in spread(rows)]
    found: list[HeldOutPrompt] = []
    for depth in range(max(map(len, rounds), default=0)):
        found += [prompts[depth] for prompts in rounds if depth < len(prompts)]
        if len(found) >= wanted:
            break
    return found[:wanted]


def spread(rows: list[int]) -> list[int]:
    """Return rows so that any first few of them are spread over all."""
    return [row for start in range(ROWS_PER_PROMPT) for row in rows[start::ROWS_PER_PROMPT]]


def prompts_of_row(reader: ShardReader, row: int, conversational: bool) -> Iterator[HeldOutPrompt]:
    """Yield a prompt for each document of a row."""
    arrays = reader.rows([row])
    end = 0
    for piece in reader.pieces(row):
        begin, end = end, end + piece.tokens
        if conversational and piece.start > 0:  # a later part of a long conversation, without its prompt
            continue
        ids, mask = arrays.input_ids[0, begin:end].tolist(), arrays.loss_mask[0, begin:end].tolist()
        first = mask.index(True) if conversational and True in mask else TEXT_PROMPT_TOKENS
        stop = next((place for place in range(first, len(ids)) if not mask[place]), len(ids))
        if 0 < first < stop:
            single = conversational and not any(mask[stop:])
            yield HeldOutPrompt(prompt=ids[:first], reference=ids[first:stop], is_single=single)
