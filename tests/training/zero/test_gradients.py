"""The gradients of a global batch, however it is dealt to ranks and micro batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM

from data_prep.shards import ShardReader, read_manifest
from training.step.batches import micro_batch

pytestmark = pytest.mark.slow
FACTORINGS = [(1, 1), (1, 4), (2, 1), (2, 2), (2, 3), (4, 2), (4, 3)]
# ranks x micro_batch_rows; accumulation makes up 8 rows, or more places of which some are empty
REFERENCE = (1, 1)


@pytest.fixture(scope="module")
def plain(tiny_model: Path, uneven_shards: Callable[[int], Path]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the same eight rows by transformers and torch alone."""
    folder = uneven_shards(8)
    rows = ShardReader(folder, read_manifest(folder), "train").rows(range(8))
    ids, mask = torch.from_numpy(rows.input_ids), torch.from_numpy(rows.loss_mask)
    positions = micro_batch(rows, index=0).position_ids
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    log_p = F.log_softmax(model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, :-1], dim=-1)
    nats = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
    loss = nats[mask[:, 1:]].sum() / mask.sum()
    torch.autograd.backward(loss)
    return float(loss.detach()), {name: parameter.grad for name, parameter in model.named_parameters()}


def difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Return the largest difference, as a share of the largest gradient."""
    assert left.keys() == right.keys()
    largest = max(float(gradient.abs().max()) for gradient in right.values())
    return max(float((left[n].reshape(-1) - right[n].reshape(-1)).abs().max()) for n in left) / largest


@pytest.mark.parametrize(("ranks", "rows"), FACTORINGS, ids=lambda number: str(number))
def test_gradients_are_those_of_plain_torch_on_the_same_rows(
    trial_of: Callable[[int], Any], plain: tuple[float, dict[str, torch.Tensor]], ranks: int, rows: int
) -> None:
    loss, gradients = plain
    trial = trial_of(ranks)
    assert difference(trial.joined(f"gradients-{rows}"), gradients) <= 1e-5
    assert trial.facts(f"gradients-{rows}")["loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(("ranks", "rows"), FACTORINGS[1:], ids=lambda number: str(number))
def test_gradients_do_not_depend_on_ranks_and_accumulation(
    trial_of: Callable[[int], Any], ranks: int, rows: int
) -> None:
    expected = trial_of(REFERENCE[0]).joined(f"gradients-{REFERENCE[1]}")
    assert difference(trial_of(ranks).joined(f"gradients-{rows}"), expected) <= 1e-6


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_gradients_are_the_same_bits_if_activations_are_computed_again(
    trial_of: Callable[[int], Any], ranks: int, checkpointing: str
) -> None:
    expected = trial_of(ranks).joined("gradients-2")
    found = trial_of(ranks).joined(f"gradients-2-{checkpointing}")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_rows_of_these_tests_differ_in_trained_tokens(uneven_shards: Callable[[int], Path]) -> None:
    folder = uneven_shards(8)
    reader = ShardReader(folder, read_manifest(folder), "train")
    counts = [reader.trained_tokens([row]) for row in range(8)]
    assert len(set(counts)) >= 6 and max(counts) > 2 * min(counts)
