"""Kinds of GPUs and networks as they are typed and as devices are named."""

from __future__ import annotations

import pytest

from cluster.errors import ConfigError
from training.costs.gpus import KINDS, kind_of_device, parse_gpus, parse_network, peak_of


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-PCIE-40GB", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("AMD EPYC 9654 96-Core Processor", None),
    ],
)
def test_a_device_is_found_by_its_name_and_never_taken_for_another(device: str, kind: str | None) -> None:
    found = kind_of_device(device)
    assert found is (KINDS[kind] if kind else None)
    assert found is None or found.peak_flops == peak_of(device)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("AMD EPYC 9654 96-Core Processor", None),
        ("", None),
    ],
)
def test_a_device_has_its_own_peak_or_none(device: str, peak: float | None) -> None:
    assert peak_of(device) == peak


def test_gpus_and_networks_are_understood_as_they_are_typed() -> None:
    assert parse_gpus("H200:4") == (KINDS["h200"], 4)
    assert parse_gpus("a100-80") == (KINDS["a100-80"], 8)
    assert (parse_network("400"), parse_network("8x400"), parse_network("2 x 200")) == (400, 3200, 400)


@pytest.mark.parametrize("text", ["", "0", "8x", "x400", "8x400x2", "-5", "nan"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a rate"):
        parse_network(text)
