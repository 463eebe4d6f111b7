"""Every template trains the same model, and a run resumes under another with every bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM

from data_prep.shards import ShardReader, read_manifest
from training.config import ModelConfig
from training.models.source import find_model
from training.step.batches import micro_batch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.parametrize("ranks", [1, 3])]
TEMPLATES = ("zero1", "zero2", "zero2_offload_cpu", "zero3", "zero3_offload_cpu")
ROWS, ODD_GPT2 = 7, {"n_embd": 15, "n_layer": 2, "n_head": 3, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
TOLERANCE = {"fp32": 1e-6, "bf16": 2e-3}
EVERY_SWITCH = list(permutations(TEMPLATES, 2))
TrialOf = Callable[..., Any]


@pytest.fixture
def trial(trial_of: TrialOf, ranks: int) -> Any:
    return trial_of(ranks, "sharding_ranks.py", "-", rows=ROWS)


@pytest.fixture
def shards(uneven_shards: Callable[[int], Path]) -> Path:
    return uneven_shards(ROWS)


def plain_gradients(shards: Path, weights: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of the seven rows by transformers and torch alone, from the same first weights."""
    manifest = read_manifest(shards)
    new = ModelConfig.model_validate({"new": {"model_type": "gpt2", "config": ODD_GPT2}})
    model = AutoModelForCausalLM.from_config(find_model(new, shards, manifest).config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[f"master.{name}"].reshape(parameter.shape))
    rows = ShardReader(shards, manifest, "train").rows(range(ROWS))
    ids, mask = torch.from_numpy(rows.input_ids), torch.from_numpy(rows.loss_mask)
    positions = micro_batch(rows, index=0).position_ids
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, :-1]
    loss = F.cross_entropy(logits[mask[:, 1:]], ids[:, 1:][mask[:, 1:]])
    torch.autograd.backward(loss)
    return float(loss.detach()), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("template", TEMPLATES)
def test_first_loss_and_gradients_are_those_of_plain_torch(trial: Any, ranks: int, template: str, shards: Path) -> None:
    gradients = trial.by_rank(f"gradients-fp32-{template}")[0]
    loss, expected = plain_gradients(shards, trial.by_rank(f"weights-fp32-{template}")[0])
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert trial.facts(f"switch-fp32-{template}")["losses"][0] == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((gradients[name] - gradient.reshape(-1)).abs().max()) <= 1e-5 * largest, name


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_template_takes_the_steps_that_zero3_takes(trial: Any, ranks: int, template: str, precision: str) -> None:
    expected = trial.facts(f"switch-{precision}-zero3")["losses"]
    found = trial.facts(f"switch-{precision}-{template}")["losses"]
    assert found == pytest.approx(expected, rel=TOLERANCE[precision])


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_step_that_is_refused_changes_not_a_bit(trial: Any, ranks: int, template: str, precision: str) -> None:
    assert trial.facts(f"switch-{precision}-{template}")["refused_steps_change_nothing"]


@pytest.mark.parametrize("switch", EVERY_SWITCH, ids="-to-".join)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_run_continues_under_another_template_with_every_bit(
    trial: Any, ranks: int, switch: tuple[str, str], precision: str
) -> None:
    first, second = switch
    facts = trial.facts(f"switch-{precision}-{first}")
    assert facts[second]["same_bits"]
    assert facts[second]["loss"] == pytest.approx(facts[first]["loss"], rel=TOLERANCE[precision])


def test_stage_1_in_bf16_is_an_optimizer_of_its_own(trial: Any, ranks: int) -> None:
    assert trial.facts("switch-bf16-zero1")["optimizer"] == "BF16_Optimizer"
    assert trial.facts("switch-fp32-zero1")["optimizer"] == "DeepSpeedZeroOptimizer"
