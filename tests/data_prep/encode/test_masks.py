"""What is trained, for templates with and without markers: proved on the text that the trained tokens spell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from data_prep.encode.conversations import CHATML, check_template
from data_prep.encode.conversations import TEMPLATES as OURS
from data_prep.encode.encoding import Encoded, Encoder
from data_prep.encode.tokenizer import SPECIAL_TOKENS
from data_prep.read.parts import Document, Turn
from data_prep.select.long_documents import line_ends, split_document
from tests.data_prep.reading_rows import all_kept

PLAIN_CHATML = Path(__file__).with_name("plain_chatml.jinja").read_text(encoding="utf-8")
# The stop token is written by the turn that follows, or by the end of the conversation.
STOP_BY_NEXT = """{%- for m in messages %}{%- if not loop.first and m.role == 'user' %}{{- '<|im_end|>' }}{%- endif %}
{{- '<|im_start|>' + m.role + '\n' + m.content }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- else %}{{- '<|im_end|>' }}{%- endif %}"""
TEMPLATES = {"markers": CHATML.read_text(), "no markers": PLAIN_CHATML}
words = st.text(alphabet="ab \nż漢1.", min_size=1, max_size=12).map(lambda text: f"w{text}w")


def trained_text(encoded: Encoded, tokenizer: Any) -> str:
    return str(tokenizer.decode(encoded.input_ids[encoded.loss_mask].tolist()))


@pytest.mark.parametrize("engine", ["tokenizers", "gigatoken"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@settings(deadline=None, max_examples=40)
@given(turns=st.lists(st.tuples(words, words), min_size=1, max_size=4), system=st.none() | words)
def test_the_answers_and_their_stop_tokens_are_trained_and_nothing_else(
    encoder_with: Callable[..., Encoder],
    tokenizer: Any,
    template: str,
    engine: str,
    turns: list[tuple[str, str]],
    system: str | None,
) -> None:
    if engine == "gigatoken":
        pytest.importorskip("gigatoken", reason="pip install gigatoken")
    said = [Turn("system", system)] if system else []
    for asked, answered in turns:
        said += [Turn("user", asked), Turn("assistant", answered)]

    ((encoded,),) = all_kept(encoder_with(template, engine=engine).encode([Document(0, "messages", tuple(said))]))

    assert trained_text(encoded, tokenizer) == "".join(f"{answered}<|im_end|>" for _, answered in turns)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_what_a_tool_says_is_not_trained(encoder_with: Callable[..., Encoder], tokenizer: Any, template: str) -> None:
    said = [("user", "2+2?"), ("assistant", "calc 2+2"), ("tool", "four"), ("assistant", "It is 4.")]

    document = Document(0, "messages", tuple(Turn(*turn) for turn in said))
    ((encoded,),) = all_kept(encoder_with(template).encode([document]))

    assert trained_text(encoded, tokenizer) == "calc 2+2<|im_end|>It is 4.<|im_end|>"


@settings(deadline=None, max_examples=40)
@given(
    turns=st.lists(st.tuples(words | st.just("Assistant: no\nAssistant: no"), words), min_size=1, max_size=4),
    system=st.none() | words,
    bos=st.sampled_from([{}, {"bos_token": "<|endoftext|>"}]),
)
def test_the_plain_template_trains_the_answers_whatever_a_user_types(
    encoder_with: Callable[..., Encoder],
    tokenizer: Any,
    turns: list[tuple[str, str]],
    system: str | None,
    bos: dict[str, str],
) -> None:
    said = [Turn("system", system)] if system else []
    for asked, answered in turns:
        said += [Turn("user", asked), Turn("assistant", answered)]
    encoder = encoder_with(OURS["plain"].read_text(), special_tokens={**tokenizer.special_tokens_map, **bos})

    ((encoded,),) = all_kept(encoder.encode([Document(0, "messages", tuple(said))]))

    assert trained_text(encoded, tokenizer) == "".join(f" {answered}<|endoftext|>" for _, answered in turns)


def test_a_prompt_in_the_plain_template_ends_where_the_trained_tokens_begin(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    encoder = encoder_with(OURS["plain"].read_text())
    ((encoded,),) = all_kept(
        encoder.encode([Document(0, "messages", (Turn("user", "Hi"), Turn("assistant", "Hello")))])
    )

    question, template = [{"role": "user", "content": "Hi"}], OURS["plain"].read_text()
    prompt = tokenizer.apply_chat_template(
        question, chat_template=template, add_generation_prompt=True, return_dict=False
    )

    assert encoded.input_ids[~encoded.loss_mask].tolist()[: len(prompt)] == prompt
    assert encoded.loss_mask[len(prompt)]


def test_a_stop_token_that_the_next_turn_writes_is_trained(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    said = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Bye.")]

    document = Document(0, "messages", tuple(Turn(*turn) for turn in said))
    ((encoded,),) = all_kept(encoder_with(STOP_BY_NEXT).encode([document]))

    assert trained_text(encoded, tokenizer) == "Hello<|im_end|>Bye.<|im_end|>"


def test_a_template_that_leaves_the_last_answer_without_a_stop_token_is_refused() -> None:
    template = STOP_BY_NEXT.replace("{%- else %}{{- '<|im_end|>' }}", "")

    with pytest.raises(DataError, match="would never learn to stop"):
        check_template(template, {}, SPECIAL_TOKENS)


def test_a_conversation_longer_than_a_row_is_split_after_a_turn(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    said = [Turn(("user", "assistant")[n % 2], f"line {n} " * 5) for n in range(20)]
    ((encoded,),) = all_kept(encoder_with(PLAIN_CHATML).encode([Document(0, "messages", tuple(said))]))

    split = split_document(encoded.input_ids, encoded.loss_mask.view("uint8"), 256, line_ends(tokenizer))

    starts = split.starts.tolist()
    assert split.places is None
    assert len(starts) > 2 and starts[0] == 0
    for start in starts[1:]:
        assert tokenizer.decode(encoded.input_ids[start:].tolist()).startswith("<|im_start|>user\n")
