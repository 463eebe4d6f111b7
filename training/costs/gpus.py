"""Kinds of GPUs, what their data sheets say, and the networks between their nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.errors import ConfigError

GIB = 1 << 30
NETWORK_FORMS = "Gb/s per node, such as 400, or adapters x Gb/s, such as 8x400"


@dataclass(frozen=True, kw_only=True)
class GpuKind:
    """One kind of GPU. Bytes and rates are per GPU; `network_gbit` is what the maker's own node of eight has.

    `memory_bytes` is what CUDA reports, which is less than the name says. `attention_flops` is what FlashAttention 2
    reaches in forward and backward together. `nvlink` is one way; `host_bytes` is the memory of such a node's host;
    `is_compared` tells whether the step time was compared with a published run on this kind.
    """

    name: str
    memory_bytes: float
    peak_flops: float
    hbm: float
    nvlink: float
    network_gbit: float
    attention_flops: float
    pcie: float
    host_bytes: float
    is_compared: bool


# Dense bf16 FLOPs a second by a word of the name that torch gives a device, the more exact name first: from NVIDIA's
# data sheets, which give twice that, with sparsity, from Hopper on. It is the only table of peaks.
PEAKS: Mapping[str, float] = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A40": 149.7e12,
    "A10": 125e12,
}
NO_PEAK = ("H100 NVL", "MIG")  # another clock; a part of a GPU: they contain a name above

# Sources. Dense bf16 peak, memory bandwidth, NVLink (half of what sheets give, which is both ways) and PCIe (the same):
# NVIDIA's data sheets "H100 Tensor Core GPU" (SXM), "H200 Tensor Core GPU" (SXM), "A100 Tensor Core GPU" (SXM4) and
# "HGX B200"; Hopper's and Blackwell's sheets give twice the dense FLOPs, with sparsity. Network: the guides of DGX A100
# (8 x 200 Gb/s), H100, H200 and B200 (8 x 400 Gb/s), which also give the hosts' memory. Memory: what CUDA's messages of
# exhausted memory give as total capacity (79.1, 139.8, 79.2, 39.4 GiB; B200: pytorch/ao #4002, which also has its
# 7.68 TB/s). Attention: FlashAttention 2 (Dao 2023, arXiv 2307.08691) on A100; on H100 its curves in FlashAttention 3
# (Shah et al. 2024, arXiv 2407.08608); for B200 the same absolute rate is assumed.
H100 = GpuKind(
    name="H100",
    memory_bytes=79.1 * GIB,
    peak_flops=PEAKS["H100"],
    hbm=3.35e12,
    nvlink=450e9,
    network_gbit=3200,
    attention_flops=350e12,
    pcie=64e9,
    host_bytes=2e12,
    is_compared=True,
)
KINDS: Mapping[str, GpuKind] = {
    "h100": H100,
    "h200": replace(H100, name="H200", memory_bytes=139.8 * GIB, hbm=4.8e12, peak_flops=PEAKS["H200"]),
    "a100-80": GpuKind(
        name="A100-80",
        memory_bytes=79.2 * GIB,
        peak_flops=PEAKS["A100"],
        hbm=2.039e12,
        nvlink=300e9,
        network_gbit=1600,
        attention_flops=200e12,
        pcie=32e9,
        host_bytes=2e12,
        is_compared=True,
    ),
    "a100-40": GpuKind(
        name="A100-40",
        memory_bytes=39.4 * GIB,
        peak_flops=PEAKS["A100"],
        hbm=1.555e12,
        nvlink=300e9,
        network_gbit=1600,
        attention_flops=200e12,
        pcie=32e9,
        host_bytes=1e12,
        is_compared=False,
    ),
    "b200": GpuKind(
        name="B200",
        memory_bytes=178.3 * GIB,
        peak_flops=PEAKS["B200"],
        hbm=7.68e12,
        nvlink=900e9,
        network_gbit=3200,
        attention_flops=350e12,
        pcie=64e9,
        host_bytes=2e12,
        is_compared=False,
    ),
}
DEVICE_NAMES = {  # by a word of the name that torch gives a device; other variants have other clocks or memory
    "B200": "b200",
    "H200": "h200",
    "H100 80GB HBM3": "h100",
    "A100 SXM4 80GB": "a100-80",
    "A100 SXM4 40GB": "a100-40",
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes of equal GPUs. `network_gbit` is what all adapters of a node carry one way, in Gb/s."""

    kind: GpuKind
    nodes: int
    gpus_per_node: int
    network_gbit: float

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


def parse_gpus(text: str) -> tuple[GpuKind, int]:
    """Return the kind and the GPUs per node of `h200:8` or `h200`. Raises ConfigError for others."""
    name, _, count = text.lower().partition(":")
    if name not in KINDS:
        raise ConfigError(f"--gpus: {name!r} is not a known kind of GPU; known: {', '.join(KINDS)}")
    if count and (not count.isdecimal() or not 1 <= int(count) <= 72):
        raise ConfigError(f"--gpus: {count!r} is not a number of GPUs per node; write for example {name}:8")
    return KINDS[name], int(count or 8)


def parse_network(text: str) -> float:
    """Return the Gb/s per node of `400` or `8x400`. Raises ConfigError for others."""
    found = re.fullmatch(r"(?:(\d+)x)?(\d+(?:\.\d+)?)", text.lower().replace(" ", ""))
    total = int(found[1] or 1) * float(found[2]) if found else 0.0
    if not total:
        raise ConfigError(f"--network: {text!r} is not a rate; give {NETWORK_FORMS}")
    return total


def peak_of(device: str) -> float | None:
    """Return the dense bf16 FLOPs a second of a device by the name that torch gives it; None rather than a guess."""
    words = words_of(device)
    if any(f" {name} " in words for name in NO_PEAK):
        return None
    return next((peak for name, peak in PEAKS.items() if f" {name} " in words), None)


def words_of(device: str) -> str:
    return f" {device.replace('-', ' ')} "


def kind_of_device(device: str) -> GpuKind | None:
    """Return the kind of a device by the name that torch gives it; None if it is not in the table."""
    words = words_of(device)
    if any(f" {name} " in words for name in NO_PEAK):
        return None
    return next((KINDS[kind] for name, kind in DEVICE_NAMES.items() if f" {name} " in words), None)
