"""The MFU of a step, from its line of metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.costs.shapes import ModelShape, shape_of_config
from training.costs.speed import Work, flops_of
from training.costs.utilization import utilization_of

CONFIG = Path(__file__).parents[3] / "examples" / "scale" / "llama-3.1-8b" / "config.json"
LINE = {"useful_tokens_per_s": 72000.0, "context_tokens": 512.0, "trained_tokens": 40000, "step_s": 2.0}


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    found = shape_of_config(json.loads(CONFIG.read_text()))
    assert found is not None
    return found


def test_the_mfu_is_that_of_useful_operations_on_all_ranks(shape: ModelShape) -> None:
    flops = flops_of(shape, Work(context=512))
    expected = ((flops.products + flops.attention) * 72000 + flops.head * 20000) / (8 * 989e12)
    assert utilization_of(shape, "NVIDIA H100 80GB HBM3", 8, "bf16").mfu(LINE) == pytest.approx(expected)
    assert 0.3 < expected < 0.5


def test_longer_documents_are_more_work(shape: ModelShape) -> None:
    used = utilization_of(shape, "NVIDIA H200", 8, "bf16")
    assert (used.mfu({**LINE, "context_tokens": 8192.0}) or 0) > (used.mfu(LINE) or 0)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("AMD EPYC 9654 96-Core Processor", "bf16"),
        ("NVIDIA H200", "fp32"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),
    ],
)
def test_the_mfu_is_absent_where_the_peak_is_not_known(shape: ModelShape, device: str, precision: str) -> None:
    assert utilization_of(shape, device, 8, precision).mfu(LINE) is None


def test_a_step_that_was_not_computed_has_no_mfu(shape: ModelShape) -> None:
    line = {name: value for name, value in LINE.items() if name != "context_tokens"}
    assert utilization_of(shape, "NVIDIA H200", 8, "bf16").mfu(line) is None
