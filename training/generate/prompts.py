"""Turn a prompt or a conversation into the ids that a model continues.

What people say is read in the form that `prepare` gives texts by default: lines and pages end with a line feed, quotes
of Windows-1252 that were read as Latin-1 are themselves, and Unicode is in its normal form NFC. Browsers, shells and
files send other forms of the same text, which have other ids.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from cluster.errors import DataError
from data_prep.shards.text_form import with_line_feeds, with_windows_characters

MAY_MARK = ("system", "assistant")
Message = Mapping[str, Any]  # as in OpenAI's API: {"role": "user", "content": "..."}


def prompt_ids(tokenizer: Any, prompt: str, *, as_chat: bool) -> list[int]:
    """Return a prompt's ids: with `as_chat` and a chat template, as a user's message that an answer follows."""
    if as_chat and tokenizer.chat_template:
        return conversation_ids(tokenizer, [{"role": "user", "content": prompt}])
    text = as_prepared(prompt)
    ids: list[int] = tokenizer.encode(text, verbose=False)  # a prompt that is too long is told by `answers.room`
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def conversation_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation, up to where the assistant's next answer begins.

    Raises DataError if there is no chat template, if it refuses the conversation, if it leaves out what the system or
    the user says, or if a message holds a special token: it would end its turn, or begin one of somebody else.
    """
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template, so the model continues text; give it one text as a prompt")
    if not messages or messages[-1].get("role") == "assistant":
        raise DataError("a conversation to answer ends with a user's message; remove the assistant's last one")
    messages = [{**message, "content": as_prepared(message["content"])} for message in messages]
    try:
        check_no_special_token(tokenizer, messages)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the model's chat template refuses the conversation: {error}") from None
    for message in messages:
        check_said(text, message)
    # the template writes the special tokens itself: the tokenizer's own would put the first one twice
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def check_no_special_token(tokenizer: Any, messages: Sequence[Message]) -> None:
    """Raise DataError if a message holds one that `prepare` rejects there.

    The system and the assistant may write those that are not of turns, such as `<tool_call>` in some tokenizers.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for message in messages:
        found = [token for token in special if token.strip() and token in message["content"]]
        if found and message["role"] in MAY_MARK:
            around = around_turns(tokenizer, messages)
            found = [token for token in found if token in around]
        if found:
            raise DataError(
                f"what the {message['role']} says holds {found[0]!r}, a special token of the model, which would end or"
                " begin a turn; remove it"
            )


def around_turns(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return what the template writes around these messages and an answer, and the token that ends one."""
    blank = [{**message, "content": "."} for message in messages]
    text = tokenizer.apply_chat_template([*blank, {"role": "assistant", "content": "."}], tokenize=False)
    return f"{text}{tokenizer.eos_token or ''}"


def as_prepared(text: str) -> str:
    """Return a text in the form of the texts that a model is trained on."""
    return unicodedata.normalize("NFC", with_line_feeds(with_windows_characters(text)))


def check_said(text: str, message: Message) -> None:
    """Raise DataError unless the text has what the system or the user says, plain or escaped as in JSON."""
    said = message.get("content")
    if message.get("role") not in ("system", "user") or not isinstance(said, str):
        return
    said = said.strip()
    if said not in text and json.dumps(said, ensure_ascii=False)[1:-1] not in text:
        raise DataError(f"the model's chat template leaves out what the {message['role']} says: {said[:60]!r}")
