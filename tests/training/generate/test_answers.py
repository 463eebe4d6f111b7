"""Answers: streamed or whole, alone or in a batch, they are the same; and only our settings choose the tokens."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cluster.errors import DataError
from data_prep.encode.tokenizer import train_tokenizer
from training.generate import loading
from training.generate.answers import answer
from training.generate.batching import answers, padding_changes_nothing, plan_batches
from training.generate.loading import load_export, load_model
from training.generate.prompts import conversation_ids, prompt_ids
from training.generate.sampling import Sampling
from training.generate.streaming import ContinuingStreamer, stream

GREEDY = Sampling(tokens=24)
PROMPTS = ["Once upon a time", "A", "Lily and Tom went to the big park and saw a", "The dog"]


@pytest.fixture(scope="module")
def stories() -> tuple[Any, Any]:
    """Return a small real model and its tokenizer."""
    folder = os.environ.get("SHARDLINE_TEST_DATA")
    if not folder:
        pytest.skip("set SHARDLINE_TEST_DATA to a folder with the model stories260k/")
    return load_export(Path(folder) / "stories260k")


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> tuple[Any, Any]:
    """Return a model of random weights, which says bytes that are no text."""
    return load_export(tiny_model)


@pytest.mark.parametrize("model", ["stories", "tiny"])
@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(tokens=24, temperature=1.0, seed=3),
        Sampling(tokens=24, repetition_penalty=1.3),
        Sampling(tokens=24, stop=["re was a", "\ufffd"]),
        Sampling(tokens=40, stop=["."]),
        Sampling(tokens=24, temperature=0.9, top_p=0.9, top_k=20, seed=5, stop=["th", "e"]),
    ],
    ids=str,
)
def test_the_pieces_of_a_stream_are_the_answer(request: pytest.FixtureRequest, model: str, sampling: Sampling) -> None:
    model, tokenizer = request.getfixturevalue(model)
    for prompt in PROMPTS:
        ids = prompt_ids(tokenizer, prompt, as_chat=False)
        whole, pieces = answer(model, tokenizer, ids, sampling), stream(model, tokenizer, ids, sampling)
        assert "".join(pieces) == whole.raw
        assert pieces.answer == whole
        assert not any(stop in whole.raw for stop in sampling.stop)


@cache
def byte_tokenizer() -> Any:
    return train_tokenizer(["a run 你好"], 270)


@given(text=st.text(max_size=40))
def test_a_streamed_text_has_whole_characters_only(text: str) -> None:
    tokenizer = byte_tokenizer()
    streamer = ContinuingStreamer(tokenizer)
    streamer.put(torch.tensor([tokenizer.encode("x")]))
    for token in tokenizer.encode(text):
        streamer.put(torch.tensor([token]))
    streamer.end()
    pieces = list(streamer)
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text))
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_batch_has_the_answers_that_each_prompt_gets_alone(stories: tuple[Any, Any]) -> None:
    model, tokenizer = stories
    ids = [prompt_ids(tokenizer, prompt, as_chat=False) for prompt in PROMPTS]
    for sampling in (GREEDY, Sampling(tokens=24, stop=["a", "."]), Sampling(tokens=24, repetition_penalty=1.5)):
        plan = plan_batches(model, tokenizer, ids, sampling, size=3)
        assert len(plan) == (4 if sampling.repetition_penalty > 1 else 2)  # it would count the padding as text
        found = dict(answers(model, tokenizer, ids, sampling, plan))
        assert [found[place] for place in range(4)] == [answer(model, tokenizer, own, sampling) for own in ids]


def test_a_long_prompt_takes_no_room_from_the_others_of_its_batch(stories: tuple[Any, Any]) -> None:
    model, tokenizer = stories
    ids = [[1, 403, 407], [1, *[403] * 499]]
    sampling = Sampling(tokens=40)
    assert plan_batches(model, tokenizer, ids, sampling, size=8) == [[0], [1]]
    assert [a.tokens for _, a in answers(model, tokenizer, ids, sampling, [[0], [1]])] == [40, 12]
    with pytest.raises(DataError, match="the prompt has 512 tokens, and the model sees 512"):
        plan_batches(model, tokenizer, [[403] * 512], sampling, size=8)


def test_a_model_that_does_not_follow_the_mask_gets_no_padding(stories: tuple[Any, Any]) -> None:
    model, tokenizer = stories
    short, long = [1, 403, 407], [1, *range(300, 340)]
    assert padding_changes_nothing(model, tokenizer, short, long, GREEDY)

    def forget_mask(module: Any, given: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return given, {**settings, "attention_mask": None, "position_ids": None}

    hook = model.register_forward_pre_hook(forget_mask, with_kwargs=True)
    try:
        assert not padding_changes_nothing(model, tokenizer, short, long, GREEDY)
    finally:
        hook.remove()


def test_a_model_s_own_sampling_settings_are_not_used(tiny_model: Path, tmp_path: Path, tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    own = GenerationConfig(
        do_sample=True, temperature=5.0, max_length=9, repetition_penalty=9.0, num_beams=3, no_repeat_ngram_size=1,
        suppress_tokens=list(range(200)), min_new_tokens=30, eos_token_id=1,
    )  # fmt: skip
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    own.save_pretrained(tmp_path)
    for sampling in (GREEDY, Sampling(tokens=24, temperature=0.7, seed=1)):
        assert answer(load_model(tmp_path), tokenizer, [5, 6], sampling) == answer(model, tokenizer, [5, 6], sampling)


def test_each_sampling_option_changes_what_is_drawn(stories: tuple[Any, Any]) -> None:
    model, tokenizer = stories
    settings: list[dict[str, Any]] = [{}, {"top_p": 0.3}, {"top_k": 2}, {"repetition_penalty": 2.0}, {"seed": 4}]
    settings += [{"temperature": 0.4}]
    drawn = {
        answer(model, tokenizer, [1, 403], Sampling(**{"tokens": 40, "temperature": 1.5, "seed": 3, **changes})).text
        for changes in settings
    }
    assert len(drawn) == len(settings)


def test_the_stop_tokens_of_the_generation_settings_end_an_answer(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    first = answer(model, tokenizer, [5, 6], Sampling(tokens=1))
    token = int(model.generate(torch.tensor([[5, 6]]), max_new_tokens=1)[0, -1])
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [before, token]
    try:
        assert answer(model, tokenizer, [5, 6], GREEDY).stopped
        assert answer(model, tokenizer, [5, 6], GREEDY).tokens == 1
    finally:
        model.generation_config.eos_token_id = before
    assert not first.stopped


def test_a_special_token_among_the_stop_texts_ends_an_answer(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    with torch.no_grad():
        head = model.lm_head.weight.clone()
        model.lm_head.weight[tokenizer.bos_token_id] = head.abs().sum(0) * torch.sign(
            model.model(torch.tensor([[5, 6]]))[0][0, -1]
        )
    try:
        assert not answer(model, tokenizer, [5, 6], GREEDY).stopped
        assert answer(model, tokenizer, [5, 6], Sampling(tokens=24, stop=["<s>"])).tokens == 1
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(head)


def test_a_reader_who_leaves_ends_the_generation(stories: tuple[Any, Any]) -> None:
    model, tokenizer = stories
    is_known, steps = threading.Event(), count()

    def wait_for_the_reader(*_: Any) -> None:
        if next(steps) == 100:  # on a busy machine it would be at the end before the reader leaves
            assert is_known.wait(60) and pieces.left.wait(60)

    hook = model.register_forward_pre_hook(wait_for_the_reader)
    try:
        pieces = stream(model, tokenizer, [1, 403], Sampling(tokens=500))
        is_known.set()
        first = next(pieces)
        pieces.close()
    finally:
        hook.remove()
    assert not pieces.thread.is_alive()
    assert pieces.answer is not None
    assert pieces.answer.raw.startswith(first)
    assert pieces.answer.tokens < 400
    assert not [thread for thread in threading.enumerate() if thread.name == "generate"]


def test_an_error_of_the_generation_reaches_the_reader(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    with pytest.raises(IndexError):
        list(stream(model, tokenizer, [5, 10**6], GREEDY))


def test_a_conversation_begins_with_one_begin_token(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.add_bos_token = True
    ids = conversation_ids(tokenizer, [{"role": "user", "content": "a run"}])
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_prompt_is_read_in_the_form_of_prepared_texts(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    prepared, sent = "caf\u00e9\ntwo\nit\u2019s\n a b", "cafe\u0301\r\ntwo\x0bit\x92s\x0c a\x1fb"
    assert prompt_ids(tokenizer, sent, as_chat=False) == prompt_ids(tokenizer, prepared, as_chat=False)
    as_said = [conversation_ids(tokenizer, [{"role": "user", "content": text}]) for text in (sent, prepared)]
    assert as_said[0] == as_said[1]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no system') }}", "refuses the conversation: no system"),
        ("{{ messages[-1].content }}", "leaves out what the system says: 'be brief'"),
        ("{{ messages[0].content }}", "leaves out what the user says: 'hello'"),
        (None, "no chat template"),
    ],
)
def test_a_conversation_that_the_template_cannot_say_is_refused(
    tiny_model: Path, template: str | None, words: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    with pytest.raises(DataError, match=words):
        conversation_ids(tokenizer, said)


@pytest.mark.parametrize("call", [answer, stream])
def test_an_empty_prompt_is_refused(tiny: tuple[Any, Any], call: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="the prompt is empty"):
        call(*tiny, [], GREEDY)


@pytest.mark.parametrize(
    ("role", "token", "is_refused"),
    [
        ("system", "<mark>", False),
        ("system", "<turn>", True),
        ("system", "</s>", True),
        ("assistant", "<mark>", False),
        ("user", "<mark>", True),
        ("user", "<turn>", True),
    ],
)
def test_only_who_may_write_a_special_token_in_training_may_write_it_in_a_prompt(
    tiny_model: Path, role: str, token: str, is_refused: bool
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<mark>", "<turn>"], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}<turn>{{ m.role }} {{ m.content }}\n{% endfor %}"
    said = {one: f"a{token}b" if one == role else "a run" for one in ("system", "user", "assistant")}
    messages = [{"role": one, "content": said[one]} for one in ("system", "user", "assistant")]
    messages.append({"role": "user", "content": "go"})
    if is_refused:
        with pytest.raises(DataError, match=f"what the {role} says holds '{token}'"):
            conversation_ids(tokenizer, messages)
    else:
        assert tokenizer.convert_tokens_to_ids(token) in conversation_ids(tokenizer, messages)


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_an_export_of_16_bits_is_computed_in_what_the_cpu_is_quick_in(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(loading, "has_bf16", lambda: has_bf16)
    short = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    short.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.dtype == dtype
    assert all(
        torch.equal(mine, theirs.to(dtype)) for mine, theirs in zip(model.parameters(), short.parameters(), strict=True)
    )


def test_a_model_that_would_not_fit_in_fp32_stays_as_it_is(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "has_bf16", lambda: False)
    monkeypatch.setattr(loading, "free_memory_bytes", lambda: 1000)
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.bfloat16
