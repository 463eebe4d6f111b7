"""A run that trains a part of the model, or low-rank additions to it, on real ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from data_prep.shards import ShardReader, read_manifest
from tests.training.rank_programs.sharding_ranks import ROWS
from training.config import LoraConfig, TrainConfig
from training.models.initial_weights import PretrainedWeights
from training.models.source import skeleton_of
from training.models.trainable import PlainTensors, base_name, choose_trained
from training.step.batches import micro_batch
from training.zero.adamw import parameter_groups

pytestmark = pytest.mark.slow
TEMPLATES = ("zero1", "zero2", "zero3", "zero3_offload_cpu")
LEARNING_RATE, WEIGHT_DECAY = 1e-2, 0.1
FREEZE = ["model.embed_tokens.*", "*.0.*", "model.norm.weight"]
LORA = LoraConfig(rank=3, alpha=6.0)


@pytest.fixture
def trial(trial_of: Callable[..., Any]) -> Any:
    return trial_of(2, "frozen_ranks.py", rows=ROWS)


@pytest.fixture
def plain(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def loss_of(model: PreTrainedModel, shards: Path) -> torch.Tensor:
    rows = ShardReader(shards, read_manifest(shards), "train").rows(range(ROWS))
    ids, mask = torch.from_numpy(rows.input_ids), torch.from_numpy(rows.loss_mask)
    positions = micro_batch(rows, index=0).position_ids
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits[mask[:, 1:]], ids[:, 1:][mask[:, 1:]])


def steps_by_torch(model: PreTrainedModel, shards: Path, train: TrainConfig) -> dict[str, torch.Tensor]:
    """Take the two steps of the trial by torch alone, from the model's weights as they are; return the last ones."""
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE, betas=(0.9, 0.95))
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model, shards))
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["freeze", "lora"])
def test_frozen_weights_are_the_models_own_before_and_after(
    trial: Any, kind: str, template: str, tiny_model: Path
) -> None:
    stored = load_file(tiny_model / "model.safetensors")
    frozen = trial.facts(f"{kind}-{template}")["frozen"]
    assert frozen
    for weights in (trial.by_rank(f"first-{kind}-{template}"), trial.by_rank(f"last-{kind}-{template}")):
        assert all(torch.equal(rank[name], stored[base_name(name)].float()) for rank in weights for name in frozen)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["freeze", "lora"])
def test_what_is_trained_takes_the_steps_of_plain_torch(
    trial: Any, kind: str, template: str, plain: PreTrainedModel, uneven_shards: Callable[[int], Path]
) -> None:
    train = TrainConfig(freeze=FREEZE) if kind == "freeze" else TrainConfig(lora=LORA)
    first, last = (trial.by_rank(f"{moment}-{kind}-{template}")[0] for moment in ("first", "last"))
    choose_trained(plain, train)
    for name, parameter in plain.named_parameters():
        parameter.data.copy_(first[name])
    expected = steps_by_torch(plain, uneven_shards(ROWS), train)
    trained = trial.facts(f"{kind}-{template}")["trained"]
    assert trained == [name for name, parameter in plain.named_parameters() if parameter.requires_grad]
    for name in trained:
        assert not torch.equal(last[name], first[name]), name
        difference = (last[name] - expected[name]).abs()  # a step moves by 1e-2; Adam magnifies noise of tiny gradients
        assert difference.max() < 2e-4 and difference.mean() < 2e-6, name


@pytest.mark.parametrize("template", ["zero3", "zero3_offload_cpu"])
@pytest.mark.parametrize("kind", ["freeze", "lora"])
def test_a_run_continues_from_a_checkpoint_that_holds_only_what_is_trained(
    trial: Any, kind: str, template: str
) -> None:
    undisturbed, continued = trial.facts(f"{kind}-{template}")["next"]
    assert continued == undisturbed


def test_low_rank_additions_begin_without_effect(
    trial: Any, plain: PreTrainedModel, uneven_shards: Callable[[int], Path]
) -> None:
    loss = float(loss_of(plain, uneven_shards(ROWS)).detach())
    assert trial.facts("lora-zero3")["losses"][0] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("kind", ["freeze", "lora"])
def test_the_plain_model_acts_as_the_one_that_was_trained(
    trial: Any, kind: str, plain: PreTrainedModel, tiny_model: Path, uneven_shards: Callable[[int], Path]
) -> None:
    weights, facts = trial.by_rank(f"last-{kind}-zero3")[0], trial.facts(f"{kind}-zero3")
    tensors = PlainTensors(
        skeleton=skeleton_of(plain.config),
        trained=facts["trained"],
        read=weights.__getitem__,
        first=PretrainedWeights(tiny_model, skeleton_of(plain.config)),
        lora=LORA if kind == "lora" else None,
    )
    for name, parameter in plain.named_parameters():
        parameter.data.copy_(tensors.tensor(name))
    loss = float(loss_of(plain, uneven_shards(ROWS)).detach())
    assert facts["next"][0][0] == pytest.approx(loss, rel=1e-5)
