"""Ranks that hang: found, named, ended, and started again."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, TIMEOUT_S = 30, 5.0


@pytest.fixture(scope="module")
def undisturbed(short_run: Callable[..., Any]) -> Any:
    run = short_run(steps=STEPS, save_every_steps=10)
    assert run.train() == 0, run.log.read_text()
    return run


def losses(run: Any) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in run.metrics()]


def report_of(run: Any) -> str:
    (path,) = run.paths.hangs.glob("*.txt")
    return str(path.read_text())


def test_a_stopped_rank_is_named_and_ended_and_the_run_continues_as_if_nothing_had_been(
    short_run: Callable[..., Any], undisturbed: Any
) -> None:
    run = short_run(steps=STEPS, save_every_steps=10, hang_timeout_s=TIMEOUT_S)
    process = run.start()
    run.watch(process, lambda run: len(run.steps()) >= 12)
    run.signal_rank(process, 1, signal.SIGSTOP)
    assert process.wait() == 1
    report = report_of(run)
    assert "they wait for rank 1 on " in report.splitlines()[0]
    assert "state T" in report.partition("== rank 1")[2]  # what Linux knows of the stopped one
    assert "in train_rank" in report.partition("== rank 0")[2].partition("== rank 1")[0]  # where the other one waits
    assert "they wait for rank 1" in run.ends()[-1]["reason"]
    assert str(run.paths.rank_log("local-1", 1)) in run.ends()[-1]["reason"]
    assert run.train() == 0
    assert losses(run) == losses(undisturbed)


def leave_dump(path: Path, number: int, state: str) -> None:
    """Write what NCCL's flight recorder would, of one collective."""
    entry = {"process_group": ("0", "default_pg"), "profiling_name": "nccl:_all_gather_base", "is_p2p": False}
    path.write_bytes(pickle.dumps({"entries": [{**entry, "collective_seq_id": number, "state": state}]}, protocol=2))


def test_a_rank_whose_interpreter_is_kept_busy_is_named_with_the_place_in_its_code(
    short_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = short_run(steps=STEPS, save_every_steps=10, hang_timeout_s=TIMEOUT_S)
    monkeypatch.setenv("TORCH_FR_DUMP_TEMP_FILE", str(tmp_path / "dump-"))
    leave_dump(tmp_path / "dump-0", 412, "started")
    leave_dump(tmp_path / "dump-1", 411, "completed")
    assert run.start_with("freeze", 20, 20).wait() == 1
    reason = run.ends()[-1]["reason"]
    assert "rank 0 waits in _all_gather_base number 412 of the default group; rank 1 is in no collective" in reason
    assert f"; log: {run.paths.logs}/local-1-rank1.log" in reason
    report = report_of(run)
    assert "they wait for rank 1 on " in report.splitlines()[0]
    assert "in freeze" in report.partition("== rank 1")[2]


def test_a_slow_save_is_waited_for_and_a_rank_that_stutters_is_reported_but_not_ended(
    short_run: Callable[..., Any],
) -> None:
    run = short_run(steps=10**6, save_every_steps=12, hang_timeout_s=TIMEOUT_S)
    process = run.start_with("slow-save", 0, 0)
    run.watch(process, lambda run: len(run.steps()) >= 13)
    while not run.events("straggler"):
        for number, seconds in ((signal.SIGSTOP, 1.2), (signal.SIGCONT, 1.8)):
            run.signal_rank(process, 1, number)
            time.sleep(seconds)
        assert process.poll() is None, run.log.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert {event["rank"] for event in run.events("straggler")} == {1}
    assert not list(run.paths.hangs.glob("*"))
