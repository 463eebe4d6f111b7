"""Turn a prompt or a conversation into the ids that a model continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]  # as in OpenAI's API: {"role": "user", "content": "..."}


def prompt_ids(tokenizer: Any, prompt: str, *, as_chat: bool) -> list[int]:
    """Return a prompt's ids: with `as_chat` and a chat template, as a user's message that an answer follows."""
    if as_chat and tokenizer.chat_template:
        return conversation_ids(tokenizer, [{"role": "user", "content": prompt}])
    ids: list[int] = tokenizer.encode(prompt)
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def conversation_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation, up to where the assistant's next answer begins."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))
