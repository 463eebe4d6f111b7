"""What a conversation holds beyond words: tools, calls, reasoning, flags, and templates that write it otherwise."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError
from data_prep.config import DataConfig
from data_prep.encode.chat_templates import dated
from data_prep.encode.conversations import LEFT_OUT, REFUSED, TEMPLATES, TOO_LONG, turn_tokens
from data_prep.encode.encoded_slices import encode_parts
from data_prep.encode.encoding import (
    EMPTY_THOUGHT,
    FURTHER,
    JOINED,
    NO_ANSWER,
    NOT_TRAINED,
    NOTHING_SAID,
    SILENT,
    Encoder,
)
from data_prep.encode.template_forms import (
    CALLS_TOLD,
    REASONING_TOLD,
    RESULTS_TOLD,
    SYSTEM_MOVED,
    TEXT_LEFT,
    TOOLS_TOLD,
)
from data_prep.fetch.sources import cut_slices, find_corpus
from data_prep.read.parts import Document, Rejected, Turn
from data_prep.shards import Manifest

HERE = Path(__file__).parents[1] / "encode"
AGENT = (HERE / "agent.jinja").read_text(encoding="utf-8")
PLAIN_CHATML = (HERE / "plain_chatml.jinja").read_text(encoding="utf-8")
STRICT = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{%- endif %}" + (
    "{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('speakers take turns') }}{%- endif %}{%- endfor %}"
)
TOOLS = {"tools": [{"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}]}
CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": {"port": 'the "X"'}}}
ARGUMENTS = json.dumps(CALL["function"]["arguments"])
ASKED = (
    Turn("user", "Brest?"),
    Turn("assistant", "", {"content": None, "tool_calls": [CALL]}),
    Turn("tool", "4 m", {"tool_call_id": "c1", "name": "tide"}),
    Turn("assistant", "It is 4 m."),
)


def chat(*turns: Turn, **variables: Any) -> Document:
    return Document(0, "messages", turns, variables)


def trained(encoder: Encoder, tokenizer: Any, document: Document) -> list[str]:
    """Return what is trained of each of a document's sequences."""
    (sequences,) = encoder.encode([document])
    assert isinstance(sequences, list), sequences
    return [tokenizer.decode(one.input_ids[one.loss_mask].tolist()) for one in sequences]


def whole(encoder: Encoder, tokenizer: Any, document: Document) -> str:
    (sequences,) = encoder.encode([document])
    assert isinstance(sequences, list), sequences
    return str(tokenizer.decode(sequences[-1].input_ids.tolist()))


