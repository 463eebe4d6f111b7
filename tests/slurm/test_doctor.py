"""`shardline doctor` on the hosts of a real Slurm job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_that_one_host_does_not_share_is_named_with_the_host(slurm: Any, tmp_path: Path) -> None:
    doctor = (
        f"cd '{ROOT}'; '{sys.executable}' -m launch doctor examples/text.yaml -o folder=/dev/shm/doctor-of-a-test"
        " --hosts --skip network --within 300; echo ended with $?"  # each host has a /dev/shm of its own
    )
    job = slurm.submit("-N2", "--job-name=shardline", "--output=%x-%j.log", f"--wrap={doctor}", cwd=tmp_path)
    job.wait()
    text = " ".join(job.log().split())
    assert "FAILURE folder node2: /dev/shm/doctor-of-a-test is not shared" in text
    assert f"job {job.number} may be requeued" in text
    assert "ended with 2" in text
