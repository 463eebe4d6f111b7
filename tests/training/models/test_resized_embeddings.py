"""Tokens beyond a model's own: found before a rank starts, given the mean of the others, and exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.errors import ConfigError
from data_prep.shards import Manifest, read_manifest, tokenizer_digest
from training.config import ModelConfig, TrainConfig
from training.generate.loading import load_model
from training.models.resized_embeddings import ResizedWeights
from training.models.source import ModelOrigin, find_model

CHAT_TOKENS = ["<|im_start|>", "<|im_end|>"]


class Counting:
    """Weights 0, 1, 2 ... in bf16."""

    def part(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
        return torch.arange(start, stop).to(torch.bfloat16)

    def finish(self, elsewhere: Any) -> None: ...


@given(st.integers(0, 28), st.integers(0, 28), st.integers(0, 28))
def test_any_cut_of_an_enlarged_parameter_is_the_old_rows_and_then_their_mean(a: int, b: int, c: int) -> None:
    weights = ResizedWeights(Counting(), {"embedding": (5, 4)})
    cuts = sorted({0, a, b, c, 28})
    parts = [weights.part("embedding", (7, 4), start, stop) for start, stop in pairwise(cuts)]
    mean = [8.0, 9.0, 10.0, 11.0]
    assert torch.cat(parts).tolist() == [*map(float, range(20)), *mean, *mean]
    assert weights.part("norm", (9,), 3, 9).tolist() == [3, 4, 5, 6, 7, 8]


def with_tokens(folder: Path, model: Path, *tokens: str, **settings: Any) -> Path:
    """Copy a model and give its tokenizer more tokens, without a word to the model."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def origin_of(uneven_shards: Callable[[int], Path], tmp_path: Path) -> Callable[..., ModelOrigin]:
    """Find a model with the tokenizer that it has, for shards whose largest id is given."""

    def find(folder: Path, largest_id: int = 99, *, resize: bool = False, **changes: Any) -> ModelOrigin:
        shards = tmp_path / "shards"
        shutil.copytree(uneven_shards(4), shards)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.save_pretrained(shards / "tokenizer")
        manifest: Manifest = replace(read_manifest(shards), tokenizer_digest=tokenizer_digest(tokenizer), **changes)
        shard = replace(manifest.splits["train"][0], largest_id=largest_id)
        splits = {**manifest.splits, "train": [shard]}
        config = ModelConfig(path=str(folder), resize_embeddings=resize)
        return find_model(config, shards, replace(manifest, splits=splits))

    return find


def test_a_token_beyond_the_embeddings_that_the_rows_hold_is_refused_by_its_name(
    tmp_path: Path, tiny_model: Path, origin_of: Callable[..., ModelOrigin]
) -> None:
    folder = with_tokens(tmp_path / "model", tiny_model, "<new>")
    with pytest.raises(
        ConfigError, match=r"has 280 embeddings, .* uses id 280 \('<new>'\); .* set `resize_embeddings:"
    ):
        origin_of(folder, 280)


def test_padding_beyond_the_embeddings_is_refused_though_no_row_needs_it(
    tmp_path: Path, tiny_model: Path, origin_of: Callable[..., ModelOrigin]
) -> None:
    folder = with_tokens(tmp_path / "model", tiny_model, "<pad>", pad_token="<pad>")
    with pytest.raises(ConfigError, match=r"uses id 280 \('<pad>'\)"):
        origin_of(folder)


def test_a_token_beyond_the_embeddings_that_nothing_uses_is_no_hindrance(
    tmp_path: Path, tiny_model: Path, origin_of: Callable[..., ModelOrigin]
) -> None:
    folder = with_tokens(tmp_path / "model", tiny_model, "<image_soft_token>")
    assert origin_of(folder).skeleton.get_input_embeddings().weight.shape == (280, 32)


