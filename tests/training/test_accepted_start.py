"""What a start writes into the run's folder once it is accepted, and in which order."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.journal.records import read_events
from cluster.paths import RunPaths
from training.train_rank import write_accepted

ZERO = {"stage": 3, "offload": "none"}


def recorded(value: Any) -> Any:
    return SimpleNamespace(as_record=lambda: value)


def test_a_plan_is_replaced_only_once_its_changes_are_in_the_journal(tmp_path: Path) -> None:
    paths, identity = RunPaths(tmp_path), {"seed": 0}
    before = {"config": {"attention": "auto"}, "zero": ZERO}
    paths.plan.write_text(json.dumps(before))
    checkpoints = SimpleNamespace(restored_identity=identity, identity=identity)
    plan = recorded({"config": {"attention": "sdpa"}})
    setup: Any = SimpleNamespace(plan=plan, choice=recorded(ZERO), before=before, checkpoints=checkpoints)
    request: Any = SimpleNamespace(paths=paths, config="")
    journal: Any = None  # the length is the same

    paths.attempts.mkdir()  # the journal cannot be written, as at a kill before it
    with pytest.raises(IsADirectoryError):
        write_accepted(request, setup, journal, 4)
    assert json.loads(paths.plan.read_text()) == before

    paths.attempts.rmdir()
    write_accepted(request, setup, journal, 4)
    (event,) = read_events(paths)
    assert (event["step"], event["changed"]) == (4, {"train.attention": ["auto", "sdpa"]})
    assert json.loads(paths.plan.read_text())["config"] == {"attention": "sdpa"}
