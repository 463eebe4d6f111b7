"""What a machine has, as the kernel tells it."""

from __future__ import annotations

import pytest
import torch

from cluster.machine import features_in, has_bf16


def test_a_cpu_has_bf16_where_torch_has_fast_products_in_it() -> None:
    assert has_bf16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize(
    ("line", "features"),
    [
        ("flags\t\t: fpu avx2 avx512bw", ["fpu", "avx2", "avx512bw"]),
        ("Features\t: fp asimd bf16", ["fp", "asimd", "bf16"]),
        ("vmx flags\t: vnmi avx512bw", []),
        ("model name\t: bf16", []),
        ("", []),
    ],
)
def test_only_the_lines_of_features_are_read(line: str, features: list[str]) -> None:
    assert features_in(line) == features
