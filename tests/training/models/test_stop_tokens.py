"""Which tokens end an answer."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from data_prep.encode.tokenizer import train_tokenizer
from training.models.stop_tokens import stop_token_ids


def test_running_text_ends_with_the_end_of_a_text(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert stop_token_ids(tokenizer) == [tokenizer.eos_token_id]


def test_an_answer_in_chatml_ends_with_the_end_of_its_turn_too() -> None:
    tokenizer = train_tokenizer(["what the assistant says", "answer"], vocab_size=300)
    assert stop_token_ids(tokenizer) == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_an_end_of_turn_that_is_the_end_of_the_text_is_named_once() -> None:
    tokenizer = train_tokenizer(["what the assistant says", "answer"], vocab_size=300)
    tokenizer.eos_token = "<|im_end|>"
    assert stop_token_ids(tokenizer) == [tokenizer.eos_token_id]


def test_ordinary_words_after_an_answer_are_no_stop(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    assert stop_token_ids(tokenizer) == [tokenizer.eos_token_id]
