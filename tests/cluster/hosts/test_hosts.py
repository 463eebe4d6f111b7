"""Several hosts without Slurm: one command on each makes one world, with one end. Here each host is a process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.hosts.meeting import PROTOCOL, Hello, other_settings
from cluster.hosts.peer import LINE_BYTES
from cluster.machine import hold_port
from cluster.network.world import HostPlace

ROOT = Path(__file__).resolve().parents[3]
HOST = """
import json, sys
from cluster.network.world import HostPlace
from cluster.errors import ShardlineError
from cluster.hosts.meeting import Hello
from cluster.hosts.ranks import run_on_hosts
from cluster.launching import local_launcher
from cluster.launching.local_launcher import RankNews
local_launcher.GRACE_S = 0.3
number, count, ranks, port, run, restart, code = json.loads(sys.argv[1])
place = HostPlace(number=number, count=count, ranks=ranks, master=("127.0.0.1", port))
hello = Hello(place=place, ranks=ranks, run={"train.seed": 1, "train.rate": run}, name="abc"[number])
try:
    python = "/nowhere/python" if code == "no interpreter" else sys.executable
    command = [python, "-c", "import os, signal, sys, time; rank = int(os.environ['RANK']); " + code]
    news = RankNews(note_cause=print)
    sys.exit(run_on_hosts(command, hello, lambda: None, restart=lambda are_all_there: restart, news=news))
except ShardlineError as error:
    print(error)
    sys.exit(2)
