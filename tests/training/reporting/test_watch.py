"""A status that is watched follows the run, fits the terminal, and ends when the run does."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from cluster.paths import RunPaths
from launch.__main__ import main
from tests.training.reporting.test_status import BEGIN, end, start, write_run
from training.reporting.run_state import read_state
from training.reporting.watch import (
    ENTER,
    LEAVE,
    frame,
    goes_on_now,
    list_text,
    looks,
    looks_at_all,
    loss_text,
    watch,
    watch_lines,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def running(tmp_path: Path) -> RunPaths:
    return write_run(RunPaths(tmp_path / "boutique"), [start(0, 0)], steps=5)


def test_the_watched_status_tells_what_the_ranks_do(running: RunPaths) -> None:
    running.heartbeats.mkdir()
    ranks = [{"rank": rank, "phase": phase, "step": 5} for rank, phase in enumerate(["data", "save", "save"])]
    (running.heartbeats / "all-ranks.json").write_text(json.dumps({"hosts": [{"ranks": ranks}]}))
    lines = watch_lines(running, read_state(running), BEGIN + timedelta(seconds=6), bars=True)
    assert "ranks        2 in save of step 6, 1 in data of step 6" in lines
    assert lines[-1].startswith("next         wait; to save and stop it: touch ")


def test_a_run_that_has_ended_is_shown_once(running: RunPaths) -> None:
    write_run(running, [start(0, 0), end(20, 20, "done", 0)], steps=20)
    written = io.StringIO()
    watch(lambda bars: looks(running, 0.2, bars), written)
    assert written.getvalue().count("state        finished") == 1
    assert "\x1b" not in written.getvalue()


def test_runs_are_watched_together_until_the_last_of_them_has_ended(running: RunPaths, tmp_path: Path) -> None:
    over = write_run(RunPaths(tmp_path / "over"), [start(0, 0), end(20, 20, "done", 0)], steps=20)
    broken = write_run(RunPaths(tmp_path / "broken"), [start(0, 0)], steps=5)
    broken.attempts.write_text("{}\n{}\n")
    now = BEGIN + timedelta(seconds=6)
    assert [goes_on_now(paths, now) for paths in (running, over, broken)] == [True, False, False]
    seen = list(looks_at_all(lambda: [running, over, broken], 0.0))  # by today's clock nobody has written for days
    assert len(seen) == 1 and [line.split()[0] for line in seen[0]] == ["boutique", "over", "broken"]


def test_the_course_of_the_loss_survives_values_that_are_no_numbers() -> None:
    assert loss_text([4.0, 3.0, float("nan"), 1.0]) == "4.0000 █▆x▁ 1.0000"
    assert loss_text([float("inf")]) == ""


def test_what_does_not_fit_is_cut_and_the_next_command_stays() -> None:
    drawn = frame([f"fact {number}" for number in range(100)], io.StringIO())
    assert drawn.count("\r\n") == 23
    assert "fact 99" in drawn


def test_ctrl_c_ends_a_watch_and_gives_the_terminal_back(tmp_path: Path) -> None:
    paths = write_run(RunPaths(tmp_path / "boutique"), [], steps=0)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "launch", "status", str(paths.root), "--watch", "0.2"]
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=theirs, env=environment) as process:
        os.close(theirs)
        written = read_until(ours, lambda text: text.count("never trained") >= 2)
        process.send_signal(signal.SIGINT)
        written += read_until(ours, lambda text: False)  # to its end: a terminal may hand it over in pieces
        assert process.wait(60) == 0
    assert written.startswith(ENTER)
    assert "never trained" in written.partition(LEAVE)[2]  # and stays above the prompt


def read_until(terminal: int, is_enough: Callable[[str], bool]) -> str:
    """Return what a terminal shows until it is enough, or nobody has it open any more."""
    written = b""
    while not is_enough(written.decode(errors="replace")):
        try:
            written += os.read(terminal, 4096)
        except OSError:  # Linux's end of a terminal
            break
    return written.decode(errors="replace")


def test_a_folder_of_runs_is_listed_though_one_is_damaged(
    running: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = write_run(RunPaths(running.root.parent / "other"), [], steps=1)
    damaged.metrics.write_text("{}\n")
    assert main(["status", str(running.root.parent)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("boutique  step 5 of 20  loss 2.5000  probably killed or crashed")
    assert second.startswith("other") and "metrics.jsonl:1: damaged: no number under step" in second
    assert list_text([running], BEGIN + timedelta(seconds=6)).endswith("the last step was written 1.0 s ago")
