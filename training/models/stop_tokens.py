"""Which tokens end an answer, and which ids a model needs embeddings for, whatever the rows hold."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

ANSWER = "answer"


def stop_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: the end-of-text token, and the template's token after an assistant's turn."""
    found = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    _, said, rest = answered_text(tokenizer).rpartition(ANSWER)
    if said:
        after = tokenizer.encode(rest, add_special_tokens=False)
        # not all_special_ids: transformers lists only tokens with a named role there
        found += [token for token in after[:1] if token in tokenizer.added_tokens_decoder and token not in found]
    return found


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of the tokens with a role (begin, end, padding), and those that the chat template writes."""
    with_role = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return with_role | {*tokenizer.encode(answered_text(tokenizer), add_special_tokens=False)}


def answered_text(tokenizer: Any) -> str:
    """Return a question and its answer as the chat template renders them; empty if there is none or it fails."""
    if not tokenizer.chat_template:
        return ""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": ANSWER}]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError:  # the template needs more than this; rows of plain text do not use it
        return ""
