"""Turn a prompt or a conversation into the ids that a model continues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from cluster.errors import DataError

Message = Mapping[str, Any]  # as in OpenAI's API: {"role": "user", "content": "..."}


def prompt_ids(tokenizer: Any, prompt: str, *, as_chat: bool) -> list[int]:
    """Return a prompt's ids: with `as_chat` and a chat template, as a user's message that an answer follows."""
    if as_chat and tokenizer.chat_template:
        return conversation_ids(tokenizer, [{"role": "user", "content": prompt}])
    ids: list[int] = tokenizer.encode(prompt, verbose=False)  # a prompt that is too long is told by `answers.room`
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def conversation_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation, up to where the assistant's next answer begins.

    Raises DataError if there is no chat template, if it refuses the conversation, or if it leaves out what the system
    or the user says.
    """
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template, so the model continues text; give it one text as a prompt")
    if not messages or messages[-1].get("role") == "assistant":
        raise DataError("a conversation to answer ends with a user's message; remove the assistant's last one")
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the model's chat template refuses the conversation: {error}") from None
    for message in messages:
        check_said(text, message)
    # the template writes the special tokens itself: the tokenizer's own would put the first one twice
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def check_said(text: str, message: Message) -> None:
    """Raise DataError unless the text has what the system or the user says, plain or escaped as in JSON."""
    said = message.get("content")
    if message.get("role") not in ("system", "user") or not isinstance(said, str):
        return
    said = said.strip()
    if said not in text and json.dumps(said, ensure_ascii=False)[1:-1] not in text:
        raise DataError(f"the model's chat template leaves out what the {message['role']} says: {said[:60]!r}")
