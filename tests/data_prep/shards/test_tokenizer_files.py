"""One folder gives one tokenizer, whoever opens it; its template needs no tokens that it lacks, or brings them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cluster.errors import DataError
from data_prep.config import DataConfig
from data_prep.encode.tokenizer import choose_template, open_data_tokenizer, train_tokenizer
from data_prep.shards import tokenizer_digest
from data_prep.shards.tokenizer_files import add_tokens, open_tokenizer, vocabulary_size

TEXT = "def main(): return the house of the keeper é"


@pytest.fixture
def codeqwen(tmp_path: Path) -> Path:
    """A folder like that of CodeQwen 1.5: marked spaces and bytes, the generic class, and a model_type with another."""
    rules = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    rules.normalizer = normalizers.Replace(" ", "▁")
    rules.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    rules.train_from_iterator([TEXT] * 9, trainers.BpeTrainer(special_tokens=special, show_progress=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<|endoftext|>", unk_token="<unk>")
    fast.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return tmp_path / "model"


def test_the_class_that_a_folder_names_is_not_overruled_by_the_model_beside_it(codeqwen: Path) -> None:
    ours, theirs = open_tokenizer(codeqwen), AutoTokenizer.from_pretrained(codeqwen)

    assert ours.decode(ours(TEXT).input_ids) == TEXT
    assert theirs.decode(theirs(TEXT).input_ids) != TEXT  # the reason for an opener of our own
    assert ours(TEXT).input_ids == Tokenizer.from_file(str(codeqwen / "tokenizer.json")).encode(TEXT).ids


def test_a_tokenizer_that_was_saved_beside_no_model_is_still_the_same(codeqwen: Path, tmp_path: Path) -> None:
    open_tokenizer(codeqwen).save_pretrained(tmp_path / "shards")
    assert tokenizer_digest(open_tokenizer(tmp_path / "shards")) == tokenizer_digest(open_tokenizer(codeqwen))


def test_a_generic_tokenizer_is_opened_without_torch(codeqwen: Path) -> None:
    code = "import sys; from pathlib import Path; from data_prep.shards.tokenizer_files import open_tokenizer;"
    code += f"open_tokenizer(Path({str(codeqwen)!r})); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_rules_that_nobody_can_read_are_told_in_one_line(codeqwen: Path) -> None:
    (codeqwen / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(DataError, match=r"the tokenizer .*/model cannot be read: [^\n]+$"):
        open_tokenizer(codeqwen)


def test_added_tokens_are_the_last_ids_are_special_and_are_added_once(codeqwen: Path, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(codeqwen)
    size = vocabulary_size(tokenizer)

    assert add_tokens(tokenizer, ["<|im_start|>", "<|im_end|>"]) == ["<|im_start|>", "<|im_end|>"]
    assert add_tokens(tokenizer, ["<|im_start|>", "<|im_end|>"]) == []

    tokenizer.save_pretrained(tmp_path / "saved")
    assert open_tokenizer(tmp_path / "saved")("the<|im_end|>").input_ids[-1] == size + 1
    assert open_tokenizer(tmp_path / "saved").decode([size, size + 1], skip_special_tokens=True) == ""


def test_the_template_for_conversations_is_the_tokenizers_own_or_one_it_has_the_tokens_for(codeqwen: Path) -> None:
    chat = train_tokenizer([TEXT], 300)
    assert choose_template(chat) == (None, "the tokenizer's own shows what the assistant says")

    chat.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert choose_template(chat)[0] == "chatml"

    assert choose_template(open_tokenizer(codeqwen)) == (
        "plain",
        "the tokenizer has no chat template, and no tokens for ChatML",
    )


def test_a_class_that_changes_the_rules_of_its_file_is_told(codeqwen: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = json.loads((codeqwen / "tokenizer_config.json").read_text())
    config = DataConfig.model_validate({"sources": [{"path": "a"}]})
    for name, told in {"PreTrainedTokenizerFast": 0, "Qwen2Tokenizer": 1}.items():
        (codeqwen / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": name}))
        open_data_tokenizer(config, str(codeqwen))
        assert caplog.text.count("as a Qwen2Tokenizer, which gives other token ids than") == told
