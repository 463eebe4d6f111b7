"""A process of this host is told apart from another of the same id, and a dead one from a living one."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.processes import ENDED, alive_since, process_age_s, process_state, read_stat, started_at

ROOT = Path(__file__).resolve().parents[2]


def wait_for_state(pid: int, state: str) -> None:
    deadline = time.monotonic() + 60
    while process_state(pid) != state:
        assert time.monotonic() < deadline, f"process {pid} is in state {process_state(pid)}, expected {state}"
        time.sleep(0.02)


def test_a_process_is_followed_from_stopped_to_unreaped_to_gone() -> None:
    child = subprocess.Popen(["sleep", "600"])
    started = alive_since(child.pid)
    assert started is not None and started >= (alive_since(os.getpid()) or 0)
    child.send_signal(signal.SIGSTOP)
    wait_for_state(child.pid, "T")
    assert alive_since(child.pid) == started  # a stopped process is alive
    child.kill()
    wait_for_state(child.pid, "Z")
    assert (started_at(child.pid), alive_since(child.pid)) == (started, None)
    child.wait()
    assert (read_stat(child.pid), started_at(child.pid), process_state(child.pid)) == (None, None, ENDED)


@pytest.mark.parametrize("name", [b"a) S 1 (b", b"\xff\xfe) Z", b") ) )"])
def test_a_program_whose_name_looks_like_the_fields_after_it_is_read_right(name: bytes) -> None:
    stats = []

    def read_under_another_name() -> None:
        ctypes.CDLL(None).prctl(15, name)  # PR_SET_NAME, of this thread
        stats.append(read_stat(threading.get_native_id()))

    thread = threading.Thread(target=read_under_another_name)
    thread.start()
    thread.join()
    assert stats[0] is not None and stats[0].state == "R"
    assert stats[0].started >= (started_at(os.getpid()) or 0) > 0


def test_a_process_is_younger_than_the_one_that_started_it() -> None:
    program = "from cluster.processes import process_age_s; print(process_age_s())"
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 <= float(child.stdout) < process_age_s()
