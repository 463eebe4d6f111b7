"""Which tokens end an answer."""

from __future__ import annotations

from typing import Any

ANSWER = "answer"


def stop_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: the end of a text, and what the template puts after an assistant's words."""
    found = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": ANSWER}]
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
        after = tokenizer.encode(text[text.rindex(ANSWER) + len(ANSWER) :], add_special_tokens=False)
        # all_special_ids would not do: transformers lists only tokens with a named role there
        found += [token for token in after[:1] if token in tokenizer.added_tokens_decoder and token not in found]
    return found
