"""The text of an answer: whole, streamed or served it is the same, wherever its tokens end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_prep.encode.tokenizer import train_tokenizer
from training.generate.answers import Stops, answer, finished
from training.generate.loading import load_export
from training.generate.sampling import Sampling
from training.generate.streaming import ContinuingStreamer, stream
from training.generate.token_text import GrowingText, byte_tokens, decoded
from training.serve.answer_text import AnswerText

SAID = "你好世界再见😀、我们很高兴认识你👋🏽。"
NO_STOPS = Stops(ids=[], texts=[])


def stories_folder() -> Path:
    """Return the folder of a small model whose tokenizer has byte tokens, as that of Llama 2 has."""
    folder = os.environ.get("SHARDLINE_TEST_DATA")
    if not folder:
        pytest.skip("set SHARDLINE_TEST_DATA to a folder with the model stories260k/")
    return Path(folder) / "stories260k"


@cache
def opened(kind: str) -> Any:
    return AutoTokenizer.from_pretrained(stories_folder()) if kind == "stories" else train_tokenizer(["a 你好"], 270)


def encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def bytes_as_ids(tokenizer: Any, values: bytes) -> list[int]:
    ids = {byte: token for token, byte in byte_tokens(tokenizer).items()}
    return [ids[value] for value in values]


def streamed(tokenizer: Any, before: Sequence[int], new: Sequence[int]) -> list[str]:
    streamer = ContinuingStreamer(tokenizer)
    streamer.put(torch.tensor([before]))
    for token in new:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return list(streamer)


def served(tokenizer: Any, before: Sequence[int], new: Sequence[int]) -> list[str]:
    text = AnswerText(tokenizer, before, [], strip=False)
    return [*(text.add([token]) for token in new), text.rest()]


def on_all_ways(tokenizer: Any, before: Sequence[int], new: Sequence[int]) -> tuple[str, str, str]:
    """Return the text of an answer whole, streamed and served."""
    whole = finished(tokenizer, before, list(new), NO_STOPS).raw
    return whole, "".join(streamed(tokenizer, before, new)), "".join(served(tokenizer, before, new))


def same_text(tokenizer: Any, before: Sequence[int], new: Sequence[int]) -> str:
    """Return the text of an answer, which is the same on all ways."""
    (text,) = {*on_all_ways(tokenizer, before, new)}
    return text


@contextmanager
def saying(model: Any, said: Sequence[int], prompt_tokens: int) -> Iterator[None]:
    """Let a model answer with these tokens."""

    def choose(module: Any, args: Any, output: Any) -> None:
        place = output.past_key_values.get_seq_length() - prompt_tokens
        output.logits[:, -1, said[place]] = 1e9

    hook = model.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def test_only_the_character_that_the_token_limit_cuts_is_missing() -> None:
    tokenizer = opened("stories")
    before, ids, values = encoded(tokenizer, "Hello"), encoded(tokenizer, SAID), f" {SAID}".encode()
    assert len(ids) == len(values) > 55  # each token is a byte
    for tokens in range(1, len(ids) + 1):
        assert same_text(tokenizer, before, ids[:tokens]) == values[:tokens].decode(errors="ignore")


def test_a_byte_level_answer_is_the_same_on_all_ways_at_every_token_limit() -> None:
    tokenizer = opened("byte level")
    before, ids = encoded(tokenizer, "a"), encoded(tokenizer, SAID * 2)
    assert len(ids) > 60 and not byte_tokens(tokenizer)
    for tokens in range(1, len(ids) + 1):
        assert same_text(tokenizer, before, ids[:tokens]) == tokenizer.decode(ids[:tokens])


@pytest.mark.parametrize("kind", ["stories", "byte level"])
def test_an_answer_and_its_stream_are_what_the_model_said_at_every_token_limit(kind: str, tiny_model: Path) -> None:
    model, tokenizer = load_export(stories_folder() if kind == "stories" else tiny_model)
    prompt, said = encoded(tokenizer, "再"), encoded(tokenizer, SAID)
    for tokens in (2, 31, 32, 33, 50):
        sampling = Sampling(tokens=tokens)
        with saying(model, said, len(prompt)):
            whole, pieces = answer(model, tokenizer, prompt, sampling), stream(model, tokenizer, prompt, sampling)
            assert "".join(pieces) == whole.raw
        assert pieces.answer == whole
        assert whole.raw == same_text(tokenizer, prompt, said[:tokens])
        assert whole.tokens == tokens


@pytest.mark.parametrize("kind", ["stories", "byte level"])
@given(data=st.data())
def test_any_tokens_have_the_same_text_on_all_ways(kind: str, data: st.DataObject) -> None:
    tokenizer = opened(kind)
    parts = (
        bytes_as_ids(tokenizer, b"\n A\0\xe4\xbd\xa0\xf0\x9f\xff") if kind == "stories" else encoded(tokenizer, "你😀")
    )
    some = st.lists(st.sampled_from(parts) | st.integers(3, 265), min_size=1, max_size=100)
    assert len({*on_all_ways(tokenizer, data.draw(some), data.draw(some))}) == 1


@given(before=st.text(), text=st.text())
def test_the_text_after_a_prompt_is_the_text_that_was_encoded(before: str, text: str) -> None:
    tokenizer = opened("stories")
    assert same_text(tokenizer, encoded(tokenizer, f"Hi{before}"), encoded(tokenizer, text)) == (text and f" {text}")


def test_a_prompt_that_ends_within_a_run_of_bytes_leaves_the_answer_whole() -> None:
    tokenizer = opened("stories")
    prompt, new = encoded(tokenizer, "Translate: 你"), bytes_as_ids(tokenizer, "好世界".encode())
    assert same_text(tokenizer, prompt, new) == decoded(tokenizer, prompt, new) == "好世界"
    stopped = finished(tokenizer, prompt, new, Stops(ids=[], texts=["世"]))
    assert (stopped.raw, stopped.stopped) == ("好", True)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"\xe4\xbd\xa0\xff\xe5\xa5\xbd", "你\ufffd好"),
        (b"\xe4\xbd\xe5\xa5\xbd", "\ufffd\ufffd好"),
        (b"\xe4\x00", "\ufffd\x00"),
        (b"\xed\xa0\x80a", "\ufffd\ufffd\ufffda"),
        (b"\xe4\xbd\xa0\xe4\xbd", "你"),
        (b"\xe4\xbd\xa0\xa0", "你\ufffd"),
    ],
)
def test_a_byte_that_is_no_text_is_replaced_and_the_characters_beside_it_are_kept(said: bytes, text: str) -> None:
    tokenizer = opened("stories")
    ids = bytes_as_ids(tokenizer, said)
    assert same_text(tokenizer, encoded(tokenizer, "Hello"), ids) == text
    after = encoded(tokenizer, "word")
    assert same_text(tokenizer, ids, after) == " word"


def test_a_long_run_of_bytes_streams_and_is_not_decoded_again_and_again() -> None:
    tokenizer = opened("stories")
    text, longest = GrowingText(tokenizer, [5]), 0
    for token in encoded(tokenizer, SAID * 20):
        last = text.add([token])
        longest = max(longest, len(text.new))
    assert last == f" {SAID * 20}"
    assert longest <= 35
    pieces = [piece for piece in served(tokenizer, [5], encoded(tokenizer, SAID * 3)) if piece]
    assert pieces == list(f" {SAID * 3}")


def test_a_space_after_a_special_token_is_kept_wherever_the_token_is() -> None:
    tokenizer = opened("stories")
    word = encoded(tokenizer, "a")
    new = [*word, tokenizer.bos_token_id] * 40  # each second place has one
    assert len(word) == 1
    assert same_text(tokenizer, word, new) == same_text(tokenizer, word, [*word, *new])[2:] == " a" * 40


@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_that_stops_an_answer_is_not_in_its_text(tiny_model: Path, special: bool) -> None:
    model, tokenizer = load_export(tiny_model)
    tokenizer.add_tokens(["<end>"], special_tokens=special)
    model.resize_token_embeddings(len(tokenizer))
    prompt, said, sampling = encoded(tokenizer, "a run"), encoded(tokenizer, "Yes <end>"), Sampling(stop=["<end>"])
    with saying(model, said, len(prompt)):
        whole, pieces = answer(model, tokenizer, prompt, sampling), stream(model, tokenizer, prompt, sampling)
        assert "".join(pieces) == whole.raw
    assert pieces.answer == whole
    assert (whole.text, whole.stopped, whole.tokens) == ("Yes", True, len(said))
    assert whole.raw == "".join(served(tokenizer, prompt, said[:-1]))
