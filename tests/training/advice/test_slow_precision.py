"""A precision that this machine is slow in is told before a run computes in it."""

from __future__ import annotations

import pytest

from training.advice import slow_precision
from training.advice.slow_precision import slow_precision_warning
from training.config import Precision, TrainConfig


@pytest.mark.parametrize(
    ("precision", "gpus", "has_bf16", "is_told"),
    [
        ("bf16", 0, False, True),
        ("bf16", 0, True, False),
        ("bf16", 1, False, False),
        ("fp32", 0, False, False),
    ],
)
def test_bf16_is_told_where_nothing_here_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, gpus: int, has_bf16: bool, is_told: bool
) -> None:
    monkeypatch.setattr(slow_precision, "gpu_count", lambda: gpus)
    monkeypatch.setattr(slow_precision, "has_bf16", lambda: has_bf16)
    told = slow_precision_warning(TrainConfig(precision=precision))
    assert (told is not None) == is_told
    assert told is None or "set fp32" in told
