"""What a machine has, as the kernel tells it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.machine import features_in, has_bf16, out_of_memory_kills


def test_a_cpu_has_bf16_where_torch_has_fast_products_in_it() -> None:
    assert has_bf16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize(
    ("told", "is_quick"),
    [
        ("flags\t\t: avx2 avx512f avx512bw avx512vl avx512dq\n", True),
        ("flags\t\t: avx2 avx512f\nflags\t\t: avx2 avx512f\n", False),
        ("Features\t: fp asimd bf16\n", True),
        ("Features\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_avx_512_or_bf16_on_arm_is_what_it_takes(tmp_path: Path, told: str, is_quick: bool) -> None:
    (tmp_path / "cpuinfo").write_text(told)
    assert has_bf16(tmp_path / "cpuinfo") == is_quick


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


@pytest.mark.parametrize(
    ("groups", "file", "told", "kills"),
    [
        ("0::/slurm/job_7/step_0\n", "slurm/job_7/step_0/memory.events", "oom 3\noom_kill 2\n", 2),
        (
            "5:memory:/slurm/job_7\n0::/\n",
            "memory/slurm/job_7/memory.oom_control",
            "oom_kill_disable 0\noom_kill 1\n",
            1,
        ),
        ("0::/\n", "elsewhere", "", 0),
    ],
)
def test_deaths_for_want_of_memory_are_counted_as_the_kernel_tells_them(
    tmp_path: Path, groups: str, file: str, told: str, kills: int
) -> None:
    (tmp_path / "groups").write_text(groups)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(told)
    assert out_of_memory_kills(tmp_path / "groups", tmp_path) == kills
