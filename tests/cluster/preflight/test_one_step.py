"""Facts of many hosts through the one pipe of an srun: whole, or missing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.preflight.one_step import ask_together, facts_in, printed

FACTS = {"gpus": [{"index": n, "name": "NVIDIA H100 80GB HBM3", "noise": random.Random(n).random()} for n in range(64)]}


def test_facts_come_through_in_any_order_of_lines_and_among_others() -> None:
    lines = [line for host in ("a1", "a-2.org") for line in printed(host, {**FACTS, "host": host})]
    assert len(lines) > 4 and max(map(len, lines)) < 1000  # srun may cut longer ones
    random.Random(0).shuffle(lines)
    found = facts_in("welcome to the site\n" + "\n".join(lines))
    assert found == {host: {**FACTS, "host": host} for host in ("a1", "a-2.org")}


def test_a_host_of_which_a_line_is_missing_has_no_facts() -> None:
    whole, cut = list(printed("a1", FACTS)), list(printed("a2", FACTS))[:-1]
    mixed = [line[:300] + line[310:] for line in printed("a3", FACTS)]
    assert facts_in("\n".join([*whole, *cut, *mixed])).keys() == {"a1"}


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def make(does: str) -> None:
        (tmp_path / "srun").write_text(
            f"#!/bin/bash\nPATH=/usr/bin:/bin\nprintf '%s\\n' \"$@\" >{tmp_path}/words\n{does}"
        )
        (tmp_path / "srun").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("SLURM_GPUS", "8")

    return make


def test_who_has_answered_when_the_time_is_over_counts_and_others_are_told_with_srun_s_words(
    srun: Callable[[str], None], tmp_path: Path
) -> None:
    (line,) = printed("a1", {"clock": 1})
    lost = "srun: error: Task launch for StepId=7.1 failed on node a2: Communication connection failure"
    srun(f"echo '{line}'; echo '{lost}' >&2; [ -z \"$SLURM_GPUS\" ] || exit 1; exec sleep 60")
    answers = ask_together(["a1", "a2", "a20"], [], ["python"], within_s=3)
    assert answers.facts == {"a1": {"clock": 1}}
    assert answers.problem("a2", 3) == lost
    assert answers.problem("a20", 3) == "it did not answer within 3 s"
    srun("(echo '1: Traceback'; echo '1: KeyError: x'; echo 'srun: error: a2: task 1: Exited with exit code 1') >&2")
    assert ask_together(["a1", "a2"], [], ["python"], within_s=60).problem("a2", 60) == "KeyError: x"
    srun("echo 'srun: error: Unable to confirm allocation' >&2; exit 1")
    assert ask_together(["a1"], [], ["python"], within_s=60).problem("a1", 60).endswith("Unable to confirm allocation")


def test_a_job_that_is_to_stop_waits_for_no_host(srun: Callable[[str], None]) -> None:
    srun("exec sleep 60")
    assert ask_together(["a1"], [], ["python"], within_s=60, is_stopping=lambda: True).facts == {}


def test_srun_is_told_to_ask_each_host_once_and_to_wait_for_none(srun: Callable[[str], None], tmp_path: Path) -> None:
    srun("true")
    ask_together(["a1", "a2", "a20"], ["--container-image=x"], ["python", "-V"], within_s=60)
    words = (tmp_path / "words").read_text().splitlines()
    assert {"--nodes=3", "--ntasks=3", "--nodelist=a1,a2,a20", "--no-kill", "--container-image=x"} <= set(words)
    assert "--nodes=1" not in words and words[-2:] == ["python", "-V"]