def test_tools_and_calls_are_in_the_templates_own_form_with_arguments_as_an_object(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    encoder = encoder_with(AGENT)

    assert trained(encoder, tokenizer, chat(*ASKED, **TOOLS)) == [
        f"[CALL tide] {ARGUMENTS}[/CALL]<|im_end|>It is 4 m.<|im_end|>"
    ]
    assert whole(encoder, tokenizer, chat(*ASKED, **TOOLS)).startswith('<|im_start|>system\n[TOOLS] [{"type"')
    assert not +encoder.changed


def test_a_template_that_takes_arguments_as_text_gets_them_so(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    encoder = encoder_with(AGENT.replace("(c.function.arguments | tojson)", "c.function.arguments"))

    assert trained(encoder, tokenizer, chat(*ASKED, **TOOLS))[0].startswith(f"[CALL tide] {ARGUMENTS}[/CALL]")


def test_a_template_without_tools_gets_them_as_text_and_that_is_counted(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    encoder = encoder_with(PLAIN_CHATML)

    (said,) = trained(encoder, tokenizer, chat(*ASKED, **TOOLS))

    call = json.dumps(CALL["function"])
    assert said == f"<tool_call>\n{call}\n</tool_call><|im_end|>It is 4 m.<|im_end|>"
    assert +encoder.changed == {TOOLS_TOLD: 1, CALLS_TOLD: 1, RESULTS_TOLD: 1}
    text = whole(encoder, tokenizer, chat(*ASKED, **TOOLS))
    assert text.startswith("<|im_start|>system\nYou can call these tools:\n<tools>\n")
    assert "<|im_start|>tool\n<tool_response>\n4 m\n</tool_response><|im_end|>" in text


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_our_templates_write_tools_calls_results_and_reasoning_by_themselves(
    encoder_with: Callable[..., Encoder], tokenizer: Any, name: str
) -> None:
    encoder = encoder_with(TEMPLATES[name].read_text())
    thinking = Turn("assistant", "It is 4 m.", {"reasoning_content": "As told."})

    (said,) = trained(encoder, tokenizer, chat(*ASKED[:-1], thinking, **TOOLS))

    assert f"<tool_call>\n{json.dumps(CALL['function'])}\n</tool_call><|" in said
    assert "<think>\nAs told.\n</think>\n\nIt is 4 m.<|" in said and not +encoder.changed


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_trained_under_the_key_that_the_template_reads(
    encoder_with: Callable[..., Encoder], tokenizer: Any, key: str
) -> None:
    thinks = chat(Turn("user", "91?"), Turn("assistant", "No.", {key: "7 x 13"}))
    encoder = encoder_with(AGENT)

    assert trained(encoder, tokenizer, thinks) == ["[THINK]7 x 13[/THINK]No.<|im_end|>"]
    assert trained(encoder_with(PLAIN_CHATML), tokenizer, thinks) == ["<think>\n7 x 13\n</think>\n\nNo.<|im_end|>"]
    assert not +encoder.changed


def test_reasoning_that_a_template_does_not_read_is_counted(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    encoder = encoder_with(PLAIN_CHATML)

    trained(encoder, tokenizer, chat(Turn("user", "91?"), Turn("assistant", "No.", {"thinking": "7 x 13"})))

    assert +encoder.changed == {REASONING_TOLD: 1}


def test_an_answer_whose_reasoning_goes_later_is_trained_where_it_stands(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    encoder = encoder_with(AGENT)
    talk = (("91?", "No.", "7 x 13"), ("97?", "Yes.", "It has none"))
    turns = [
        turn
        for asked, said, thought in talk
        for turn in (Turn("user", asked), Turn("assistant", said, {"reasoning": thought}))
    ]

    texts = trained(encoder, tokenizer, chat(*turns))

    assert texts == ["[THINK]7 x 13[/THINK]No.<|im_end|>", "[THINK]It has none[/THINK]Yes.<|im_end|>"]
    assert "[THINK]7" not in whole(encoder, tokenizer, chat(*turns)) and encoder.changed[FURTHER] == 2


def test_calls_and_the_answer_after_them_share_one_sequence(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    turns = (ASKED[0], Turn("assistant", "", {"reasoning": "Look.", "tool_calls": [CALL]}), *ASKED[2:])

    (said,) = trained(encoder_with(AGENT), tokenizer, chat(*turns, **TOOLS))

    assert said.startswith("[THINK]Look.[/THINK][CALL tide]") and said.endswith("[/CALL]<|im_end|>It is 4 m.<|im_end|>")


@pytest.mark.parametrize("template", [AGENT, PLAIN_CHATML, TEMPLATES["chatml"].read_text()])
def test_flags_of_turns_and_train_on_say_which_answers_are_trained(
    encoder_with: Callable[..., Encoder], tokenizer: Any, template: str
) -> None:
    def flagged(*flags: bool | None) -> Document:
        pairs = [(Turn("user", f"{n}?"), Turn("assistant", f"{n}.", {}, flag)) for n, flag in enumerate(flags)]
        return chat(*(turn for pair in pairs for turn in pair))

    every, last = encoder_with(template), encoder_with(template, train_on="last")

    assert trained(every, tokenizer, flagged(False, None, True)) == ["1.<|im_end|>2.<|im_end|>"]
    assert trained(every, tokenizer, flagged(True, False)) == ["0.<|im_end|>"]
    assert trained(last, tokenizer, flagged(None, None, None)) == ["2.<|im_end|>"]
    assert trained(last, tokenizer, flagged(True, None, None)) == ["0.<|im_end|>2.<|im_end|>"]
    assert every.encode([flagged(False, False)]) == [Rejected(0, NOT_TRAINED)]
    assert last.encode([flagged(None, False)]) == [Rejected(0, NOT_TRAINED)]


def test_a_trailing_question_stays_in_the_row_and_is_not_trained(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    talk = chat(Turn("user", "1?"), Turn("assistant", "1."), Turn("user", "2?"))

    encoder = encoder_with(PLAIN_CHATML)

    assert trained(encoder, tokenizer, talk) == ["1.<|im_end|>"]
    assert whole(encoder, tokenizer, talk).endswith("<|im_start|>user\n2?<|im_end|>\n")


def test_a_system_turn_that_a_template_refuses_stands_before_the_users(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    encoder = encoder_with(STRICT + PLAIN_CHATML)
    talk = chat(Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello"))

    assert "<|im_start|>user\nBe kind.\n\nHi<|im_end|>" in whole(encoder, tokenizer, talk)
    assert +encoder.changed == {SYSTEM_MOVED: 1}


def test_what_a_template_leaves_out_of_an_answer_is_rejected_not_trained(encoder_with: Callable[..., Encoder]) -> None:
    first_call = AGENT.replace("for c in m.tool_calls or []", "for c in (m.tool_calls or [])[:1]")
    other = {**CALL, "function": {"name": "tide", "arguments": {"port": "Calais"}}}
    both = chat(ASKED[0], Turn("assistant", "", {"tool_calls": [CALL, other]}), **TOOLS)

    (rejected,) = encoder_with(first_call).encode([both])

    assert rejected == Rejected(0, LEFT_OUT) and rejected.excerpt == "Calais"


def test_a_text_beside_a_call_that_a_template_does_not_write_is_counted(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    only_calls = AGENT.replace("{{- m.content or '' }}", "{{- (m.content or '') if not m.tool_calls else '' }}")
    encoder = encoder_with(only_calls)
    talk = chat(ASKED[0], Turn("assistant", "I look.", {"tool_calls": [CALL]}), *ASKED[2:], **TOOLS)

    (said,) = trained(encoder, tokenizer, talk)

    assert said.startswith("[CALL tide]") and +encoder.changed == {TEXT_LEFT: 1}


def test_parts_are_handed_as_they_are_or_joined(encoder_with: Callable[..., Encoder], tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    talk = chat(Turn("user", "onetwo", {"content": parts}), Turn("assistant", "three"))
    taking = PLAIN_CHATML.replace(
        "message['content']",
        "(message.content if message.content is string else message.content | map(attribute='text') | join('+'))",
    )

    assert "<|im_start|>user\none+two<|im_end|>" in whole(encoder_with(taking), tokenizer, talk)
    assert "<|im_start|>user\nonetwo<|im_end|>" in whole(encoder_with(PLAIN_CHATML), tokenizer, talk)


def test_a_token_inside_answers_is_no_control_token_there_but_is_one_where_a_user_writes_it(
    encoder_with: Callable[..., Encoder],
) -> None:
    encoder = encoder_with(PLAIN_CHATML, marker_tokens=("<|endoftext|>",), special_tokens={})
    marked = Turn("assistant", "a <|endoftext|> b")

    assert encoder.usable(chat(Turn("user", "Hi"), marked)) == chat(Turn("user", "Hi"), marked)
    assert isinstance(encoder.usable(chat(Turn("user", "<|endoftext|>"), marked)), Rejected)
    assert isinstance(encoder.usable(chat(Turn("user", "Hi"), Turn("assistant", "<|im_end|>"))), Rejected)
    assert isinstance(encoder.usable(chat(Turn("user", "Hi"), marked, tools=["<|im_end|>"])), Rejected)


def test_the_date_that_a_template_writes_is_that_of_the_preparation() -> None:
    template = "{{ strftime_now('%d %b %Y') }}{% if strftime_now is defined %}{{ strftime_now(\"%Y\") }}{% endif %}"

    assert dated(template, datetime.date(2026, 1, 2)) == (
        '{{ "02 Jan 2026" }}{% if strftime_now is defined %}{{ "2026" }}{% endif %}'
    )


def test_an_answer_whose_first_token_begins_in_the_prompt_is_counted(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    encoder = encoder_with(
        PLAIN_CHATML.replace("message['role'] + '\n'", "message['role'] + ' '").replace("assistant\n", "assistant ")
    )

    trained(encoder, tokenizer, chat(Turn("user", "say"), Turn("assistant", "bye to you")))

    assert encoder.changed[JOINED] == 1


def test_the_sequences_of_one_document_stand_together_with_its_key(
    encoder_with: Callable[..., Encoder], lines_file: Callable[..., Path], config_of: Callable[..., DataConfig]
) -> None:
    def talk(n: int) -> dict[str, Any]:
        said = [[("user", f"{n}.{m}?"), ("assistant", f"<{n}.{m}>")] for m in range(n)]
        return {"messages": [{"role": role, "content": text} for pair in said for role, text in pair]}

    path = lines_file(talk(3), talk(1), {"messages": [{"role": "user", "content": "Hi"}]}, talk(2))
    config = config_of(path)
    corpus = find_corpus(config.sources, {})
    shorter = PLAIN_CHATML.replace(
        "message['content']", "(message['content'] if loop.last or message['role'] == 'user' else '-')"
    )

    table = encode_parts(cut_slices(corpus, 2**20)[0], encoder_with(shorter), config.cleaning)

    assert table.record.tolist() == [0, 0, 0, 1, 3, 3] and len(table.first) == 7
    assert len({tuple(key) for key in table.key[:3].tolist()}) == 1 and (table.key[4] == table.key[5]).all()
    assert table.records == [4] and table.rejected == [{NO_ANSWER: 1}] and table.changed == [{FURTHER: 3}]
    assert [(one.reason, one.record, one.text) for one in table.samples] == [
        (NO_ANSWER, 2, "roles here: user: user: Hi")
    ]


def rows(count: int, *bad: list[dict[str, str]]) -> list[dict[str, Any]]:
    good = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}."}] for n in range(count)]
    return [{"messages": messages} for messages in [*good, *bad]]


def test_one_conversation_that_the_template_refuses_is_left_out_with_a_sample(
    prepared: Callable[..., Manifest], lines_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "strict.jinja").write_text(STRICT + TEMPLATES["chatml"].read_text())
    twice = [{"role": role, "content": text} for role, text in (("user", "a"), ("user", "b"), ("assistant", "c"))]
    lonely = [{"role": "user", "content": "anybody?"}]
    path = lines_file(*rows(20, twice, lonely))

    manifest = prepared(path, chat_template=str(tmp_path / "strict.jinja"), validation_fraction=0.0)

    (counts,) = manifest.documents.values()
    assert counts["kept"] == 20 and counts["rejected"] == {REFUSED: 1, NO_ANSWER: 1}
    (sample,) = (tmp_path / "data/rejected/refused_by_the_chat_template.jsonl").read_text().splitlines()
    assert json.loads(sample)["place"].endswith("rows.jsonl:21")
    assert json.loads(sample)["text"].startswith("speakers take turns: user: a")


def test_a_source_of_which_most_cannot_be_trained_on_stops_the_preparation(
    prepared: Callable[..., Manifest], lines_file: Callable[..., Path]
) -> None:
    lonely = [[{"role": "user", "content": f"anybody {n}?"}] for n in range(5)]

    with pytest.raises(
        DataError, match=r"5 of 9 records cannot be trained on, .*no turn has .*rows.jsonl:5: 'roles here"
    ):
        prepared(lines_file(*rows(4, *lonely)), chat_template="chatml")


@pytest.mark.parametrize("prompt", ["2+2=", "The keeper said", "def f(r):\n    return 3 * ("])
@pytest.mark.parametrize("engine", ["tokenizers", "gigatoken"])
def test_a_pair_decodes_to_the_prompt_and_the_completion(
    encoder_with: Callable[..., Encoder], tokenizer: Any, engine: str, prompt: str
) -> None:
    if engine == "gigatoken":
        pytest.importorskip("gigatoken", reason="pip install gigatoken")
    pair = Document(0, "pair", (Turn("user", prompt), Turn("assistant", "4, wörld")))

    encoder = encoder_with(None, engine=engine)

    assert whole(encoder, tokenizer, pair) == f"{prompt}4, wörld<|endoftext|>"
    assert trained(encoder, tokenizer, pair) == ["4, wörld<|endoftext|>"]


THINKS_BY_PROMPT = PLAIN_CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'").replace(
    "message['content']", "message['content'].split('</think>')[-1]"
)


def test_a_prompt_that_opens_a_reasoning_is_answered_with_its_end(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    encoder = encoder_with(THINKS_BY_PROMPT)
    thinks = Turn("assistant", "No.", {"reasoning_content": "7 x 13"})
    spelled = Turn("assistant", "<think>\n7 x 13\n</think>\n\nNo.")

    for answer in (thinks, spelled):
        assert trained(encoder, tokenizer, chat(Turn("user", "91?"), answer)) == ["7 x 13\n</think>\n\nNo.<|im_end|>"]
    plain = chat(Turn("user", "91?"), Turn("assistant", "No."))
    assert trained(encoder, tokenizer, plain) == ["</think>\n\nNo.<|im_end|>"]
    assert whole(encoder, tokenizer, plain).endswith("<|im_start|>assistant\n<think>\n</think>\n\nNo.<|im_end|>\n")
    assert +encoder.changed == {EMPTY_THOUGHT: 2}


def test_reasoning_that_the_template_strips_is_trained_all_the_same(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    template = PLAIN_CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    talk = chat(Turn("user", "91?"), Turn("assistant", "<think>7 x 13</think>No."))

    assert trained(encoder_with(template), tokenizer, talk) == ["<think>\n7 x 13\n</think>\n\nNo.<|im_end|>"]


def test_a_template_that_takes_parts_only_gets_parts(encoder_with: Callable[..., Encoder], tokenizer: Any) -> None:
    taking = PLAIN_CHATML.replace("message['content']", "(message.content | map(attribute='text') | join)")
    talk = chat(Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello"))

    assert trained(encoder_with(taking), tokenizer, talk) == ["Hello<|im_end|>"]
    assert "<|im_start|>system\nBe kind.<|im_end|>" in whole(encoder_with(taking), tokenizer, talk)


def test_a_first_answer_is_trained_after_the_first_prompt_whatever_the_template_writes_before_it(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    opening = "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou help.<|im_end|>\n' }}{%- endif %}"
    talk = chat(Turn("assistant", "Welcome"), Turn("user", "Hi"), Turn("assistant", "Hello"))

    (said,) = trained(encoder_with(opening + PLAIN_CHATML), tokenizer, talk)

    assert said == "Welcome<|im_end|>Hello<|im_end|>"


def test_pairs_that_run_two_words_together_are_told_if_most_do(
    prepared: Callable[..., Manifest], lines_file: Callable[..., Path], tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    together = [{"prompt": f"Say {n}", "completion": f"it is {n}"} for n in range(40)]

    prepared(
        lines_file(*together),
        validation_fraction=0.0,
        chat_template=None,
        tokenizer={"path": str(plain(tokenizer, lines_file))},
    )

    assert "in 40 of 40 pairs the prompt ends with a letter or digit" in caplog.text


def plain(tokenizer: Any, lines_file: Any) -> Path:
    """Return the folder of a tokenizer without a template."""
    folder = Path(lines_file(name="x.jsonl")).parent / "tokenizer"
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def test_an_answer_that_says_nothing_is_not_trained(encoder_with: Callable[..., Encoder], tokenizer: Any) -> None:
    encoder = encoder_with(PLAIN_CHATML)
    silent = Turn("user", "1?"), Turn("assistant", " \n")

    assert trained(encoder, tokenizer, chat(*silent, Turn("user", "2?"), Turn("assistant", "2."))) == ["2.<|im_end|>"]
    assert +encoder.changed == {SILENT: 1}
    assert encoder.encode([chat(*silent)]) == [Rejected(0, NOTHING_SAID)]


def test_a_conversation_that_would_become_too_much_text_is_rejected_not_grown(
    encoder_with: Callable[..., Encoder],
) -> None:
    earlier = PLAIN_CHATML.replace(
        "message['content']", "(message['content'] if loop.last or message['role'] == 'user' else '-')"
    )
    talk = [Turn(("user", "assistant")[n % 2], "word " * 100_000) for n in range(24)]

    assert encoder_with(earlier).encode([chat(*talk)]) == [Rejected(0, TOO_LONG)]


def test_a_result_gets_the_name_of_its_call_where_the_template_demands_one(
    encoder_with: Callable[..., Encoder], tokenizer: Any
) -> None:
    naming = AGENT.replace(
        "{{- m.content or '' }}",
        "{%- if m.role == 'tool' %}{{- m.name + ' says ' if m.name else raise_exception('no name') }}{%- endif %}"
        "{{- m.content or '' }}",
    )
    unnamed = chat(*ASKED[:2], Turn("tool", "4 m", {"tool_call_id": "c1"}), ASKED[3], **TOOLS)

    assert "<|im_start|>tool\ntide says 4 m<|im_end|>" in whole(encoder_with(naming), tokenizer, unnamed)


def test_what_the_template_writes_around_turns_is_told_from_what_stands_inside_them() -> None:
    added = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<think>")
    blank = ("\n", "\n\n", "  ")

    found = turn_tokens(PLAIN_CHATML, {"pad_token": "<pad>"}, (*added, *blank))

    assert found == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"}
    assert turn_tokens("{{ raise_exception('no') }}", {}, (*added, *blank)) == {*added}