"""


class Hosts:
    """Starts the hosts of a run, each a process whose ranks run some code."""

    def __init__(self) -> None:
        self.held = hold_port()
        self.port = int(self.held.getsockname()[1])
        self.started: list[subprocess.Popen[str]] = []

    def __call__(
        self, number: int, code: str, *, ranks: int = 1, run: str = "same", restart: bool = False, count: int = 2
    ) -> subprocess.Popen[str]:
        words = json.dumps([number, count, ranks, self.port, run, restart, code])
        command = [sys.executable, "-c", HOST, words]
        self.started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return self.started[-1]

    def wait_for_the_first(self) -> None:
        """Return once host 0 listens."""
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                time.sleep(0.02)

    def wait_for_another(self) -> None:
        """Return once a host has connected to where host 0 would be."""
        with socket.create_server(("127.0.0.1", self.port)) as server:
            server.accept()[0].close()


@pytest.fixture
def host() -> Iterator[Hosts]:
    hosts = Hosts()
    yield hosts
    for process in hosts.started:
        process.kill()
        process.communicate()
    hosts.held.close()


def ends(*hosts: subprocess.Popen[str]) -> list[int]:
    return [process.wait(120) for process in hosts]


def test_ranks_of_unequal_hosts_are_one_world_that_meets_in_one_place(tmp_path: Path, host: Hosts) -> None:
    names = "WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    code = f"open(f'{tmp_path}/{{rank}}', 'w').write(' '.join(os.environ[n] for n in '{names}'.split()))"
    assert ends(host(1, code, ranks=1), host(0, code, ranks=2)) == [0, 0]
    worlds = [path.read_text().split() for path in sorted(tmp_path.iterdir())]
    assert [world[:3] for world in worlds] == [["3", "0", "2"], ["3", "1", "2"], ["3", "0", "1"]]
    assert len({tuple(world[3:]) for world in worlds}) == 1


@pytest.mark.parametrize(("code", "of_both"), [(2, 2), (75, 75), (-9, 1)])
def test_all_hosts_end_with_the_code_of_the_one_that_says_most(host: Hosts, code: int, of_both: int) -> None:
    end = "os.kill(os.getpid(), 9)" if code < 0 else f"sys.exit({code})"
    assert ends(host(0, "time.sleep(60)"), host(1, end)) == [of_both, of_both]


def test_a_failure_on_one_host_restarts_the_ranks_of_both(tmp_path: Path, host: Hosts) -> None:
    code = f"path = '{tmp_path}/' + str(rank); again = os.path.exists(path); open(path, 'w').close(); "
    both_began = f"while len(os.listdir('{tmp_path}')) < 2: time.sleep(0.01)"
    fails, waits = f"{code}\n{both_began}\nsys.exit(0 if again else 1)", f"{code}again or time.sleep(60)"
    assert ends(host(0, waits, restart=True), host(1, fails, restart=True)) == [0, 0]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_is_lost_ends_the_other_at_once(tmp_path: Path, host: Hosts, lost: int) -> None:
    code = f"open(f'{tmp_path}/{{rank}}', 'w').close(); time.sleep(600)"
    hosts = [host(0, code), host(1, code)]
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    hosts[lost].kill()
    assert ends(hosts[1 - lost]) == [1]


def test_ranks_that_fail_after_a_stop_was_asked_for_leave_the_rest_to_the_next_start(
    tmp_path: Path, host: Hosts
) -> None:
    fails = "signal.signal(signal.SIGUSR2, lambda number, frame: os._exit(1))"
    code = f"{fails}; open(f'{tmp_path}/{{rank}}', 'w').close(); time.sleep(600)"
    hosts = [host(0, code, restart=True), host(1, code, restart=True)]
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    hosts[0].send_signal(signal.SIGUSR2)
    assert ends(*hosts) == [75, 75]


def test_a_host_of_another_start_is_not_listened_to(host: Hosts) -> None:
    first = host(0, "")
    host.wait_for_the_first()
    with socket.create_connection(("127.0.0.1", host.port)) as stranger:
        hello = {"shardline": PROTOCOL, "host": 1, "hosts": 2, "ranks": 1, "name": "a", "run": {}, "token": "another"}
        stranger.sendall(json.dumps(hello).encode() + b"\n")
        assert stranger.recv(1) == b""
        assert ends(first, host(1, "")) == [0, 0]


def test_a_launcher_that_fails_says_why_and_its_host_does_not_count_as_lost(host: Hosts) -> None:
    first, other = host(0, "time.sleep(600)"), host(1, "no interpreter")
    assert ends(first, other) == [1, 1]
    assert first.stdout is not None
    assert "the launcher on b failed: [Errno 2]" in first.stdout.read()


def test_a_host_with_another_configuration_is_refused_on_both(host: Hosts) -> None:
    hosts = [host(0, "time.sleep(60)"), host(1, "time.sleep(60)", run="another")]
    assert ends(*hosts) == [2, 2]
    told = hosts[0].stdout.read() if hosts[0].stdout else ""
    assert "starts another run than host 0" in told and "train.seed" not in told
    assert ': train.rate is "another" there, "same" here; start the same' in told


def test_a_hello_with_more_settings_than_a_message_holds_still_tells_two_runs_apart() -> None:
    place = HostPlace(number=1, count=2, ranks=1, master=("127.0.0.1", 1))
    many = {f"data.sources.{number}.path": "\N{GRINNING FACE}" * 100 for number in range(20_000)}
    hellos = [Hello(place=place, ranks=1, run={**many, "seed": seed}) for seed in (1, 1, 2)]
    here, same, other = (hello.message()["run"] for hello in hellos)
    assert len(json.dumps(here)) < LINE_BYTES and other_settings(same, here) == ""
    assert other_settings(other, here).startswith("the YAML is 20,001 settings (sha256 ")


def test_the_first_host_hears_which_rank_of_another_one_was_killed(host: Hosts) -> None:
    hosts = [host(0, "time.sleep(0.1); sys.exit(1)"), host(1, "os.kill(os.getpid(), 9)")]
    assert ends(*hosts) == [1, 1]
    told = [one.stdout.read() if one.stdout else "" for one in hosts]
    assert told == [f"rank 1 ({socket.gethostname()}) was killed by SIGKILL\n", ""]


def test_a_host_that_counts_other_hosts_is_refused_on_both(host: Hosts) -> None:
    hosts = [host(0, "time.sleep(60)", count=3), host(1, "time.sleep(60)", count=2)]
    assert ends(*hosts) == [2, 2]
    assert "is host 1 of 2, but" in (hosts[0].stdout.read() if hosts[0].stdout else "")


@pytest.mark.parametrize(("number", "sent", "code"), [(0, signal.SIGTERM, 75), (1, signal.SIGINT, 130)])
def test_a_host_that_waits_for_another_ends_when_it_is_asked_to(
    host: Hosts, number: int, sent: signal.Signals, code: int
) -> None:
    waiting = host(number, "time.sleep(60)")
    (host.wait_for_another if number else host.wait_for_the_first)()
    waiting.send_signal(sent)
    assert ends(waiting) == [code]


def test_a_host_that_left_before_all_were_there_can_come_back(host: Hosts) -> None:
    first, second = host(0, "sys.exit(0)", count=3), host(1, "sys.exit(0)", count=3)
    host.wait_for_the_first()
    time.sleep(0.5)  # in which the second one comes too
    second.kill()
    assert ends(first, host(1, "sys.exit(0)", count=3), host(2, "sys.exit(0)", count=3)) == [0, 0, 0]


def test_a_run_on_one_host_waits_for_nobody(host: Hosts) -> None:
    assert ends(host(0, "sys.exit(75)", count=1)) == [75]


def test_hosts_that_do_not_come_are_not_waited_for_for_ever(host: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDLINE_PATIENCE", "0.0015")
    assert ends(host(0, "", count=3), host(1, "", count=3)) == [1, 1]
