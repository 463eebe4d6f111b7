"""The loss of each document is that which training counts, and a difference is only told where there is one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.shards import ShardReader, read_manifest
from launch.__main__ import main
from training.evaluate.difference import difference
from training.evaluate.scoring import DocumentScore, Scores, score_rows, text_bytes
from training.step.batches import micro_batch
from training.step.packed_model import Isolation, PackedModel


@pytest.fixture(scope="module")
def reader(tiny_shards: Callable[..., Path]) -> ShardReader:
    shards = tiny_shards(rows=4, validation_rows=5)
    return ShardReader(shards, read_manifest(shards), "validation")


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def shared_model() -> Path:
    """A model with SentencePiece's byte fallback, as Llama 2 has it."""
    data = os.environ.get("SHARDLINE_TEST_DATA")
    if not data:
        pytest.skip("set SHARDLINE_TEST_DATA to a folder with the model stories260k/")
    return Path(data) / "stories260k"


@pytest.fixture(params=["byte-level", "byte fallback"])
def text_tokenizer(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    folder = tiny_model if request.param == "byte-level" else request.getfixturevalue("shared_model")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def packed(tiny_model: Path) -> PackedModel:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    return PackedModel(model, model, model.device)


@pytest.mark.parametrize("isolation", Isolation)
def test_a_documents_loss_is_that_of_the_document_alone(
    packed: PackedModel, reader: ShardReader, tokenizer: Any, tiny_model: Path, isolation: Isolation
) -> None:
    packed.isolate(isolation)
    scores = score_rows(packed, packed.parts, tokenizer, reader, range(5))
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for row in range(5):
        ids = torch.from_numpy(reader.rows([row]).input_ids[0])
        for piece, document in zip(
            reader.pieces(row), torch.split(ids, [p.tokens for p in reader.pieces(row)]), strict=True
        ):
            with torch.no_grad():
                alone = float(plain(document[None], labels=document[None]).loss) * (len(document) - 1)
            found = scores[piece.source, piece.position]
            assert found.tokens == piece.tokens - 1
            assert found.nats == pytest.approx(alone, rel=1e-4)
    assert len(scores) == 10


def test_the_documents_losses_add_up_to_that_of_training(
    packed: PackedModel, reader: ShardReader, tokenizer: Any
) -> None:
    scores = score_rows(packed, packed.parts, tokenizer, reader, [0, 3, None])
    with torch.no_grad():
        whole = sum(float(packed.loss(micro_batch(reader.rows([row]), index=0)).summed) for row in (0, 3))
    assert sum(score.nats for score in scores.values()) == pytest.approx(whole, rel=1e-5)


def test_a_text_cut_anywhere_has_the_bytes_of_its_parts(text_tokenizer: Any) -> None:
    text = "é中文😀 a run\ufffdthat 鿠ends"
    ids = text_tokenizer(text, add_special_tokens=False).input_ids
    for cut in range(1, len(ids)):
        parts = [text_bytes(text_tokenizer, ids[:cut]), text_bytes(text_tokenizer, ids[cut:])]
        # SentencePiece drops the space before the first word of a text, so of each part
        spaces = int(text_tokenizer.convert_ids_to_tokens(ids[cut]).startswith("▁"))
        assert sum(parts) + spaces == len(text.encode())


def test_a_byte_of_a_character_counts_as_one_byte(text_tokenizer: Any) -> None:
    first, *rest = text_tokenizer("中", add_special_tokens=False).input_ids[-3:]
    assert [text_bytes(text_tokenizer, ids) for ids in ([first], rest, [first, *rest])] == [1, 2, 3]
    assert text_bytes(text_tokenizer, [*rest, first, first]) == 4
    assert text_bytes(text_tokenizer, [text_tokenizer.eos_token_id, *rest]) == 2


def test_text_of_whole_characters_counts_as_it_is_decoded(text_tokenizer: Any) -> None:
    for text in ("every step counts once , and more", " a  run", "中文 é", "\ufffd"):
        ids = text_tokenizer(text).input_ids
        assert text_bytes(text_tokenizer, ids) == len(text_tokenizer.decode(ids, skip_special_tokens=True).encode())


def test_a_document_cut_within_characters_is_scored_over_its_own_bytes(tmp_path: Path, shared_model: Path) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(0x4E00, 0x9FA0, 300))) for _ in range(4)]
    source = tmp_path / "zh.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = {"sources": [{"path": str(source)}], "row_tokens": 256, "validation_fraction": 0.5}
    values = {"name": "zh", "folder": str(tmp_path / "run"), "data": data, "model": {"path": str(shared_model)}}
    (tmp_path / "zh.yaml").write_text(json.dumps(values))
    assert main(["prepare", str(tmp_path / "zh.yaml")]) == 0
    shards = tmp_path / "run" / "shards"
    reader = ShardReader(shards, read_manifest(shards), "validation")
    model = AutoModelForCausalLM.from_pretrained(shared_model, dtype=torch.float32).eval()
    packed = PackedModel(model, model, model.device)
    scores = score_rows(packed, packed.parts, AutoTokenizer.from_pretrained(shared_model), reader, range(len(reader)))
    assert len(reader) > len(scores) > 0
    assert all(0 <= score.tokens - score.bytes < 20 for score in scores.values())  # but for special tokens and spaces


def scores_of(losses: list[float]) -> Scores:
    return {(0, n): DocumentScore(nats=10 * loss, tokens=10, bytes=40) for n, loss in enumerate(losses)}


def test_a_loss_that_falls_in_nearly_every_document_is_called_lower() -> None:
    found = difference(scores_of([3.0] * 30), scores_of([2.5] * 28 + [3.1] * 2))
    assert (found.direction, found.improved) == ("lower", 28)
    assert found.loss == pytest.approx(-0.46)
    assert found.low is not None and found.high is not None and found.low < found.loss < found.high < 0


def test_a_lower_mean_that_a_single_document_makes_is_not_called_lower() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 30)
    found = difference(scores_of([3.0] * 30), scores_of([1.0, *(3.0 + noise[1:])]))
    assert (found.loss < 0, found.direction) == (True, "no clear difference")


def test_five_documents_are_too_few_to_tell() -> None:
    assert difference(scores_of([3.0] * 5), scores_of([2.0] * 5)).direction == "too few documents"


def test_models_scored_on_different_documents_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different documents"):
        difference(scores_of([1.0] * 8), scores_of([1.0] * 9))
