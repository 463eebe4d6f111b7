"""What low-rank additions have learnt leaves with the model, merged or as an adapter of its own, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cluster.errors import CheckpointError, ConfigError
from training.config import ExportConfig, LoraConfig, TrainConfig
from training.export.export import Partial, export
from training.generate.loading import load_export
from training.models.source import ModelOrigin
from training.models.trainable import choose_trained

IDS = torch.arange(2, 26)[None]
TARGETS = {"tied head": ["lm_head"], "both": ["q_proj", "lm_head"], "default": None}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> ModelOrigin:
    """A model whose head is tied to its embedding."""
    folder = tmp_path_factory.mktemp("tied")
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelOrigin(config=AutoConfig.from_pretrained(folder), tokenizer=tokenizer, folder=folder)


def trained_model(origin: ModelOrigin, lora: LoraConfig) -> Any:
    """Return the model with additions that have learnt something."""
    model = AutoModelForCausalLM.from_pretrained(origin.folder, dtype=torch.float32)
    choose_trained(model, TrainConfig(lora=lora))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(params=TARGETS)
def run(
    request: pytest.FixtureRequest, tmp_path: Path, origin: ModelOrigin, write_checkpoint: Callable[..., Path]
) -> tuple[Path, Partial, torch.Tensor]:
    """Return the checkpoints of a run, what it trained, and the logits of its model."""
    lora = LoraConfig(rank=2, alpha=3.0, target_modules=TARGETS[request.param])
    model = trained_model(origin, lora)
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    write_checkpoint(tmp_path / "checkpoints", trained, **{"frozen weights": origin.source_digest(0)})
    return tmp_path / "checkpoints", Partial(origin=origin, seed=0, lora=lora), model(IDS).logits.detach()


def test_a_merged_export_acts_as_the_model_that_was_trained(
    run: tuple[Path, Partial, torch.Tensor], tmp_path: Path, origin: ModelOrigin
) -> None:
    checkpoints, partial, logits = run
    export(origin, checkpoints, ExportConfig(dtype="fp32"), tmp_path / "export", partial)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    assert torch.allclose(model(IDS).logits, logits, atol=1e-5)
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    has_own_head = "lm_head" in ((partial.lora and partial.lora.target_modules) or [])
    assert config["tie_word_embeddings"] is not has_own_head


def test_an_adapter_acts_upon_the_base_model_as_the_model_that_was_trained(
    run: tuple[Path, Partial, torch.Tensor], tmp_path: Path, origin: ModelOrigin
) -> None:
    from peft import PeftModel

    checkpoints, partial, logits = run
    export(origin, checkpoints, ExportConfig(dtype="fp32", lora="adapter"), tmp_path / "export", partial)
    settings = json.loads((tmp_path / "export" / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path / "export"))
    assert torch.allclose(model(IDS).logits, logits, atol=1e-5)
    assert all("." not in name for name in settings["target_modules"])
    assert not (tmp_path / "export" / "model.safetensors").exists()
    ours, _ = load_export(tmp_path / "export")
    assert torch.allclose(ours(IDS).logits, logits, atol=1e-5)


def test_something_trained_that_the_model_has_no_place_for_is_named(
    tmp_path: Path, origin: ModelOrigin, write_checkpoint: Callable[..., Path]
) -> None:
    lost = {"model.layers.7.mlp.up_proj.lora_A.default.weight": torch.ones(2, 32)}
    write_checkpoint(tmp_path / "checkpoints", lost, **{"frozen weights": origin.source_digest(0)})
    partial = Partial(origin=origin, seed=0, lora=LoraConfig(rank=2))
    with pytest.raises(
        CheckpointError, match=r"1 trained tensor would not be exported: model\.layers\.7\.mlp\.up_proj"
    ):
        export(origin, tmp_path / "checkpoints", ExportConfig(), tmp_path / "export", partial)
    assert not (tmp_path / "export").exists()


def test_a_run_without_additions_has_no_adapter(
    tmp_path: Path, origin: ModelOrigin, write_checkpoint: Callable[..., Path]
) -> None:
    weights = {name: torch.zeros(parameter.shape) for name, parameter in origin.skeleton.named_parameters()}
    write_checkpoint(tmp_path / "checkpoints", weights)
    with pytest.raises(ConfigError, match=r"export\.lora: 'adapter', but the run was trained without"):
        partial = Partial(origin=origin, seed=0, lora=None)
        export(origin, tmp_path / "checkpoints", ExportConfig(lora="adapter"), tmp_path / "export", partial)
