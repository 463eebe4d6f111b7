"""Which tokens end an answer, and which ids are used whatever the rows hold."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

ANSWER = "answer"


def stop_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: the end of a text, and what the template puts after an assistant's words."""
    found = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    _, said, rest = answered_text(tokenizer).rpartition(ANSWER)
    if said:
        after = tokenizer.encode(rest, add_special_tokens=False)
        # all_special_ids would not do: transformers lists only tokens with a named role there
        found += [token for token in after[:1] if token in tokenizer.added_tokens_decoder and token not in found]
    return found


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of the tokens with a role, and of the template's own words."""
    with_role = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return with_role | {*tokenizer.encode(answered_text(tokenizer), add_special_tokens=False)}


def answered_text(tokenizer: Any) -> str:
    """Return a question and its answer as the chat template writes them; empty if it does not."""
    if not tokenizer.chat_template:
        return ""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": ANSWER}]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError:  # one that wants more than this: rows of running text need no template
        return ""
