"""Two preparations in one folder: one works, the other says who does; the dead are in nobody's way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from data_prep.locks import LockFile, alone, new_token
from data_prep.prepare import LOCK

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from data_prep.locks import LockFile, alone
with alone(LockFile(Path(sys.argv[1])), "a test"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a data folder."""
    (tmp_path / "data").mkdir()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "data" / LOCK)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def of_another_host(lock: Path) -> None:
    lock.write_text(f"elsewhere-{new_token().partition('-')[2]}")


def test_a_second_preparation_ends_and_names_the_process_that_works(corpus, prepared, holder):
    with pytest.raises(ClusterError, match=rf"`shardline prepare` is at work here already: process {holder.pid} on "):
        prepared(corpus / "books")


def test_a_preparation_that_was_killed_keeps_nobody_out(corpus, prepared, holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()

    prepared(corpus / "books")

    assert not (tmp_path / "data" / LOCK).exists()


def test_a_process_of_another_host_that_touches_its_lock_is_alive(tmp_path):
    lock, stop = tmp_path / "lock", threading.Event()
    of_another_host(lock)

    def touch() -> None:
        while not stop.wait(0.02):
            os.utime(lock)

    beat = threading.Thread(target=touch)
    beat.start()
    with (
        pytest.raises(ClusterError, match=r"process \d+ on elsewhere; wait until it has ended"),
        alone(LockFile(lock, stale_s=5.0), "a test"),
    ):
        pass
    stop.set()
    beat.join()


def test_the_lock_of_a_process_of_another_host_that_is_dead_is_broken_when_it_is_stale(tmp_path):
    lock = tmp_path / "lock"
    of_another_host(lock)

    with alone(LockFile(lock, stale_s=0.3), "a test"):
        assert not lock.read_text().startswith("elsewhere")


def test_a_number_that_another_process_has_by_now_is_not_taken_for_its_former_owner(tmp_path):
    lock = tmp_path / "lock"
    host, namespace, pid, start, rest = new_token().rsplit("-", 4)
    lock.write_text("-".join([host, namespace, pid, str(int(start) - 1), rest]))

    with alone(LockFile(lock), "a test"):
        assert lock.exists()
