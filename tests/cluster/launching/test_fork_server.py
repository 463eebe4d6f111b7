"""Ranks that are forked from the fork server are as those that the launcher starts, and it is never needed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.environment import ATTEMPT
from cluster.launching.fork_server import ForkServer, fork_server_for
from cluster.launching.local_launcher import RankNews, run_ranks
from cluster.machine import host_name

ROOT = Path(__file__).resolve().parents[3]
BECOME = """
import os, socket, sys, time
from cluster.environment import fork_server_socket
from cluster.launching.forking import become_ranks, set_apart
descriptor = fork_server_socket()
if descriptor is not None:
    control = socket.socket(fileno=descriptor)
    print(control.recv(100).decode())
    become_ranks(control, lambda: {changed}, set_apart())
rank = os.environ["RANK"]
"""
FACTS = """
from pathlib import Path
status = Path("/proc/self/status").read_text().splitlines()
kept = [line for line in status if line.startswith(("Umask", "SigB", "SigI", "SigC", "Cpus_", "Threads"))]
facts = [os.getppid(), os.getpgid(0) == os.getpid(), os.getsid(0), os.getcwd(), os.nice(0), os.umask(0o22), *kept,
    *sorted(os.environ.items()), sorted(os.listdir("/proc/self/fd"))[:-1], os.readlink("/proc/self/fd/1"),
    *(Path(f"/proc/self/{name}").read_text() for name in ("limits", "oom_score_adj", "comm")), sys.argv]
Path(sys.argv[1] + rank).write_text("\\n".join(map(str, facts)))
"""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ForkServer]]:
    """Start a fork server that runs this code as each of its ranks, and wait until it is ready."""
    monkeypatch.setattr("cluster.launching.fork_server.DUE_S", 0.0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made: list[ForkServer] = []

    def start(code: str, *arguments: str, changed: str = "''") -> ForkServer:
        server = ForkServer([sys.executable, "-c", BECOME.format(changed=changed) + code, *arguments])
        made.append(server)
        while not (server.is_ready or server.is_refused):
            server.tend()
        return server

    yield start
    for server in made:
        server.end()


def test_a_forked_rank_is_as_one_that_was_started(tmp_path: Path, served: Callable[..., ForkServer]) -> None:
    (tmp_path / "fresh").mkdir()
    (tmp_path / "forked").mkdir()
    fresh = [sys.executable, "-c", BECOME.format(changed="''") + FACTS, str(tmp_path / "fresh" / "rank")]
    server = served(FACTS, str(tmp_path / "forked" / "rank"))
    assert run_ranks(fresh, 2, {ATTEMPT: "local-1"}) == 0
    assert run_ranks(["false"], 2, {ATTEMPT: "local-1"}, server=server) == 0
    for rank in ("rank0", "rank1"):
        one, other = ((tmp_path / way / rank).read_text().splitlines() for way in ("fresh", "forked"))
        differing = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
        own = ("('MASTER_PORT'", "('SHARDLINE_CAUSES'", "('SHARDLINE_STARTED'")
        assert all(a.startswith(own) or "/rank" in a for a, _ in differing), differing


def test_a_fork_server_that_is_killed_while_ranks_work_is_told_once(served: Callable[..., ForkServer]) -> None:
    server = served("")
    assert server.process is not None and not server.tend()
    server.process.kill()
    server.process.wait()
    assert [server.tend(), server.tend()] == [True, False]
    assert not server.is_usable({}, bool)
    assert not server.is_refused  # another attempt has another one


def test_exit_codes_and_signals_of_forked_ranks_reach_the_launcher(served: Callable[..., ForkServer]) -> None:
    server = served("sys.exit(75) if rank == '0' else os.kill(os.getpid(), 9)")
    told: list[str] = []
    assert run_ranks(["false"], 2, server=server, news=RankNews(note_cause=told.append)) == 1
    assert told == [f"rank 1 ({host_name()}) was killed by SIGKILL"]


def test_forked_ranks_live_on_without_the_fork_server_and_die_with_the_launcher(tmp_path: Path) -> None:
    rank = BECOME.format(changed="''") + "open(sys.argv[1] + '/' + str(os.getpid()), 'w').close(); time.sleep(600)"
    launcher = f"""
