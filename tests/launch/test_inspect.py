"""The rows that `inspect` shows are those of the step, or it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]  # returns a Result: see conftest.py
RUN = Path("runs/t")
OPTIONS = ("-o", "data.chat_template=null", "-o", "train.steps=4", "-o", "train.global_batch_rows=2")


@pytest.fixture
def begun(project: Path, shardline: Command) -> Path:
    """A run of four steps that has taken two, the second in vain; its configuration is of rows by two and seed 0."""
    assert shardline("prepare", "run.yaml", *OPTIONS).code == 0
    (RUN / "plan.json").write_text(json.dumps({"global_batch_rows": 2, "seed": 0}))
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 3.0, "skipped": "the loss is not finite"}]
    (RUN / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return project / RUN


@pytest.mark.parametrize(
    ("option", "told"),
    [("seed=7", "seed was 0, is 7"), ("train.global_batch_rows=3", "train.global_batch_rows was 2, is 3")],
)
def test_rows_of_other_batches_than_the_run_took_are_refused(
    begun: Path, shardline: Command, option: str, told: str
) -> None:
    refused = shardline("inspect", "run.yaml", "--step", "1", *OPTIONS, "-o", option)
    refused.assert_refused(told, "shardline inspect runs/t")
    assert "row " not in refused.out


def test_a_step_that_the_run_does_not_have_is_refused(begun: Path, shardline: Command) -> None:
    shardline("inspect", begun, "--step", "5").assert_refused("the run has 4 steps; give one from 1 to 4")


@pytest.mark.parametrize(
    ("step", "first"),
    [
        ("1", "row "),
        ("2", "step 2 was skipped, and its rows changed no weight: the loss is not finite"),
        ("3", "step 3 has not been taken: 2 steps done; these rows will be in it"),
    ],
)
def test_a_step_that_changed_no_weight_is_shown_as_such(begun: Path, shardline: Command, step: str, first: str) -> None:
    assert shardline("inspect", begun, "--step", step).out.startswith(first)
