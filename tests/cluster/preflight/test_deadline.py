"""No probe hangs the preflight, and none fails unseen."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from cluster.preflight.deadline import answers
from cluster.preflight.findings import judge_each
from cluster.processes import process_state


def raise_error() -> None:
    raise ValueError("no such field")


def test_a_probe_that_hangs_is_ended_and_named_while_the_others_answer(tmp_path: Path) -> None:
    def hang() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(60)

    found = answers({"gpus": hang, "code": lambda: {"commit": "1"}}, within_s=3)
    assert found == {"gpus": {"error": "no answer within 3 s"}, "code": {"commit": "1"}}
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while process_state(pid) not in ("Z", "X"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_probe_that_raises_or_crashes_is_a_failure_of_its_check() -> None:
    probes: dict[str, Any] = {"code": raise_error, "torch": lambda: os.kill(os.getpid(), signal.SIGKILL)}
    found = answers(probes, within_s=60)
    assert found["code"] == {"error": "ValueError: no such field"}
    assert found["torch"]["error"].startswith("it ended without an answer")
    assert [f.level for name in probes for f in judge_each(name, {"a": found}, lambda facts: ())] == ["failure"] * 2


def test_a_check_whose_probe_did_not_run_is_not_ok() -> None:
    assert [f.found for f in judge_each("gpus", {"a": {}}, lambda facts: ())] == ["this check did not run"]


def test_a_long_answer_comes_whole() -> None:
    assert answers({"code": lambda: "x" * 1_000_000}, within_s=60) == {"code": "x" * 1_000_000}
