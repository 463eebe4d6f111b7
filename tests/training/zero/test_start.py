"""What an engine's start does to the process that it starts in, and which DeepSpeed it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def start(trial_of: Callable[..., Any]) -> Any:
    return trial_of(1, "start_ranks.py").facts("start")


def test_torchs_compiler_is_not_loaded_and_torch_compile_is_what_it_was(start: Any) -> None:
    assert not start["compiler_is_loaded"]
    assert start["compile_is_restored"]


def test_the_shared_memory_collective_is_not_compiled_and_the_compatible_ops_are_what_they_were(start: Any) -> None:
    assert not start["shm_comm_is_compiled"]
    assert start["ops_are_restored"]


@pytest.mark.parametrize("name", ["_get_norm_groups", "_wait_for_offload_copies"])
def test_a_real_optimizer_without_a_private_method_does_not_start(start: Any, name: str) -> None:
    assert f"has no {name} (" in start["refusals"][name]