import sys
from cluster.launching.local_launcher import run_ranks
from cluster.launching import fork_server as module
module.DUE_S = 0.0
server = module.ForkServer([sys.executable, "-c", {rank!r}, {str(tmp_path)!r}])
while not server.is_ready:
    server.tend()
fork = server.fork
def fork_last(environment):
    rank = fork(environment)
    environment["RANK"] == "1" and server.end()
    return rank
server.fork = fork_last
run_ranks(["false"], 2, server=server)
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


def test_a_signal_to_the_launcher_reaches_forked_ranks(tmp_path: Path, served: Callable[..., ForkServer]) -> None:
    server = served(
        "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "rank == '1' and os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
    )
    assert run_ranks(["false"], 2, server=server) == 75


@pytest.mark.parametrize("changed", ["'a.py has changed'", "os._exit(0)", "os.kill(os.getpid(), 19)"])
def test_ranks_are_started_afresh_where_the_fork_server_is_stale_gone_or_stopped(
    changed: str, served: Callable[..., ForkServer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.launching.fork_server.ANSWER_S", 0.5)
    server = served("sys.exit(3)", changed=changed)
    with caplog.at_level("INFO"):
        assert run_ranks([sys.executable, "-c", ""], 2, server=server) == 0
    assert "no rank can be forked from the fork server any more: " in caplog.text
    assert not server.is_refused


def test_a_variable_that_libraries_may_have_read_makes_the_fork_server_stale(
    served: Callable[..., ForkServer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = served("sys.exit(3)")
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    with caplog.at_level("INFO"):
        assert run_ranks([sys.executable, "-c", ""], 1, server=server) == 0
    assert "the environment has changed: NCCL_ALGO" in caplog.text


def test_a_fork_server_that_cannot_be_used_is_told_once_and_not_started_again(
    served: Callable[..., ForkServer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.launching.fork_server.DUE_S", 0.0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    server = ForkServer([sys.executable, "-c", "raise SystemExit(1)"])
    with caplog.at_level("INFO"):
        while not server.is_refused:
            server.tend()
    server.tend()
    assert caplog.text.count("no fork server, so each rank imports for itself when it starts: it has ended") == 1
    assert server.process is None


def first_server(code: str, before: str = "") -> ForkServer:
    """Return a fork server that is started before the ranks; `before` is what it runs before it is ready."""
    return ForkServer([sys.executable, "-c", before + BECOME.format(changed="''") + code], comes_first=True)


def test_without_gpus_the_first_ranks_are_forked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    server = first_server("sys.exit(75)")
    assert run_ranks(["false"], 2, server=server) == 75
    assert run_ranks(["false"], 2, server=server) == 75
    server.end()


def test_ranks_are_started_where_the_server_that_comes_first_dies_or_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.launching.fork_server.LONGEST_START_S", 0.5)
    for before, why in (("import os; os._exit(9);", "it has ended"), ("import time; time.sleep(60);", "within 0 s")):
        with caplog.at_level("INFO"):
            assert run_ranks([sys.executable, "-c", ""], 2, server=first_server("", before)) == 0
        assert why in caplog.text


def test_a_stop_while_the_server_imports_starts_no_rank(tmp_path: Path) -> None:
    server = first_server("", "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60);")
    began = tmp_path / "began"
    assert run_ranks(["touch", str(began)], 2, server=server) == 75
    assert not began.exists()
    server.end()


@pytest.mark.parametrize(
    ("visible", "ranks", "restart", "first"),
    [("", 2, False, True), ("", 1, True, True), ("", 1, False, None), ("0,1", 2, True, False), ("0,1", 2, False, None)],
)
def test_a_server_comes_first_where_it_saves_an_import_and_no_gpu_is_there(
    visible: str, ranks: int, restart: bool, first: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with fork_server_for(["false"], ranks, restart=restart) as server:
        assert (server and server.comes_first) is first


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
