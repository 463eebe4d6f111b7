"""A rank's beat on its own host, and the watchdog that its host must not be without."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.heartbeats import heartbeat
from cluster.heartbeats.heartbeat import Heartbeat, Watchdog
from cluster.heartbeats.heartbeat_files import (
    Beat,
    HostBeats,
    RankFile,
    ended_before,
    launch_of,
    local_folders,
    lock_watchdog,
    parsed_object,
    read_local_beats,
    read_rank_file,
    read_small,
    replace_file,
)
from cluster.machine import host_name
from cluster.network.world import World
from cluster.paths import RunPaths
from cluster.processes import started_at

WORLD = World(rank=0, size=2, local_rank=0, local_size=2, master=("localhost", 29999))
LAUNCH = launch_of(WORLD)


@pytest.fixture
def beating(tmp_path: Path) -> Iterator[Heartbeat]:
    beat = Heartbeat(RunPaths(tmp_path), WORLD)
    beat.start()
    yield beat
    beat.stop()


def until(claim: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("node", ["", "rack1-node7"])
def test_a_rank_beats_on_its_own_host_and_its_last_beat_reaches_the_shared_disk(
    node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", node)  # the name by which two failures exclude a host
    host = node or host_name()
    beat = Heartbeat(RunPaths(tmp_path), WORLD)
    beat.start()
    folders = local_folders(RunPaths(tmp_path), LAUNCH, host)
    until(lambda: read_local_beats(folders, 2, LAUNCH))
    beat.phase("step", 7)
    assert not list(beat.paths.heartbeats.glob("*.json"))
    beat.stop()
    record = HostBeats.from_record(parsed_object((beat.paths.heartbeats / f"host-{host}.json").read_bytes()), 2)
    assert record is not None
    assert [(b.rank, b.host, b.phase, b.step) for b in record.beats] == [(0, host, "idle", 7)]


def test_a_beat_that_is_half_written_is_no_beat(beating: Heartbeat) -> None:
    folder = local_folders(beating.paths, LAUNCH, host_name())[0]
    until(lambda: read_local_beats([folder], 2, LAUNCH))
    beating.stop()
    content = (folder / "rank-00000").read_bytes()
    for size in range(0, 1024, 7):
        (folder / "rank-00000").write_bytes(content[:size].ljust(1024))
        beat = read_rank_file(folder / "rank-00000", 2)
        assert beat is None or content[:size].rstrip() == content.rstrip()
    (folder / "rank-00001").mkdir()
    assert read_rank_file(folder / "rank-00001", 2) is None
    (folder / "rank-00001").rmdir()
    assert read_small(Path("/dev/zero"), 100) is None


def test_a_watchdog_that_ends_is_started_again_a_bounded_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "die_with_parent", lambda: None)  # this test starts it from its own thread
    watchdog = Watchdog(RunPaths(tmp_path), WORLD, None, tmp_path)
    watchdog.command = ["true"]  # a process that ends at once
    watchdog.start()
    for second in range(60):
        assert watchdog.process is not None
        watchdog.process.wait()
        watchdog.check(float(second))
    starts = [record for record in caplog.records if "no watchdog on" in record.message]
    assert len(starts) == heartbeat.MOST_STARTS - 1
    assert [record.message for record in caplog.records if "a hang of its ranks will not be found" in record.message]


def test_a_launch_at_the_same_port_has_all_its_starts_of_the_watchdog_and_no_beat_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "die_with_parent", lambda: None)
    for _ in range(heartbeat.MOST_STARTS + 1):
        watchdog = Watchdog(RunPaths(tmp_path), WORLD, None, tmp_path)
        watchdog.command = ["true"]
        watchdog.start()
        assert watchdog.process is not None
        watchdog.process.wait()
    for second in (0.0, heartbeat.GONE_S):
        watchdog.check(second)
    assert not watchdog.has_given_up
    assert watchdog.process is not None
    watchdog.process.wait()
    other = Watchdog(RunPaths(tmp_path), WORLD, None, tmp_path)
    for second in (0.0, heartbeat.FIRST_S - 1):  # the first rank may still import
        other.check(second)
    assert other.process is None
    alive = started_at(os.getpid())
    assert alive is not None
    for rank, started in ((0, alive), (1, alive - 1)):
        file = RankFile(tmp_path, rank)
        beat = Beat(
            launch=LAUNCH, rank=rank, host=host_name(), pid=os.getpid(), started=started, phase="step", step=9, count=9
        )
        file.write(beat)
        file.close()
    before = ended_before([tmp_path], 2, LAUNCH)
    assert [beat.rank for beat in read_local_beats([tmp_path], 2, LAUNCH, before)] == [0]


def test_a_watchdog_that_lives_is_left_alone_and_only_one_lives(tmp_path: Path) -> None:
    first, second = (Watchdog(RunPaths(tmp_path), WORLD, None, tmp_path) for _ in range(2))
    first.command = second.command = ["sleep", "60"]
    first.start()
    assert first.process is not None
    try:
        second.start()
        for now in range(200):
            second.check(float(now))
        assert second.process is None
    finally:
        first.process.kill()
        first.process.wait()
    descriptor = lock_watchdog(tmp_path)
    assert descriptor is not None
    os.close(descriptor)


def watched(beating: Heartbeat) -> tuple[Path, Watchdog, subprocess.Popen[bytes]]:
    """Start the watchdog; return its host's file, now that it is there, the watchdog and its process."""
    path = beating.paths.heartbeats / f"host-{host_name()}.json"
    beating.start_watchdog(None)
    until(path.exists)
    watchdog = beating.watchdog
    assert watchdog is not None
    first = watchdog.process
    assert isinstance(first, subprocess.Popen)
    return path, watchdog, first


def test_a_killed_watchdog_is_replaced_by_one_that_writes_the_host_s_file_again(
    beating: Heartbeat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "GONE_S", 1.0)
    path, watchdog, first = watched(beating)
    first.send_signal(signal.SIGKILL)
    until(lambda: watchdog.process is not first)
    path.unlink()
    until(path.exists)
    assert watchdog.process is not None
    watchdog.process.kill()
    assert "no watchdog on" in caplog.text


def test_heartbeats_that_somebody_removed_are_made_again_and_watched_by_one_process(
    beating: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "GONE_S", 1.0)
    folder = local_folders(beating.paths, LAUNCH, host_name())[0]
    path, watchdog, first = watched(beating)
    shutil.rmtree(folder.rename(f"{folder}-removed"))  # by another name: the rank may write while it is emptied
    until(lambda: read_local_beats([folder], 2, LAUNCH))
    until(lambda: watchdog.process is not first)
    assert first.wait(timeout=120) == 0
    path.unlink()
    until(path.exists)
    assert watchdog.process is not None
    watchdog.process.kill()


def test_a_removed_folder_of_heartbeats_is_made_again_but_not_that_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run" / "heartbeats" / "host-a.json"
    with pytest.raises(FileNotFoundError):
        replace_file(path, {"beats": 1})
    assert not path.parent.parent.exists()
    path.parent.parent.mkdir()
    replace_file(path, {"beats": 2})
    assert path.read_text() == '{"beats":2}'