@pytest.mark.parametrize("kind", ["tied", "untied", "bias"])
def test_new_embeddings_and_outputs_are_the_mean_and_all_else_is_as_it_lies_there(
    tmp_path: Path, tiny_model: Path, origin_of: Callable[..., ModelOrigin], kind: str
) -> None:
    folder = with_tokens(tmp_path / "model", model_of_kind(tmp_path, tiny_model, kind), *CHAT_TOKENS)
    stored = AutoModelForCausalLM.from_pretrained(folder)

    origin = origin_of(folder, 281, resize=True)
    weights = origin.first_weights(seed=0)
    made = {
        name: weights.part(name, tuple(p.shape), 0, p.numel()).reshape(p.shape)
        for name, p in origin.skeleton.named_parameters()
    }
    weights.finish([])

    for name, old in stored.named_parameters():
        assert torch.equal(made[name][: len(old)], old)
        assert torch.allclose(made[name][len(old) :], old.mean(0, keepdim=True).expand_as(made[name][len(old) :]))
    assert len(origin.enlarged) == {"tied": 1, "untied": 2, "bias": 3}[kind]
    assert origin.identity() == {"model.resize_embeddings": [280, 282]}
    for name, parameter in origin.enlarge(load_model(folder), seed=0).named_parameters():
        assert torch.equal(parameter, made[name])


def model_of_kind(folder: Path, tiny_model: Path, kind: str) -> Path:
    """Write a model whose output head is its embedding, its own, or has a bias."""
    from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

    sizes = {"vocab_size": 280, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 128}
    shutil.copytree(tiny_model, folder / kind)
    if kind == "bias":
        model = PhiForCausalLM(PhiConfig(**sizes))
        torch.nn.init.normal_(model.lm_head.bias, generator=torch.Generator().manual_seed(0))
        model.save_pretrained(folder / kind)
    else:
        LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=kind == "tied")).save_pretrained(folder / kind)
    return folder / kind


def test_new_tokens_that_would_not_be_trained_are_refused_but_for_padding(
    tmp_path: Path, tiny_model: Path, origin_of: Callable[..., ModelOrigin]
) -> None:
    lora = TrainConfig.model_validate({"lora": {"rank": 2}})
    origin = origin_of(with_tokens(tmp_path / "chat", tiny_model, *CHAT_TOKENS), 281, resize=True)
    with pytest.raises(
        ConfigError,
        match=r"train\.freeze would freeze the new tokens' embeddings",
    ):
        origin.trained_parameters(lora)

    shutil.rmtree(tmp_path / "shards")
    padded = with_tokens(tmp_path / "padded", tiny_model, "<pad>", pad_token="<pad>")
    assert origin_of(padded, 280, resize=True).trained_parameters(lora) > 0


@pytest.mark.slow
def test_a_base_model_learns_chatml_with_new_tokens_and_its_export_says_them(
    tmp_path: Path, tiny_model: Path, run_in: Callable[..., Any]
) -> None:
    from launch.__main__ import main

    said = [{"role": "user", "content": "a run"}, {"role": "assistant", "content": "ends"}]
    rows = [json.dumps({"messages": [{**said[0], "content": f"a run {n}"}, said[1]]}) for n in range(60)]
    (tmp_path / "chats.jsonl").write_text("\n".join(rows))
    run = run_in(
        tmp_path,
        data={
            "sources": [{"path": str(tmp_path / "chats.jsonl")}],
            "row_tokens": 64,
            "chat_template": "chatml",
            "validation_fraction": 0.1,
            "cleaning": {"near_duplicates": "off"},
        },
        model={"path": str(tiny_model), "resize_embeddings": True},
        train={"steps": 60, "global_batch_rows": 8, "micro_batch_rows": 4, "learning_rate": 1e-2, "precision": "fp32"},
        evaluate={"samples": 2, "sample_tokens": 16},
    )
    assert main(["check", str(run.yaml)]) == main(["prepare", str(run.yaml)]) == 0
    assert run.train() == 0, run.log.read_text()
    assert main(["export", str(run.yaml)]) == main(["evaluate", str(run.yaml)]) == 0

    tokenizer = AutoTokenizer.from_pretrained(run.paths.export)
    model = AutoModelForCausalLM.from_pretrained(run.paths.export)
    assert model.config.vocab_size == len(tokenizer) == 282
    assert json.loads(run.paths.evaluation.read_text())["models"]["tuned"]["stop_rate"] == 1
