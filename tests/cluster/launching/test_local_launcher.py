"""Ranks of one machine start together, hear signals and end together."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.environment import CAUSES
from cluster.launching.exit_codes import combined, first_cause
from cluster.launching.local_launcher import LocalRanks, RankNews, Seats, run_ranks, start_rank
from cluster.launching.rank_cause import causes_of, file_for_causes, path_of, tell_cause
from cluster.machine import host_name
from cluster.processes import alive_since

ROOT = Path(__file__).resolve().parents[3]


def ranks(code: str, size: int) -> int:
    begin = "import os, sys, time, signal; rank = int(os.environ['RANK'])"
    return run_ranks([sys.executable, "-c", f"{begin}; {code}"], size)


def launcher_of(rank_code: str) -> subprocess.Popen[bytes]:
    """Start a process that runs `rank_code` as two ranks."""
    imports = "import sys; from cluster.launching.local_launcher import run_ranks"
    code = f"{imports}; run = [sys.executable, '-c', {rank_code!r}]"
    return subprocess.Popen([sys.executable, "-c", f"{code}; sys.exit(run_ranks(run, 2))"], cwd=ROOT)


def test_every_rank_gets_its_number_and_the_meeting_point(tmp_path: Path) -> None:
    code = f"open(f'{tmp_path}/{{rank}}', 'w').write(os.environ['WORLD_SIZE'] + os.environ['MASTER_ADDR'])"
    assert ranks(code, 3) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2"]
    assert {p.read_text() for p in tmp_path.iterdir()} == {"3127.0.0.1"}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 0), ([75, 75], 75), ([0, 1], 1), ([1, 2], 2), ([75, -9], 1), ([-15], 1), ([130, 1], 130), ([130, 2], 2)],
)
def test_one_exit_code_says_most_about_all_ranks(codes: list[int], expected: int) -> None:
    assert combined(codes) == expected


@pytest.mark.parametrize(
    ("endings", "first"), [(["SIGABRT", "SIGSEGV", "SIGKILL"], 2), (["SIGABRT", "SIGSEGV"], 1), (["SIGABRT"], 0)]
)
def test_what_kills_a_rank_from_outside_is_the_cause_before_how_others_end_without_it(
    endings: list[str], first: int
) -> None:
    causes = [f"rank {rank} (a) was killed by {ending}" for rank, ending in enumerate(endings)]
    assert first_cause(causes) == causes[first]
    assert first_cause([causes[0], "b was lost"]) == "b was lost" and first_cause([]) is None


def test_a_rank_that_dies_takes_the_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.launching.local_launcher.GRACE_S", 0.2)
    assert ranks("rank == 1 and os.kill(os.getpid(), signal.SIGKILL); time.sleep(600)", 2) == 1


@pytest.mark.parametrize(
    ("number", "causes"), [("KILL", [f"rank 1 ({host_name()}) was killed by SIGKILL"]), ("USR2", [])]
)
def test_the_rank_that_was_killed_is_the_cause_unless_it_was_asked_to_stop(
    tmp_path: Path, number: str, causes: list[str]
) -> None:
    told: list[str] = []
    target = "os.getppid()" if number == "USR2" else "os.getpid()"
    code = f"""import os, signal, time
from pathlib import Path
from cluster.processes import alive_since
pid = Path({str(tmp_path / "pid")!r})
if os.environ["RANK"] == "1":
    pid.with_name("new").write_text(str(os.getpid()))
    pid.with_name("new").rename(pid)
    os.kill({target}, signal.SIG{number})
    time.sleep(600)
while not pid.exists() or alive_since(int(pid.read_text())):
    time.sleep(0.02)
os._exit(1)"""
    run_ranks([sys.executable, "-c", code], 2, {"PYTHONPATH": str(ROOT)}, news=RankNews(note_cause=told.append))
    assert told == causes


def test_a_rank_that_did_not_listen_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.launching.local_launcher.AGAIN_S", 0.2)
    deaf = "signal.signal(signal.SIGUSR2, signal.SIG_IGN); os.kill(os.getppid(), signal.SIGUSR2); time.sleep(1)"
    hears = "signal.signal(signal.SIGUSR2, lambda number, frame: os._exit(75)); time.sleep(60); os._exit(1)"
    assert ranks(f"{deaf}; {hears}", 1) == 75


class Stuck:
    """A rank that the kernel holds: a real one needs a driver that hangs."""

    returncode = None

    def poll(self) -> None: ...

    def send_signal(self, number: int, /) -> None: ...

    def kill(self) -> None: ...


def test_a_rank_that_cannot_be_killed_keeps_neither_the_others_nor_the_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.launching.local_launcher.KILL_S", 0.2)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    seats = Seats(first=4, size=8, master=("127.0.0.1", 1))
    local = LocalRanks(seats, RankNews(host="node2"), ranks=[Stuck(), other])
    assert local.kill() == ["rank 4 on node2"]
    assert other.returncode == -signal.SIGKILL


def test_a_rank_that_says_why_it_failed_is_the_cause_and_not_what_follows_from_it() -> None:
    told: list[str] = []
    code = """import os, time
