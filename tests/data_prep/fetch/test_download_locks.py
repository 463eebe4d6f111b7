"""Two preparations in one folder: one works, the other says who does; the dead are in nobody's way."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from data_prep.prepare import LOCK
from data_prep.shards import Manifest

ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from cluster.disk.lock_holder import Holder
from cluster.disk.locks import LockFile, hold_lock
with hold_lock(LockFile(Path(sys.argv[1]), holder=Holder.here("shardline prepare"))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the lock of a data folder."""
    (tmp_path / "data").mkdir()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "data" / LOCK)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_preparation_ends_and_names_the_process_that_works(
    corpus: Path, prepared: Callable[..., Manifest], holder: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(ClusterError, match=rf"`shardline prepare` is already running here: process {holder.pid} on "):
        prepared(corpus / "books")


def test_a_preparation_that_was_killed_keeps_nobody_out(
    corpus: Path, prepared: Callable[..., Manifest], holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()

    prepared(corpus / "books")

    assert not (tmp_path / "data" / LOCK).exists()
