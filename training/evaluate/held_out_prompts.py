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

    Each document gives one: of a conversation, what precedes one of its answers, which is the reference; of a text, its
    first tokens. The later part of a conversation that was cut gives none, as its prompt is elsewhere.
    """
    count = min(len(reader), wanted * ROWS_PER_PROMPT)
    rows = [number * len(reader) // count for number in range(count)]
    rounds = [list(prompts_of_row(reader, row, conversational)) for row in spread(rows)]
    documents: list[list[HeldOutPrompt]] = []
    for depth in range(max(map(len, rounds), default=0)):
        documents += [prompts[depth] for prompts in rounds if depth < len(prompts)]
        if len(documents) >= wanted:
            break
    return one_of_each(documents[:wanted])


def one_of_each(documents: list[list[HeldOutPrompt]]) -> list[HeldOutPrompt]:
    """Return one prompt of each document: its last, of the next one the last but one, and so on, in turn.

    A prompt that an earlier document gave is passed over while there is another: conversations that all open with the
    assistant's greeting would else be judged by it.
    """
    seen: set[tuple[int, ...]] = set()
    found = []
    for number, prompts in enumerate(documents):
        turn = len(prompts) - 1 - number % len(prompts)
        in_turn = [*prompts[turn:], *prompts[:turn]]
        found.append(next((one for one in in_turn if tuple(one.prompt) not in seen), in_turn[0]))
        seen.add(tuple(found[-1].prompt))
    return found


def spread(rows: list[int]) -> list[int]:
    """Return rows so that any first few of them are spread over all."""
    return [row for start in range(ROWS_PER_PROMPT) for row in rows[start::ROWS_PER_PROMPT]]


def prompts_of_row(reader: ShardReader, row: int, conversational: bool) -> Iterator[list[HeldOutPrompt]]:
    """Yield the prompts of each document of a row that has any."""
    arrays = reader.rows([row])
    end = 0
    for piece in reader.pieces(row):
        begin, end = end, end + piece.tokens
        if conversational and piece.start > 0:  # a later part of a long conversation, without its prompt
            continue
        ids, mask = arrays.input_ids[0, begin:end].tolist(), arrays.loss_mask[0, begin:end].tolist()
        if conversational and True in mask:
            prompts = answers_in(ids, mask)
        else:
            prompts = [HeldOutPrompt(prompt=ids[:TEXT_PROMPT_TOKENS], reference=ids[TEXT_PROMPT_TOKENS:])]
        if prompts := [one for one in prompts if one.prompt and one.reference]:
            yield prompts


def answers_in(ids: list[int], mask: list[bool]) -> list[HeldOutPrompt]:
    """Return each run of trained tokens of a conversation, with all that precedes it as its prompt."""
    starts = [place for place, is_trained in enumerate(mask) if is_trained and not (place and mask[place - 1])]
    stops = [next((place for place in range(start, len(ids)) if not mask[place]), len(ids)) for start in starts]
    return [
        HeldOutPrompt(prompt=ids[:start], reference=ids[start:stop], is_single=len(starts) == 1)
        for start, stop in zip(starts, stops, strict=True)
    ]
