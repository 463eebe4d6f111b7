"""A rank's log has all that the rank wrote, whatever ended it; the console has what it had before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.launching.rank_log import KEPT_ATTEMPTS, remove_old

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import ctypes, logging, os, subprocess, sys
from pathlib import Path
from cluster.network.world import World
from cluster.journal.log import set_up_logging
from cluster.launching.rank_log import rank_log

rank, path = int(sys.argv[1]), Path(sys.argv[2])
world = World(rank=rank, size=2, local_rank=rank, local_size=2, master=("localhost", 1))
set_up_logging(world)
with rank_log(path, "a heading", is_shown=world.is_first) as file:
    set_up_logging(world, file)
    logging.getLogger("cluster").warning("a warning")
    logging.getLogger("cluster").info("a fact")
    print("from Python")
    ctypes.CDLL(None).write(2, b"from native code\\n", 17)
    subprocess.run(["echo", "from a child"])
    exec(sys.argv[3])
set_up_logging(world)
print("after it")
"""
OUTPUT = ("from Python", "from native code", "from a child")


def run(rank: int, path: Path, last: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(rank), str(path), last]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_has_left_all_of_its_output(tmp_path: Path, rank: int) -> None:
    path = tmp_path / "logs" / "local-1-rank0.log"
    done = run(rank, path, f"os.kill(os.getpid(), {int(signal.SIGKILL)})")
    text, console = path.read_text(), done.stdout + done.stderr
    assert done.returncode == -signal.SIGKILL
    assert text.startswith("== a heading\n") and "a warning" in text
    assert all(text.count(line) == 1 for line in OUTPUT)
    assert console.count("a warning") == 1
    assert all(console.count(line) == (rank == 0) for line in (*OUTPUT, "a fact"))


def test_the_first_ranks_standard_output_and_error_stay_apart_and_come_before_what_follows(tmp_path: Path) -> None:
    done = run(0, tmp_path / "log", "pass")
    assert done.stdout == "from Python\nfrom a child\nafter it\n"
    assert "from native code" in done.stderr and "from Python" not in done.stderr
    assert "after it" not in (tmp_path / "log").read_text()


def test_a_rank_does_not_wait_for_duplicates_of_its_output_that_a_library_has_left_open(tmp_path: Path) -> None:
    last = "import cluster.launching.rank_log as module; module.TEE_S = 3600; kept = os.dup(2), os.dup(1)"
    done = run(0, tmp_path / "log", f"{last}; import atexit; atexit.register(os.write, kept[0], b'at the end')")
    assert done.returncode == 0
    assert done.stderr.endswith("at the end") and "at the end" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (f"os.kill(os.getpid(), {int(signal.SIGSEGV)})", "Fatal Python error: Segmentation fault"),
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("os.abort()", "Fatal Python error: Aborted"),
    ],
)
def test_what_a_rank_died_of_is_in_its_log(tmp_path: Path, last: str, said: str) -> None:
    assert run(1, tmp_path / "log", last).returncode != 0
    assert said in (tmp_path / "log").read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_does_not_end_a_rank_that_prints(rank: int) -> None:
    done = run(rank, Path("/dev/full"), "print('x' * 100_000); print('y', file=sys.stderr, flush=True)")
    assert (done.returncode, "after it" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_a_log_that_cannot_be_closed_does_not_end_a_rank_and_is_told_once(tmp_path: Path, rank: int) -> None:
    done = run(rank, tmp_path / "log", "os.close(file.fileno())")
    assert (done.returncode, "after it" in done.stdout) == (0, True), done.stderr
    assert done.stderr.count("Bad file descriptor; output of this rank is lost") == 1


def test_a_rank_knows_that_its_log_lacks_something(tmp_path: Path) -> None:
    last = "from cluster.launching.rank_log import has_lost\nfile.write('x\\n')\nsys.exit(3 if has_lost(file) else 4)"
    assert [run(1, path, last).returncode for path in (Path("/dev/full"), tmp_path / "log")] == [3, 4]


def test_what_is_printed_to_the_log_alone_is_not_on_the_console(tmp_path: Path) -> None:
    last = "from cluster.terminal import printing_to_log\nwith printing_to_log():\n    print('of no interest')"
    done = run(0, tmp_path / "log", last)
    assert "of no interest" in (tmp_path / "log").read_text()
    assert "of no interest" not in done.stdout + done.stderr


def test_a_rank_whose_log_cannot_be_opened_says_so_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no folder")
    done = run(1, tmp_path / "logs" / "log", "pass")
    assert done.returncode == 0 and "this rank has no log of its own" in done.stderr
    assert "from native code" in done.stderr


def test_old_attempts_are_removed_and_other_files_are_not(tmp_path: Path) -> None:
    names = [f"local-{attempt}-rank{rank}.log" for attempt in range(KEPT_ATTEMPTS + 2) for rank in (0, 1)]
    for second, name in enumerate([*names, "run-train-17.log"]):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (second, second))
    remove_old(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names[4:], "run-train-17.log"}


def test_large_logs_of_older_attempts_are_removed_but_never_those_of_the_newest_two(tmp_path: Path) -> None:
    for attempt in range(4):
        path = tmp_path / f"4711-{attempt}-rank0.log"
        path.write_text("")
        os.truncate(path, 700 << 20)
        os.utime(path, (attempt, attempt))
    remove_old(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4711-2-rank0.log", "4711-3-rank0.log"]
