"""How a host's part of a Ray cluster ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WAITS = ["--cpus=1", "--port=9", "--hosts=localhost,other"]  # nothing listens at port 9, so that no Ray is started
FIRST = "import os, signal; from cluster.launching.ray_host import leave_first; signal.signal(12, leave_first)"


def listens(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR2, 0), (signal.SIGTERM, 143)])
def test_a_host_that_the_launcher_ends_has_not_failed_and_its_folder_is_removed(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "ray"
    folder.mkdir()
    command = [sys.executable, "-m", "cluster.launching.ray_host", "--name=other", *WAITS, f"--folder={folder}", "--"]
    process = subprocess.Popen(command)
    while not listens(process.pid, number):
        time.sleep(0.02)
    process.send_signal(number)
    assert (process.wait(120), folder.exists()) == (code, False)


def test_a_first_host_that_a_signal_ends_has_not_done_its_work() -> None:
    done = subprocess.run([sys.executable, "-c", f"{FIRST}; os.kill(os.getpid(), 12)"], check=False)
    assert done.returncode == 140
