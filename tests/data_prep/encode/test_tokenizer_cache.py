"""A tokenizer that was opened once is opened again without transformers, and is the same one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, Qwen2Tokenizer

from data_prep.encode.tokenizer import adds_bos, control_tokens, tokens_by_role
from data_prep.encode.tokenizer_cache import FACTS, RULES, KeptTokenizer, open_kept
from data_prep.shards import tokenizer_digest
from data_prep.shards.tokenizer_files import open_tokenizer, vocabulary_size


@pytest.fixture
def qwen(tokenizer: Any, tmp_path: Path) -> Path:
    """A folder whose class, not its file, makes the rules: a small vocabulary under Qwen's class and template."""
    folder = tmp_path / "qwen"
    vocabulary = {t: i for t, i in tokenizer.get_vocab().items() if not t.startswith("<|")}
    tokens = {token: number for number, token in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))}
    made = Qwen2Tokenizer(vocab=tokens, merges=[], eos_token="<|im_end|>")
    made.add_tokens(["<|im_start|>", "<think>"], special_tokens=True)
    made.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    made.save_pretrained(folder)
    return folder


def test_what_was_kept_is_the_tokenizer_that_transformers_opens(qwen: Path, tmp_path: Path) -> None:
    opened = open_tokenizer(qwen)
    for _ in range(2):  # as it is kept, and as it is read back
        kept = open_kept(qwen, tmp_path / "kept")
        assert isinstance(kept, KeptTokenizer)
        assert kept.facts.digest == tokenizer_digest(opened)
        assert vocabulary_size(kept) == vocabulary_size(opened)
        assert (len(kept), kept.eos_token_id, kept.bos_token_id) == (len(opened), opened.eos_token_id, None)
        assert control_tokens(kept) == control_tokens(opened)
        assert tokens_by_role(kept) == tokens_by_role(opened)
        assert adds_bos(kept) == adds_bos(opened)
        assert kept.chat_template == opened.chat_template
        assert kept.backend_tokenizer.to_str() == opened.backend_tokenizer.to_str()


def test_what_is_saved_of_it_is_opened_by_transformers_as_the_same_one(qwen: Path, tmp_path: Path) -> None:
    kept = open_kept(qwen, tmp_path / "kept")
    kept.chat_template, kept.pad_token = "{{ messages }}", "<think>"
    (tmp_path / "saved").mkdir()
    kept.save_pretrained(tmp_path / "saved")

    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")

    assert tokenizer_digest(saved) == kept.facts.digest
    assert type(saved) is Qwen2Tokenizer
    assert (saved.pad_token, saved.chat_template) == ("<think>", "{{ messages }}")


def test_a_kept_tokenizer_is_opened_without_transformers(qwen: Path, tmp_path: Path) -> None:
    open_kept(qwen, tmp_path / "kept")
    code = "import sys; from pathlib import Path; from data_prep.encode.tokenizer_cache import open_kept;"
    code += f"t = open_kept(Path({str(qwen)!r}), Path({str(tmp_path / 'kept')!r})); t.get_vocab();"
    code += "print([name for name in ('transformers', 'torch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"])
def test_a_changed_file_is_another_tokenizer(qwen: Path, tmp_path: Path, name: str) -> None:
    (qwen / "config.json").write_text('{"model_type": "qwen2"}')
    open_kept(qwen, tmp_path / "kept")
    text = (qwen / name).read_text()
    (qwen / name).write_text(text + "\n")
    open_kept(qwen, tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.parametrize("name", [FACTS, RULES])
def test_a_damaged_one_is_told_and_opened_anew(
    qwen: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    right = open_kept(qwen, tmp_path / "kept").facts
    (place,) = (tmp_path / "kept").iterdir()
    (place / name).write_text((place / name).read_text()[:-9])

    assert open_kept(qwen, tmp_path / "kept").facts == right
    assert caplog.text.count("the tokenizer is opened again") == 1
    assert open_kept(qwen, tmp_path / "kept").facts == right
    assert caplog.text.count("the tokenizer is opened again") == 1


def test_a_place_that_cannot_be_written_only_costs_time(
    qwen: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").write_text("a file in the way")
    with caplog.at_level("INFO", "data_prep"):
        assert open_kept(qwen, tmp_path / "kept").facts.digest == tokenizer_digest(open_tokenizer(qwen))
    assert "opened by transformers at each start" in caplog.text


def test_only_so_many_are_kept(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.encode.tokenizer_cache.KEPT_AT_MOST", 2)
    settings = json.loads((qwen / "tokenizer_config.json").read_text())
    for length in range(3):
        (qwen / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 64 + length}))
        open_kept(qwen, tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_one_that_another_process_removes_meanwhile_does_not_matter(
    qwen: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "removed").symlink_to("nowhere")  # listed, and not there any more
    with caplog.at_level("INFO", "data_prep"):
        open_kept(qwen, tmp_path / "kept")
    assert caplog.text == ""
