from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cluster.disk.atomic_files import digest_of, write_json
from cluster.errors import ConfigError, DataError
from data_prep.config import DataConfig
from data_prep.encode.conversations import CHATML
from data_prep.encode.tokenizer import load_tokenizer, sample, train_tokenizer
from data_prep.prepare import prepare
from data_prep.shards import MANIFEST, Manifest, read_manifest, template_digest, tokenizer_digest


def test_a_trained_tokenizer_knows_every_text_and_is_the_same_each_time(corpus: Path) -> None:
    texts = [path.read_text() for path in sorted(corpus.glob("books/*"))]

    one, other = train_tokenizer(texts, 512), train_tokenizer(texts, 512)

    assert tokenizer_digest(one) == tokenizer_digest(other)
    assert one.decode(one("żółw 🐢\n\t漢字")["input_ids"]) == "żółw 🐢\n\t漢字"
    assert one.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert one.eos_token_id == one.pad_token_id == 0


def test_the_saved_tokenizer_is_read_back_with_the_digests_of_the_manifest(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = prepared(corpus)

    saved = AutoTokenizer.from_pretrained(tmp_path / "data" / "tokenizer")

    assert tokenizer_digest(saved) == manifest.tokenizer_digest
    assert template_digest(saved.chat_template) == manifest.template_digest == template_digest(CHATML.read_text())
    assert saved.pad_token_id == saved.eos_token_id


def test_the_sample_takes_the_same_share_of_every_file(corpus: Path, config_of: Callable[..., DataConfig]) -> None:
    from data_prep.fetch.sources import find_corpus

    found = find_corpus(config_of(corpus / "books").sources, {})

    texts = list(sample(found, found.bytes // 2))

    sizes = [file.info.bytes for file in found.files]
    assert [len(text) for text in texts] == pytest.approx([size // 2 for size in sizes], abs=2)


def test_a_tokenizer_that_is_nowhere_named_is_asked_for(corpus: Path, prepared: Callable[..., Manifest]) -> None:
    with pytest.raises(ConfigError, match=r"write `tokenizer: \{path: FOLDER_OR_HUB_ID\}` or"):
        prepared(corpus / "books", tokenizer=None)


def test_a_folder_without_a_tokenizer_is_named(corpus: Path, prepared: Callable[..., Manifest]) -> None:
    with pytest.raises(DataError, match=r"books has no tokenizer: neither tokenizer.json nor"):
        prepared(corpus / "books", tokenizer={"path": str(corpus / "books")})


def test_conversations_without_a_template_tell_the_line_to_write(
    corpus: Path, prepared: Callable[..., Manifest], test_data: Path
) -> None:
    with pytest.raises(
        DataError, match=r"chats.jsonl: holds conversations.*write `chat_template: plain`, `chat_template: chatml` or"
    ):
        prepared(corpus / "chats.jsonl", tokenizer=None, model=str(test_data / "stories260k"))


def test_chatml_for_a_tokenizer_without_its_tokens_is_refused_with_both_ways_out(
    corpus: Path, prepared: Callable[..., Manifest], test_data: Path
) -> None:
    with pytest.raises(ConfigError, match=r"chatml needs <\|im_start\|> and <\|im_end\|>.*plain.*resize_embeddings"):
        prepared(corpus / "chats.jsonl", tokenizer=None, model=str(test_data / "stories260k"), chat_template="chatml")


def test_chatml_adds_its_tokens_where_the_model_may_grow_and_the_manifest_names_them(
    corpus: Path, config_of: Callable[..., DataConfig], test_data: Path, tmp_path: Path
) -> None:
    config = config_of(corpus / "chats.jsonl", tokenizer=None, chat_template="chatml")
    manifest = prepare(config, tmp_path / "data", str(test_data / "stories260k"), seed=1, may_add_tokens=True)

    assert manifest.added_tokens == ["<|im_start|>", "<|im_end|>"]
    assert (manifest.vocab_size, manifest.largest_id) == (514, 513)


def test_a_base_model_learns_conversations_in_the_plain_template_with_its_own_tokens(
    corpus: Path, prepared: Callable[..., Manifest], test_data: Path
) -> None:
    manifest = prepared(
        corpus / "chats.jsonl", tokenizer=None, model=str(test_data / "stories260k"), chat_template="plain"
    )

    assert manifest.added_tokens == []
    assert manifest.largest_id is not None and manifest.largest_id < manifest.vocab_size == 512
    assert 0 < manifest.trained_tokens("train") < manifest.tokens["masked"]


def test_a_manifest_of_an_older_version_has_no_largest_id(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    prepared(corpus / "chats.jsonl")
    values = json.loads((tmp_path / "data" / MANIFEST).read_text())
    for shard in [shard for shards in values["splits"].values() for shard in shards]:
        del shard["largest_id"]
    del values["added_tokens"], values["digest"]
    write_json(tmp_path / "data" / MANIFEST, {**values, "digest": digest_of(values)})

    assert read_manifest(tmp_path / "data").largest_id is None


def test_the_model_s_own_tokenizer_is_the_default(
    corpus: Path, prepared: Callable[..., Manifest], test_data: Path, tmp_path: Path
) -> None:
    manifest = prepared(corpus / "pairs.jsonl", tokenizer=None, model=str(test_data / "stories260k"))

    loaded = AutoTokenizer.from_pretrained(test_data / "stories260k")
    assert manifest.tokenizer_digest == tokenizer_digest(loaded)
    assert manifest.vocab_size == 512


def test_a_tokenizer_is_trained_once_for_the_same_files(
    corpus: Path, config_of: Callable[..., DataConfig], tmp_path: Path
) -> None:
    from data_prep.fetch.sources import find_corpus

    config = config_of(corpus)
    found = find_corpus(config.sources, {})

    first = load_tokenizer(config, None, found, tmp_path).tokenizer
    (folder,) = tmp_path.glob("tokenizer-*")
    made = folder.stat().st_mtime_ns
    again = load_tokenizer(config, None, found, tmp_path).tokenizer

    assert tokenizer_digest(first) == tokenizer_digest(again)
    assert folder.stat().st_mtime_ns == made