from cluster.launching.rank_cause import tell_cause
if os.environ["RANK"] == "1":
    tell_cause(1, "rank 1 (a) failed: OutOfMemoryError: CUDA out of memory")
    os._exit(1)
time.sleep(0.5)
tell_cause(0, "rank 0 (a) failed: of something that follows from it")
os._exit(1)"""
    run_ranks([sys.executable, "-c", code], 2, {"PYTHONPATH": str(ROOT)}, news=RankNews(note_cause=told.append))
    assert told == ["rank 1 (a) failed: OutOfMemoryError: CUDA out of memory"]


def test_what_a_rank_was_writing_as_it_died_is_left_out_and_so_is_what_a_person_must_act_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with file_for_causes() as told:
        assert told is not None
        monkeypatch.setenv(CAUSES, path_of(told))
        tell_cause(1, "rank 1 failed")
        tell_cause(0, "rank 0 was refused")
        with Path(path_of(told)).open("a") as file:
            file.write('[2, "half a rea')
        assert causes_of(told, {0: 2, 1: 1, 2: 1}) == ["rank 1 failed"]


def test_ranks_start_where_the_kernel_gives_no_file_for_their_causes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.ENFILE, "Too many open files in system")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert run_ranks([sys.executable, "-c", "import os; assert 'SHARDLINE_CAUSES' not in os.environ"], 1) == 0
    assert "why a rank fails will be in its log only" in caplog.text


def test_a_rank_that_was_killed_comes_before_one_that_failed_and_that_before_what_torch_has_aborted() -> None:
    aborted, failed = "rank 3 on node1 was killed by SIGABRT", "rank 5 on node2 failed: AcceleratorError: ECC"
    assert first_cause([aborted, failed]) == failed
    assert (
        first_cause([failed, "rank 2 on node1 was killed by SIGKILL", aborted])
        == "rank 2 on node1 was killed by SIGKILL"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_every_rank(tmp_path: Path, number: signal.Signals) -> None:
    rank = (
        f"import os, sys, time, signal; r = os.environ['RANK']; signal.signal({int(number)}, lambda *_: sys.exit(75));"
        f" open('{tmp_path}/' + r, 'w').close(); time.sleep(600)"
    )
    process = launcher_of(rank)
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(120) == 75


def test_ranks_that_ctrl_c_ends_before_they_listen_were_interrupted_by_a_person(tmp_path: Path) -> None:
    process = launcher_of(
        f"import os, time; open('{tmp_path}/' + os.environ['RANK'], 'w').close()\n"
        "try:\n time.sleep(600)\nexcept KeyboardInterrupt:\n os._exit(130)"
    )
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130


def test_what_the_ranks_are_to_know_is_in_their_environment() -> None:
    assert (
        run_ranks([sys.executable, "-c", "import os, sys; sys.exit(os.environ['OURS'] != 'x')"], 2, {"OURS": "x"}) == 0
    )


@pytest.mark.parametrize("size", [3, 1])
def test_a_signal_while_ranks_are_started_ends_those_that_are_there(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    started = []

    def start_one(*arguments: object) -> subprocess.Popen[bytes]:
        started.append(start_rank(*arguments))  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGUSR2)
        return started[-1]

    monkeypatch.setattr("cluster.launching.local_launcher.start_rank", start_one)
    assert ranks("signal.pause()", size) == 75
    assert len(started) == 1 and started[0].returncode is not None


def test_a_rank_that_a_signal_ends_before_it_listens_was_asked_to_stop(tmp_path: Path) -> None:
    process = launcher_of(f"import os, time; open('{tmp_path}/' + os.environ['RANK'], 'w').close(); time.sleep(600)")
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75


def test_ranks_die_with_their_launcher(tmp_path: Path) -> None:
    rank = f"import os, time; open('{tmp_path}/' + str(os.getpid()), 'w').close(); time.sleep(600)"
    process = launcher_of(rank)
    while len(pids := [int(p.name) for p in tmp_path.iterdir()]) < 2:
        time.sleep(0.02)
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while any(alive_since(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(alive_since(pid) for pid in pids)
