"""One holder of a lock at a time; the dead are in nobody's way, and the living are never taken for dead from here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.disk.lock_holder import Holder
from cluster.disk.locks import LockFile, hold_lock
from cluster.errors import ClusterError

ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from cluster.disk.lock_holder import Holder
from cluster.disk.locks import LockFile, hold_lock
with hold_lock(LockFile(Path(sys.argv[1]), stale_s=float(sys.argv[2]), holder=Holder.here("shardline train"))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process that holds tmp_path/lock."""
    started: list[subprocess.Popen[bytes]] = []

    def start(stale_s: float = 120.0) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock"), str(stale_s)]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        assert started[-1].stdout is not None and started[-1].stdout.readline() == b"held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def elsewhere(lock: Path, **facts: Any) -> Holder:
    """Write a lock whose holder cannot be seen from here."""
    holder = replace(Holder.here("shardline train"), host="elsewhere", boot="another", **facts)
    lock.write_text(holder.text)
    return holder


@contextmanager
def touched(lock: Path) -> Iterator[None]:
    """Touch a lock as its holder does, only more often."""
    stop = threading.Event()

    def touch() -> None:
        while not stop.wait(0.02):
            os.utime(lock)

    beat = threading.Thread(target=touch)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()


def test_a_second_process_is_told_who_holds_the_lock_and_leaves_every_byte(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[bytes]]
) -> None:
    holder = hold()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    with (
        pytest.raises(ClusterError, match=rf"`shardline train` is already running here: process {holder.pid} on "),
        hold_lock(LockFile(tmp_path / "lock")),
    ):
        pass
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_a_process_that_was_killed_keeps_nobody_out(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[bytes]]
) -> None:
    killed = hold()
    killed.kill()
    killed.wait()
    with hold_lock(LockFile(tmp_path / "lock")):
        assert Holder.read((tmp_path / "lock").read_text()).pid == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_a_stopped_process_of_this_host_keeps_its_lock_however_long_it_was_not_touched(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[bytes]]
) -> None:
    hold().send_signal(signal.SIGSTOP)
    os.utime(tmp_path / "lock", (0, 0))
    with pytest.raises(ClusterError, match="is already running here"), hold_lock(LockFile(tmp_path / "lock")):
        pass


def test_a_holder_whose_lock_was_taken_by_another_ends_at_once_with_2(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[bytes]]
) -> None:
    holder = hold(stale_s=0.2)
    (tmp_path / "other").write_text(Holder.here("shardline export").text)
    (tmp_path / "other").rename(tmp_path / "lock")  # at once: the holder reads it at any moment
    assert holder.wait() == 2
    assert holder.stderr is not None and b"taken by `shardline export`" in holder.stderr.read()


def test_a_lock_that_was_removed_by_hand_is_made_again_by_its_holder(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "lock")
    with hold_lock(lock):
        (tmp_path / "lock").unlink()
        assert lock.touch()
        assert not LockFile(tmp_path / "lock").try_take()


def test_a_process_of_another_host_that_touches_its_lock_is_alive(tmp_path: Path) -> None:
    elsewhere(tmp_path / "lock")
    with (
        touched(tmp_path / "lock"),
        pytest.raises(ClusterError, match=r"process \d+ on elsewhere; wait until it has ended"),
        hold_lock(LockFile(tmp_path / "lock", stale_s=5.0)),
    ):
        pass


def test_a_process_of_another_host_that_does_not_touch_its_lock_is_dead(tmp_path: Path) -> None:
    elsewhere(tmp_path / "lock")
    with hold_lock(LockFile(tmp_path / "lock", stale_s=0.3)):
        assert Holder.read((tmp_path / "lock").read_text()).host != "elsewhere"


def test_a_lock_from_a_clock_that_was_set_back_is_not_waited_for_until_its_date(tmp_path: Path) -> None:
    elsewhere(tmp_path / "lock")
    tomorrow = time.time() + 86_400
    os.utime(tmp_path / "lock", (tomorrow, tomorrow))
    with hold_lock(LockFile(tmp_path / "lock", stale_s=0.3)):
        assert Holder.read((tmp_path / "lock").read_text()).host != "elsewhere"


def test_a_number_that_another_process_has_by_now_is_not_taken_for_its_former_owner(tmp_path: Path) -> None:
    here = Holder.here("shardline train")
    (tmp_path / "lock").write_text(replace(here, started=here.started - 1).text)
    with hold_lock(LockFile(tmp_path / "lock")):
        assert Holder.read((tmp_path / "lock").read_text()).started == here.started


@pytest.mark.parametrize("text", ["", "{", '{"host": "a"}', "an older kind of token"])
def test_a_lock_whose_text_a_crash_cut_short_is_judged_by_its_age(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    os.utime(tmp_path / "lock", (0, 0))
    with hold_lock(LockFile(tmp_path / "lock")):
        assert Holder.read((tmp_path / "lock").read_text()).pid == os.getpid()


def test_an_earlier_instance_of_the_same_slurm_job_is_waited_for_a_quarter_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    own, other = elsewhere(tmp_path / "lock"), elsewhere(tmp_path / "other", job="78")
    lock = LockFile(tmp_path / "lock")
    assert (lock.patience_s(own), lock.patience_s(other)) == (30.0, 120.0)


def test_an_instance_of_the_same_slurm_job_that_shows_that_it_lives_is_not_pushed_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    elsewhere(tmp_path / "lock")
    with (
        touched(tmp_path / "lock"),
        pytest.raises(ClusterError, match="on elsewhere, Slurm job 77"),
        hold_lock(LockFile(tmp_path / "lock", stale_s=5.0)),
    ):
        pass
