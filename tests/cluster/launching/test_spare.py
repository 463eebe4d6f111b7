"""Ranks that are forked from a spare process are as those that the launcher starts, and it is never needed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.environment import ATTEMPT
from cluster.launching.local_launcher import RankNews, run_ranks
from cluster.launching.spare import Spare
from cluster.machine import host_name

ROOT = Path(__file__).resolve().parents[3]
BECOME = """
import os, socket, sys, time
from cluster.environment import spare_of_launcher
from cluster.launching.forking import become_ranks, offer_memory
descriptor = spare_of_launcher()
if descriptor is not None:
    become_ranks(socket.socket(fileno=descriptor), lambda: {changed}, offer_memory())
rank = os.environ["RANK"]
"""
FACTS = """
from pathlib import Path
status = Path("/proc/self/status").read_text().splitlines()
kept = [line for line in status if line.startswith(("Umask", "SigB", "SigI", "SigC", "Cpus_", "Threads"))]
facts = [os.getppid(), os.getpgid(0) == os.getpid(), os.getsid(0), os.getcwd(), os.nice(0), os.umask(0o22), *kept,
    *sorted(os.environ.items()), sorted(os.listdir("/proc/self/fd"))[:-1], os.readlink("/proc/self/fd/1"),
    Path("/proc/self/limits").read_text(), Path("/proc/self/oom_score_adj").read_text(), sys.argv]
Path(sys.argv[1] + rank).write_text("\\n".join(map(str, facts)))
"""


@pytest.fixture
def spare_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Spare]]:
    """Start a spare process that runs this code as each of its ranks, and wait until it is ready."""
    monkeypatch.setattr("cluster.launching.spare.DUE_S", 0.0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made: list[Spare] = []

    def start(code: str, *arguments: str, changed: str = "''") -> Spare:
        spare = Spare([sys.executable, "-c", BECOME.format(changed=changed) + code, *arguments])
        made.append(spare)
        while not (spare.is_ready or spare.is_refused):
            spare.tend()
        return spare

    yield start
    for spare in made:
        spare.end()


def test_a_forked_rank_is_as_one_that_was_started(tmp_path: Path, spare_of: Callable[..., Spare]) -> None:
    (tmp_path / "fresh").mkdir()
    (tmp_path / "forked").mkdir()
    fresh = [sys.executable, "-c", BECOME.format(changed="''") + FACTS, str(tmp_path / "fresh" / "rank")]
    spare = spare_of(FACTS, str(tmp_path / "forked" / "rank"))
    assert run_ranks(fresh, 2, {ATTEMPT: "local-1"}) == 0
    assert run_ranks(["false"], 2, {ATTEMPT: "local-1"}, spare=spare) == 0
    for rank in ("rank0", "rank1"):
        one, other = ((tmp_path / way / rank).read_text().splitlines() for way in ("fresh", "forked"))
        differing = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
        own = ("('MASTER_PORT'", "('SHARDLINE_CAUSES'")
        assert all(a.startswith(own) or "/rank" in a for a, _ in differing), differing


def test_a_spare_process_that_is_killed_while_ranks_work_is_told_once(spare_of: Callable[..., Spare]) -> None:
    spare = spare_of("")
    assert spare.process is not None and not spare.tend()
    spare.process.kill()
    spare.process.wait()
    assert [spare.tend(), spare.tend()] == [True, False]
    assert not spare.is_usable({})
    assert not spare.is_refused  # another attempt has another one


def test_exit_codes_and_signals_of_forked_ranks_reach_the_launcher(spare_of: Callable[..., Spare]) -> None:
    spare = spare_of("sys.exit(75) if rank == '0' else os.kill(os.getpid(), 9)")
    told: list[str] = []
    assert run_ranks(["false"], 2, spare=spare, news=RankNews(note_cause=told.append)) == 1
    assert told == [f"rank 1 ({host_name()}) was killed by SIGKILL"]


def test_forked_ranks_live_on_without_the_spare_process_and_die_with_the_launcher(tmp_path: Path) -> None:
    rank = BECOME.format(changed="''") + "open(sys.argv[1] + '/' + str(os.getpid()), 'w').close(); time.sleep(600)"
    launcher = f"""
import sys
from cluster.launching.local_launcher import run_ranks
from cluster.launching import spare as module
module.DUE_S = 0.0
spare = module.Spare([sys.executable, "-c", {rank!r}, {str(tmp_path)!r}])
while not spare.is_ready:
    spare.tend()
fork = spare.fork
def fork_last(environment):
    rank = fork(environment)
    environment["RANK"] == "1" and spare.end()
    return rank
spare.fork = fork_last
run_ranks(["false"], 2, spare=spare)
"""
    process = subprocess.Popen([sys.executable, "-c", launcher], cwd=ROOT)
    while len(pids := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)
    assert all(map(is_alive, pids))
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(is_alive, pids))


def test_a_signal_to_the_launcher_reaches_forked_ranks(tmp_path: Path, spare_of: Callable[..., Spare]) -> None:
    spare = spare_of(
        "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "rank == '1' and os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
    )
    assert run_ranks(["false"], 2, spare=spare) == 75


@pytest.mark.parametrize("changed", ["'a.py has changed'", "os._exit(0)", "os.kill(os.getpid(), 19)"])
def test_ranks_are_started_afresh_where_the_spare_process_is_stale_gone_or_stopped(
    changed: str, spare_of: Callable[..., Spare], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.launching.spare.ANSWER_S", 0.5)
    spare = spare_of("sys.exit(3)", changed=changed)
    with caplog.at_level("INFO"):
        assert run_ranks([sys.executable, "-c", ""], 2, spare=spare) == 0
    assert "the ranks are started afresh, not from the spare process: " in caplog.text
    assert not spare.is_refused


def test_a_variable_that_libraries_may_have_read_makes_the_spare_process_stale(
    spare_of: Callable[..., Spare], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spare = spare_of("sys.exit(3)")
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    with caplog.at_level("INFO"):
        assert run_ranks([sys.executable, "-c", ""], 1, spare=spare) == 0
    assert "the environment has changed: NCCL_ALGO" in caplog.text


def test_a_spare_process_that_cannot_be_used_is_told_once_and_not_started_again(
    spare_of: Callable[..., Spare], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.launching.spare.DUE_S", 0.0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    spare = Spare([sys.executable, "-c", "raise SystemExit(1)"])
    with caplog.at_level("INFO"):
        while not spare.is_refused:
            spare.tend()
    spare.tend()
    assert caplog.text.count("no spare process for quick restarts here: it has ended") == 1
    assert spare.process is None


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
