"""After a failure the ranks are forked once more from the fork server; what they compute is what the first ones did.

That these compute what ranks of another launcher do is in test_resume.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import ROOT
from tests.training.rank_programs.bits import exact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SAVE_EVERY = 50


@dataclass(frozen=True)
class Restarted:
    """A run that was started from a copy of the code, before and after one of its ranks was killed."""

    run: Any
    process: subprocess.Popen[str]
    checkout: Path
    first: list[list[Any]]
    """The steps of the first ranks."""
    second: list[list[Any]]
    """The steps of those after the failure, of which the first ones are taken again."""

    def says(self, text: str) -> bool:
        return text in self.run.log.read_text()


def is_between_saves(run: Any) -> bool:
    steps = len(run.steps())
    return steps > SAVE_EVERY and steps % SAVE_EVERY > SAVE_EVERY // 2


@pytest.fixture(scope="module")
def restarted(short_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    run = short_run(steps=10**6, schedule="constant", warmup_fraction=0.0, save_every_steps=SAVE_EVERY)
    checkout = tmp_path_factory.mktemp("checkout")
    for folder in ("cluster", "data_prep", "ds_configs", "launch", "training"):
        shutil.copytree(ROOT / folder, checkout / folder)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "SHARDLINE_PATIENCE": "0.01"}
    with run.log.open("w") as log:
        command = [*run.command(), "--restart"]
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log, text=True)
    try:
        run.watch(process, is_between_saves)
        run.signal_rank(process, 1, signal.SIGKILL)
        run.watch(process, lambda run: len(run.events("launch")) == 2)
        first = exact(run)
        run.watch(process, lambda run: len(run.events("start")) == 2 and run.steps()[-1] > first[-1][0])
        yield Restarted(run, process, checkout, first, exact(run)[run.events("start")[1]["step"] :])
    finally:
        process.kill()
        process.wait()


def test_ranks_forked_after_a_failure_take_the_same_steps_to_the_bit(restarted: Restarted) -> None:
    assert restarted.says("the ranks are forked from the fork server")
    again, last = restarted.second[0][0], restarted.first[-1][0]
    assert SAVE_EVERY < again < last
    assert restarted.second[: last - again + 1] == restarted.first[again - 1 :]


def test_another_fork_server_serves_when_the_code_has_changed_and_all_die_with_their_launcher(
    restarted: Restarted,
) -> None:
    run, process = restarted.run, restarted.process
    (restarted.checkout / "training" / "guards.py").touch()
    os.kill(run.ranks(process)[-1], signal.SIGKILL)
    run.watch(process, lambda run: restarted.says("no rank can be forked from the fork server any more"))
    assert restarted.says(f"the code has changed: {restarted.checkout / 'training' / 'guards.py'}")
    run.watch(process, lambda run: len(run.events("start")) == 3)
    run.kill(process, lambda run: True)
