"""Losses that are no numbers on one rank: refused by all, told, survived; or the run ends and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster.machine import host_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, BAD = 24, 6


def exact(run: Any) -> list[list[Any]]:
    keys = ("step", "loss", "gradient_norm", "trained_tokens", "skipped")
    return [[repr(line.get(key)) for key in keys] for line in run.metrics()]  # repr: NaN is not equal to itself


def test_bad_steps_on_one_rank_are_skipped_by_all_and_a_kill_changes_nothing(short_run: Callable[..., Any]) -> None:
    run, killed = (short_run(steps=STEPS, save_every_steps=8) for _ in range(2))
    assert run.start_with("nan", BAD, BAD + 1).wait() == 0, run.log.read_text()
    assert [line["step"] for line in run.metrics() if "skipped" in line] == [BAD + 1, BAD + 2]
    assert [(event["step"], event["reason"], len(event["rows"])) for event in run.events("skip")] == [
        (BAD + 1, "loss is nan", 8),
        (BAD + 2, "loss is nan", 8),
    ]
    assert f"skipped step {BAD + 1}: loss is nan; rows " in run.log.read_text()

    killed.kill(killed.start_with("nan", BAD, BAD + 1), lambda run: (run.paths.checkpoints / "step-000008").exists())
    assert killed.start_with("nan", BAD, BAD + 1).wait() == 0
    assert exact(killed) == exact(run)


def test_a_run_that_goes_back_leaves_the_bad_steps_out_and_comes_to_its_end(short_run: Callable[..., Any]) -> None:
    run = short_run(steps=STEPS, save_every_steps=8)
    assert run.start_with("nan", 18, 20).wait() == 0, run.log.read_text()
    (rollback,) = run.events("rollback")
    assert (rollback["failed_step"], rollback["step"], rollback["barred"]) == (21, 16, [17, 18, 19, 20, 21])
    assert [line["step"] for line in run.metrics() if "skipped" not in line] == [*range(1, 17), 22, 23, 24]


def test_steps_that_are_bad_for_ever_end_the_run_and_say_what_to_look_at(short_run: Callable[..., Any]) -> None:
    run = short_run(steps=10**6, save_every_steps=8, max_rollbacks=1)
    assert run.start_with("nan", 10, 10**6).wait() == 2
    assert "rolled back 1 time, but train.max_rollbacks is 1" in run.log.read_text()
    assert "`shardline inspect RUN.yaml --step" in run.ends()[-1]["reason"] and run.ends()[-1]["exit_code"] == 2
    assert "Traceback" not in run.log.read_text()


def test_a_step_whose_loss_leaps_is_skipped_with_its_rows_named(short_run: Callable[..., Any]) -> None:
    run = short_run(steps=STEPS, save_every_steps=8)
    assert run.start_with("spike", 20, 20).wait() == 0, run.log.read_text()
    (skip,) = run.events("skip")
    assert skip["step"] == 21 and "loss" in skip["reason"] and len(skip["rows"]) == 8
    assert [line["step"] for line in run.metrics() if "skipped" in line] == [21]


def test_a_rank_that_leaves_or_fails_ends_the_others_and_the_next_start_continues(
    short_run: Callable[..., Any],
) -> None:
    run = short_run(steps=STEPS, save_every_steps=8)
    assert run.start_with("leave", 12, 12).wait() == 1
    assert "rank 1 ended with exit code 3" in run.log.read_text()
    assert run.start_with("fail", 13, 13).wait() == 1
    told = f"cause: rank 1 ({host_name()}) failed: ValueError: a mistake of this rank alone"  # not the connection to it
    assert told in run.log.read_text()
    assert run.train() == 0
    assert [line["step"] for line in run.metrics()] == list(range(1, STEPS + 1))
