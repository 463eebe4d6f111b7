"""The follower may be killed at any moment, as the run may: nothing is lost, and TensorBoard has no step twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.launching.companions import companions
from cluster.processes import process_state
from tests.training.tracking.life import Life
from tests.training.tracking.tensorboard_files import scalars
from training.tracking.follower import Follower, Session
from training.tracking.journal_tail import JournalTail
from training.tracking.news import Selection
from training.tracking.records import Cursor

ROOT = Path(__file__).resolve().parents[3]
MOMENTS = st.lists(st.sampled_from(["step", "resume", "roll back", "poll", "kill", "kill unsaved"]), max_size=40)


def happen(life: Life, moment: str) -> None:
    steps = life.steps()
    if moment == "step":
        life.run(3)
    if steps and moment == "resume":
        life.begin(max(0, steps[-1] - 4))
    if steps and moment == "roll back":
        life.roll_back(max(0, steps[-1] - 5))


@given(moments=MOMENTS, can_purge=st.booleans())
@settings(max_examples=40, deadline=None)
def test_whatever_happens_a_tracker_ends_up_with_every_step(
    moments: list[str], can_purge: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    life = Life(tmp_path_factory.mktemp("life"))
    life.begin(0)
    cursor, selection, tail = Cursor(), Selection(Cursor(), can_purge), JournalTail(life.paths)
    has: list[tuple[int, float]] = []  # what the tracker has
    for moment in [*moments, "step", "poll"]:
        happen(life, moment)
        if moment in ("poll", "kill unsaved"):
            news, after = selection.next(*tail.read())
            if news.rewound_to is not None and can_purge:
                has = [one for one in has if one[0] <= news.rewound_to]
            has += [(point.step, point.values["loss"]) for point in news.steps]
            selection.cursor = after
            cursor = after if moment == "poll" else cursor
        if moment.startswith("kill"):
            selection, tail = Selection(cursor, can_purge), JournalTail(life.paths)
            has = [one for one in has if one[0] <= cursor.step] if can_purge else has

    if can_purge:
        assert has == list(life.losses().items())
    else:
        assert {step for step, _ in has} >= set(life.losses())


def test_what_was_sent_and_not_counted_yet_is_in_tensorboard_once(tmp_path: Path) -> None:
    life = Life(tmp_path / "run")
    life.begin(0)
    life.run(4)
    killed = Session(life.paths, "tensorboard")
    killed.send_news()
    counted = tmp_path / "counted.json"
    shutil.copy(life.paths.trackers / "tensorboard.json", counted)
    life.run(4)
    killed.send_news()
    shutil.copy(counted, life.paths.trackers / "tensorboard.json")  # as if it had been killed before it wrote this
    life.begin(5)
    life.run(6)

    again = Follower(life.paths, "tensorboard")
    again.is_over.set()
    assert again.follow()
    expected = [(step, pytest.approx(loss, rel=1e-6)) for step, loss in life.losses().items()]
    assert scalars(life.paths, "loss") == expected
    assert [step for step, _ in scalars(life.paths, "validation_loss")] == [4, 8]


def test_a_journal_with_fewer_events_than_were_sent_is_refused(tmp_path: Path) -> None:
    life = Life(tmp_path / "run")
    life.begin(0)
    life.run(4)
    Session(life.paths, "tensorboard").send_news()
    life.paths.attempts.unlink()
    life.begin(0)
    life.run(2)
    with pytest.raises(ClusterError, match="not the journal that was sent"):
        Session(life.paths, "tensorboard").send_news()


def test_a_companion_that_hangs_is_ended_and_one_that_listens_ends_by_itself(tmp_path: Path) -> None:
    deaf = [sys.executable, "-c", "import time; time.sleep(600)"]
    done = tmp_path / "done"
    listening = [sys.executable, "-c", f"import sys; sys.stdin.read(); open({str(done)!r}, 'w')"]
    with companions({"deaf": deaf}) as beside:
        beside.end_s = 0.1
        pid = beside.processes["deaf"].pid
    assert process_state(pid) == "X"
    with companions({"listening": listening}) as beside:
        beside.end_s = 200  # it only gets the CPU time that others leave
        nice = os.getpriority(os.PRIO_PROCESS, beside.processes["listening"].pid)
    assert done.exists() and nice == 19


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_has_every_step_once_in_tensorboard(
    short_run: Callable[..., Any], tmp_path: Path
) -> None:
    run = short_run(steps=14, save_every_steps=4)
    run.yaml.write_text(run.yaml.read_text().replace('"trackers": []', '"trackers": "auto"'))
    process = run.start()
    cursor = run.paths.trackers / "tensorboard.json"
    run.watch(process, lambda run: (run.steps() or [0])[-1] >= 6 or cursor.exists())
    time.sleep(0.1)
    process.kill()  # the ranks and the tracker die with it
    process.wait()
    assert run.train() == 0, run.log.read_text()
    if "ended before it had sent everything" in run.log.read_text():  # others left it no CPU: the rest is sent later
        command = [sys.executable, "-m", "launch", "track", str(run.yaml), "--to", "tensorboard"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)

    expected = [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in run.metrics()]
    assert [step for step, _ in expected] == list(range(1, 15))
    assert scalars(run.paths, "loss") == expected
