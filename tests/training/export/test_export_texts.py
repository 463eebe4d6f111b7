"""Configuration, tokenizer and template of an export say the truth to transformers 4 and 5 and to others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from training.export.export_config import older_words, with_older_words, write_generation_config
from training.export.export_template import plain_template
from training.export.export_tokenizer import write_tokenizer

ROOT = Path(__file__).resolve().parents[3]
MESSAGES = [
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "By the brook."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "There\nstill."},
]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("model_type", "given_values", "words"),
    [
        ("llama", {"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
        (
            "llama",
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
        ),
        ("phi", {"partial_rotary_factor": 0.3}, {"partial_rotary_factor": 0.3}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 7e3}, {"rotary_pct": 0.5, "rotary_emb_base": 7e3}),
        (
            "gemma3_text",
            {"rope_theta": 6e5, "rope_local_base_freq": 4e3},
            {"rope_theta": 6e5, "rope_local_base_freq": 4e3, "rope_scaling": None},
        ),
        ("gpt2", {}, {}),
    ],
)
def test_rotary_positions_are_said_in_the_words_of_transformers_4(
    model_type: str, given_values: dict[str, Any], words: dict[str, Any]
) -> None:
    found = older_words(AutoConfig.for_model(model_type, **given_values))
    assert {key: found.get(key, "absent") for key in words} == words


def test_words_of_the_source_stay_where_they_are_still_true() -> None:
    config = AutoConfig.for_model("llama", tie_word_embeddings=False, rope_theta=5e5)
    words = {"tie_word_embeddings": True, "rope_theta": 5e5, "sliding_window_pattern": 2, "_name_or_path": "/home/me"}
    values = with_older_words(config, config.to_diff_dict(), words)
    assert values["tie_word_embeddings"] is not True
    assert (values["rope_theta"], values["sliding_window_pattern"]) == (5e5, 2)
    assert "_name_or_path" not in values


def test_generation_keeps_the_sources_settings_and_adds_what_ends_an_answer(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    source = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [7, 9], "max_length": 20, "do_sample": True}
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "generation_config.json").write_text(json.dumps(source))
    write_generation_config(tmp_path, tokenizer, tmp_path / "source")
    values = json.loads((tmp_path / "generation_config.json").read_text())
    assert (values["temperature"], values["top_p"], values["do_sample"]) == (0.6, 0.9, True)
    assert values["eos_token_id"] == [tokenizer.eos_token_id, 7, 9]
    assert not {"max_length", "max_new_tokens"} & values.keys()


def written(folder: Path, tokenizer: Any, **changes: Any) -> dict[str, Any]:
    write_tokenizer(folder, tokenizer, AutoConfig.for_model("llama", max_position_embeddings=128, **changes))
    values: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    return values


def test_the_tokenizer_makes_no_token_types_and_knows_the_models_length(tmp_path: Path, tiny_model: Path) -> None:
    values = written(tmp_path, AutoTokenizer.from_pretrained(tiny_model))
    assert values["model_input_names"] == ["input_ids", "attention_mask"]
    assert values["model_max_length"] == 128
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local"} & values.keys()


def test_special_tokens_without_a_role_are_in_a_word_that_transformers_4_reads(
    tmp_path: Path, tiny_model: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<tool>"]})
    values = written(tmp_path, tokenizer)
    assert values["additional_special_tokens"] == ["<tool>"] and "extra_special_tokens" not in values
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("a <tool> b").input_ids == tokenizer("a <tool> b").input_ids
    assert again.all_special_tokens == tokenizer.all_special_tokens


def plainly(template: str, **settings: bool) -> str:
    environment = ImmutableSandboxedEnvironment(**settings)
    return environment.from_string(template).render(messages=MESSAGES, add_generation_prompt=False)


def as_transformers_does(template: str) -> str:
    texts, _ = render_jinja_template([MESSAGES], chat_template=template, return_assistant_tokens_mask=True)
    return str(texts[0])


def test_our_own_template_leaves_without_markers_and_renders_the_same(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (ROOT / "data_prep" / "encode" / "templates" / "chatml.jinja").read_text()
    assert "generation" in tokenizer.chat_template
    written(tmp_path, tokenizer)
    plain = (tmp_path / "chat_template.jinja").read_text()
    assert plainly(plain, trim_blocks=True, lstrip_blocks=True) == as_transformers_does(tokenizer.chat_template)


@given(
    dashes=st.lists(st.sampled_from(["", "-", "+"]), min_size=4, max_size=4),
    spaces=st.lists(st.sampled_from(["", " ", "\n", "\n  ", " \n\n"]), min_size=4, max_size=4),
    word=st.sampled_from(["{{ m['content'] }}", "{% set x = 'inside' %}{{ x }}", ""]),
)
def test_markers_are_taken_out_of_any_template_without_a_byte_of_difference(
    dashes: list[str], spaces: list[str], word: str
) -> None:
    a, b, c, d = dashes
    opening, closing = f"{{%{a} generation {b}%}}", f"{{%{c} endgeneration {d}%}}"
    around = [*spaces[:1], opening, spaces[1], word, spaces[2], closing, spaces[3]]
    template = (
        "{% set x = 'outside' %}{% for m in messages %}<{{ m['role'] }}>" + "".join(around) + "|{{ x }}{% endfor %}"
    )
    plain = plain_template(template)
    assert "generation" not in plain
    assert plainly(plain, trim_blocks=True, lstrip_blocks=True) == as_transformers_does(template)
