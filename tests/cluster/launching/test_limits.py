"""What the ranks of a host may use of it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.launching import limits
from cluster.launching.limits import share_near_gpu

LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)


def test_files_may_be_opened_up_to_the_hard_limit_and_crashes_leave_no_core() -> None:
    code = """import resource, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
from cluster.launching.limits import set_limits
set_limits()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard, resource.getrlimit(resource.RLIMIT_CORE)[0])"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True 0\n"


def test_processes_that_share_a_hosts_cpus_get_each_a_part_and_all_are_used() -> None:
    imports = "import os, sys; from cluster.launching.limits import keep_to_share"
    code = f"{imports}; keep_to_share(*map(int, sys.argv[1:]));"
    cpus = len(os.sched_getaffinity(0))

    def kept(number: int, count: int) -> set[int]:
        command = [sys.executable, "-c", f"{code} print(*os.sched_getaffinity(0))", str(number), str(count)]
        return set(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))

    shares = [kept(number, cpus) for number in range(cpus)]
    assert [len(share) for share in shares] == [1] * cpus and set.union(*shares) == os.sched_getaffinity(0)
    assert kept(cpus, cpus + 1) == os.sched_getaffinity(0)  # fewer CPUs than processes


@pytest.fixture
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's folder of PCI devices."""
    monkeypatch.setattr(limits, "PCI", tmp_path)
    monkeypatch.setattr(limits, "CPU", tmp_path / "no topology")  # each CPU is a core
    return tmp_path


def attach(near: Path, gpu: str, cpus: str) -> str:
    (near / gpu).mkdir()
    (near / gpu / "local_cpulist").write_text(f"{cpus}\n")
    return gpu


def test_the_cpus_next_to_a_gpu_are_divided_by_the_processes_whose_gpus_are_there(near: Path) -> None:
    gpus = [attach(near, f"0000:{bus:02x}:00.0", "0-3,8-11" if bus < 2 else "4-7,12") for bus in range(4)]
    cpus = [limits.cpus_near(gpu) for gpu in gpus]
    shares = [share_near_gpu(number, cpus) for number in range(4)]
    assert shares == [[0, 1, 2, 3], [8, 9, 10, 11], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    "cpus",
    [[{0, 1}, set()], [{0, 1}, {1, 2}], [{0}, {0}]],
    ids=["unknown for a GPU", "nodes that overlap", "fewer CPUs than processes"],
)
def test_where_the_kernel_does_not_tell_which_cpus_are_near_all_are_shared_out(cpus: list[set[int]]) -> None:
    assert share_near_gpu(0, cpus) == []


def test_a_process_keeps_to_the_cpus_that_it_may_use(near: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5, 6, 7, 8})
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cpus: kept.append(cpus))
    gpus = [attach(near, "0000:01:00.0", "0-5"), attach(near, "0000:02:00.0", "6-9")]
    for number in (0, 1):
        limits.keep_to_share(number, 2, gpus)
    limits.keep_to_share(1, 2, ["0000:03:00.0", "0000:02:00.0"])  # an address that the kernel does not know
    limits.keep_to_share(0, 2)
    assert kept == [[4, 5], [6, 7, 8], [6, 7], [4, 5]]
