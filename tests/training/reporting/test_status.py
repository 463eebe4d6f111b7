"""Where a run is: read from folders in every state that a run can be in."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.disk.lock_holder import Holder
from cluster.model_files import weights_digest
from cluster.paths import RunPaths
from training.reporting.plots import pace_text
from training.reporting.run_state import read_state
from training.reporting.status import command, evaluation_text, is_going_on, is_stale, status_text
from training.reporting.wording import duration

BEGIN = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
SEVEN = "rank 7 was the slowest in the attempt from step 1, by 50% (median of 20 steps)"


def start(second: int, step: int) -> dict[str, Any]:
    return {"event": "start", "time": (BEGIN + timedelta(seconds=second)).isoformat(), "step": step, "world_size": 2}


def end(second: int, step: int, reason: str, exit_code: int) -> dict[str, Any]:
    time = (BEGIN + timedelta(seconds=second)).isoformat()
    return {"event": "end", "time": time, "step": step, "reason": reason, "exit_code": exit_code, "seconds": 1.0}


def write_events(paths: RunPaths, events: list[dict[str, Any]]) -> None:
    paths.attempts.write_text("".join(json.dumps(event) + "\n" for event in events))


def write_run(paths: RunPaths, events: list[dict[str, Any]], steps: int) -> RunPaths:
    """Write a run of 20 planned steps, of which `steps` were taken, one a second; the last was written at that time."""
    paths.root.mkdir(parents=True, exist_ok=True)
    paths.config.write_text("name: boutique\n")
    paths.plan.write_text(json.dumps({"total_steps": 20}))
    lines = [{"step": n, "loss": 2.5, "tokens_per_s": 640.4, "step_s": 1.0} for n in range(1, steps + 1)]
    paths.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_events(paths, events)
    written = BEGIN.timestamp() + steps
    os.utime(paths.metrics, (written, written))
    return paths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "boutique")


def facts(paths: RunPaths, at: int = 0) -> dict[str, str]:
    """Return the status at `at` seconds after the first start, by the word that begins each line."""
    lines = status_text(paths, BEGIN + timedelta(seconds=at)).splitlines()
    return {line[:13].strip(): line[13:] for line in lines}


def test_folder_without_a_run_says_how_to_begin(paths: RunPaths) -> None:
    found = facts(paths)
    assert found["state"] == "never trained" and found["step"] == "none"
    assert found["next"] == "shardline prepare RUN.yaml"


def test_prepared_data_is_to_be_trained_wherever_it_is(paths: RunPaths, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "manifest.json").write_text("{}")
    paths.root.mkdir()
    paths.config.write_text(f"data:\n  folder: {tmp_path / 'elsewhere'}\n")
    assert facts(paths)["next"] == f"shardline train {paths.root}"


def test_run_that_wrote_a_step_just_now_is_running_or_killed(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0)], steps=8)
    found = facts(paths, at=20)
    assert found["state"] == "running or killed: the last step was written 12 s ago"
    assert found["step"] == "8 of 20 (40.0%), loss 2.5000, 640 tokens/s"
    assert found["time left"] == "12 s at 1 s a step"
    assert found["next"].endswith(f"touch {paths.stop_request}")


@pytest.mark.parametrize(("later", "state"), [(0, "running: "), (1, "killed or crashed: ")])
def test_a_run_whose_lock_names_a_process_here_is_known_to_run_or_not(paths: RunPaths, later: int, state: str) -> None:
    write_run(paths, [start(0, 0)], steps=8)
    here = Holder.here("shardline train")
    paths.lock.write_text(replace(here, started=here.started + later).text)
    found = facts(paths, at=9000 if later == 0 else 20)
    assert found["state"].startswith(state)
    assert found["next"].startswith("shardline train" if later else "wait; ")


def test_a_run_that_is_about_to_be_launched_again_goes_on(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0), end(8, 8, "SIGTERM", 75)], steps=8)
    now = BEGIN + timedelta(seconds=20)
    assert not is_going_on(read_state(paths), None, now)
    paths.lock.write_text(Holder.here("shardline train").text)
    assert is_going_on(read_state(paths), None, now)
    write_run(paths, [start(0, 0), end(20, 20, "done", 0)], steps=20)
    assert not is_going_on(read_state(paths), None, now)


def test_the_newest_and_the_lowest_validation_loss_are_told(paths: RunPaths) -> None:
    time = BEGIN.isoformat()
    losses = ((1, 3.0), (2, 2.0), (3, 2.5))
    told = [{"event": "validation", "time": time, "step": step, "loss": loss} for step, loss in losses]
    write_run(paths, [start(0, 0), *told], steps=3)
    assert facts(paths)["validation"] == "loss 2.5000 at step 3; lowest: 2.0000 at step 2"


def test_steps_that_changed_nothing_are_counted(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0)], steps=3)
    assert "skipped" not in facts(paths)
    with paths.metrics.open("a") as stream:
        stream.write('{"step": 4, "loss": NaN, "tokens_per_s": 1.0, "step_s": 1.0, "skipped": "loss is nan"}\n')
    assert facts(paths)["skipped"] == "1 step changed no weight"


def test_run_that_is_quiet_for_long_was_killed_and_is_started_again(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0)], steps=8)
    found = facts(paths, at=8 + 3 * 3600)
    assert found["state"] == "probably killed or crashed: the last step was written 3 h 00 min ago"
    assert found["next"] == f"shardline train {paths.root}"
    write_commit(paths, 4)
    assert facts(paths, at=8 + 3 * 3600)["next"] == f"shardline train {paths.root} (resumes from the newest checkpoint)"


def test_a_run_that_a_person_must_act_upon_is_not_just_started_again(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0), end(8, 8, "CheckpointError: the disk is full", 2)], steps=8)
    assert facts(paths)["next"] == f"fix what ended it, then: shardline train {paths.root}"


def write_commit(paths: RunPaths, step: int) -> None:
    folder = paths.checkpoints / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "commit.json").write_text("{}")


def test_restarted_run_is_not_quiet_while_it_loads(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0), start(5000, 8)], steps=8)
    found = facts(paths, at=5030)
    assert found["state"].startswith("running or killed") and found["starts"] == "2, restarts: 1"


def test_stopped_run_says_why_and_continues(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0), end(9, 8, "signal SIGUSR2", 75)], steps=8)
    found = facts(paths, at=9)
    assert found["state"].startswith("ended early: signal SIGUSR2 (exit code 75)")
    assert found["next"].startswith(f"shardline train {paths.root}")


def no_start(second: int, reason: str) -> dict[str, Any]:
    time = (BEGIN + timedelta(seconds=second)).isoformat()
    return {"event": "no-start", "time": time, "step": 0, "reason": reason, "exit_code": 2, "seconds": 6.0}


def launch(second: int) -> dict[str, Any]:
    return {"event": "launch", "time": (BEGIN + timedelta(seconds=second)).isoformat(), "reached": 8}


def test_a_start_that_failed_before_its_first_step_is_told_with_its_reason(paths: RunPaths) -> None:
    failed = no_start(60, "DataError: train/a.arrow: missing")
    write_run(paths, [launch(0), start(0, 0), launch(50), failed], steps=8)
    found = facts(paths, at=61)
    said = "the last attempt took no step: DataError: train/a.arrow: missing (exit code 2) at 2026-11-20T12:01:00"
    assert found["state"].startswith(said)
    assert found["starts"] == "1, restarts: 0; and 1 that took no step"
    assert found["next"] == f"fix what ended it, then: shardline train {paths.root}"


def test_a_first_start_that_failed_is_told_too_until_one_begins(paths: RunPaths) -> None:
    failed = no_start(9, "ConfigError: it does not fit")
    write_run(paths, [launch(0), failed], steps=0)
    assert "took no step: ConfigError" in facts(paths)["state"]
    write_run(paths, [launch(0), failed, launch(30)], steps=0)
    assert facts(paths)["state"].endswith("; launched again at 2026-11-20T12:00:30+00:00, nothing written yet")
    write_run(paths, [launch(0), failed, launch(30), start(40, 0)], steps=1)
    assert facts(paths, at=41)["state"].startswith("running or killed")
    assert facts(paths, at=41)["starts"] == "1, restarts: 0; and 1 that took no step"


def test_finished_run_leads_from_export_to_chat(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0), end(21, 20, "done", 0)], steps=20)
    seen = [facts(paths)["next"]]
    paths.export.mkdir()
    seen.append(facts(paths)["next"])
    models = {"base": {"loss": 3.25}, "tuned": {"loss": 1.75}}
    paths.evaluation.write_text(json.dumps({"models": models}))
    seen.append(facts(paths)["next"])
    paths.report.write_text("")
    seen.append(facts(paths)["next"])
    assert seen == [f"shardline {verb} {paths.root}" for verb in ("export", "evaluate", "report", "chat")]
    assert facts(paths)["evaluation"] == "held-out loss 3.2500 -> 1.7500" and "time left" not in facts(paths)


def test_only_committed_checkpoints_are_counted(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0)], steps=8)
    for name in ("step-000004", "step-000008", "step-000012.partial", "step-000010", "step-best"):
        (paths.checkpoints / name).mkdir(parents=True)
        (paths.checkpoints / name / "shard.safetensors").write_bytes(bytes(999_998))
        if name != "step-000010":
            (paths.checkpoints / name / "commit.json").write_text("{}")
    assert facts(paths)["checkpoints"].startswith("2, newest at step 8, ")


def test_steps_taken_again_count_for_the_attempt_that_kept_them(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0), start(30, 5), end(40, 15, "STOP exists", 75), start(50, 15)], steps=18)
    state = read_state(paths)
    assert [attempt.kept_steps for attempt in state.attempts] == [5, 10, 3]
    assert [attempt.end is None for attempt in state.attempts] == [True, False, True]
    assert state.elapsed_s == 53.0 and state.kept_s == 18.0


def test_a_clock_that_was_set_back_between_two_starts_makes_no_time_negative(paths: RunPaths) -> None:
    write_run(paths, [start(86_400, 0), end(86_410, 10, "STOP exists", 75), start(0, 10)], steps=18)
    state = read_state(paths)
    assert state.elapsed_s == 18.0 and state.kept_s == 18.0
    assert facts(paths, at=20)["state"] == "running or killed: the last step was written 2.0 s ago"
    os.utime(paths.metrics, (BEGIN.timestamp() + 86_410,) * 2)  # no step yet since then
    assert facts(paths, at=20)["state"] == "running or killed: the last step was written 20 s ago"


def test_a_run_that_was_killed_before_the_clock_was_set_back_is_not_taken_for_running(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0)], steps=8)
    assert facts(paths, at=-86_400)["next"].startswith(f"shardline train {paths.root}")


def test_command_quotes_a_folder_with_spaces(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "my run")
    paths.root.mkdir()
    paths.config.write_text("name: x\n")
    assert command("train", paths) == f"shardline train '{tmp_path}/my run'"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min"), (3599, "1 h 00 min"), (198_000, "2 d 7 h")],
)
def test_duration_is_said_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_run_that_an_earlier_version_began_shows_its_attempts_too(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0), end(10, 10, "signal SIGTERM", 75)], steps=10)
    paths.attempts.rename(paths.root / "segments.jsonl")
    assert facts(paths)["starts"] == "1, restarts: 0"
    write_run(paths, [start(20, 10)], steps=13)
    assert [attempt.kept_steps for attempt in read_state(paths).attempts] == [10, 3]
    assert facts(paths)["starts"] == "2, restarts: 1"


def test_an_evaluation_of_an_earlier_export_is_told_and_made_again(paths: RunPaths) -> None:
    paths.export.mkdir(parents=True, exist_ok=True)
    weights = paths.export / "model.safetensors"
    weights.write_bytes(bytes(200_000))
    losses = {"base": {"loss": 3.0}, "tuned": {"loss": 2.0}}
    evaluation = {"models": losses, "export": {"digest": weights_digest(paths.export)}}
    assert evaluation_text(evaluation, paths.export) == "held-out loss 3.0000 -> 2.0000"
    weights.write_bytes(bytes(100_000) + b"1" + bytes(99_999))
    assert "of an earlier export" in evaluation_text(evaluation, paths.export)
    assert not is_stale({"models": losses}, paths.export)  # of an earlier version, which does not tell


def test_the_speed_without_padding_the_mfu_and_the_slowest_rank_are_told_where_they_were_measured(
    paths: RunPaths,
) -> None:
    write_run(paths, [start(0, 0)], steps=4)
    assert "speed" not in facts(paths, at=5)
    more = {"useful_tokens_per_s": 610.2, "mfu": 0.412, "memory_gb": 61.23}
    lines = [{"step": n, "loss": 2.5, "tokens_per_s": 640.4, "step_s": 1.0, **more} for n in range(1, 5)]
    paths.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert facts(paths, at=5)["speed"] == "610 tokens/s without padding, MFU 41.2%, 61.2 GB on rank 0"


@pytest.mark.parametrize(
    ("ranks", "by", "said", "caption"),
    [
        ([3] * 17 + [1, 2, 0], 0.2, "rank 3 is the slowest, by 20% (median of 20 steps)", "Rank 3 is the slowest"),
        ([3] * 14 + [1, 2, 0] * 2, 0.9, None, "No rank is the slowest in nearly all"),  # a host that others use too
        ([3] * 20, 0.03, None, "One rank is the slowest in nearly all steps, but by less than 5%"),
        ([3] * 19, 0.2, SEVEN, "Rank 7 was the slowest"),  # too few: the attempt before tells
    ],
)
def test_the_slowest_rank_is_that_of_nearly_all_steps_of_the_newest_attempt_with_enough(
    paths: RunPaths, ranks: list[int], by: float, said: str | None, caption: str
) -> None:
    write_run(paths, [start(0, 0), start(30, 20)], steps=20)
    pace = [(7, 0.5)] * 20 + [(rank, by) for rank in ranks]
    lines = [{"step": n, "loss": 2.5, "tokens_per_s": 640.4, "step_s": 1.0} for n in range(1, len(pace) + 1)]
    told = [line | {"slowest_rank": r, "slowest_by": b} for line, (r, b) in zip(lines, pace, strict=True)]
    paths.metrics.write_text("".join(json.dumps(line) + "\n" for line in told))
    assert facts(paths, at=40).get("speed") == said
    assert pace_text(read_state(paths)).startswith(caption)
    write_events(paths, [start(0, 0), start(30, 20), {**start(50, len(pace)), "world_size": 4}])
    assert "speed" not in facts(paths, at=60)  # ranks of another number are others
    assert pace_text(read_state(paths)).startswith("Too few steps were measured")


def test_the_log_of_the_rank_that_told_the_end_is_named_and_those_of_all(paths: RunPaths) -> None:
    write_run(paths, [start(0, 0), {**end(9, 8, "RuntimeError: boom", 1), "log": "logs/local-2-rank0.log"}], steps=8)
    assert "logs" not in facts(paths)
    paths.logs.mkdir()
    for second, name in enumerate(["local-1-rank0.log", "local-2-rank0.log", "local-2-rank1.log", "a-train-7.log"]):
        (paths.logs / name).write_text("")
        os.utime(paths.logs / name, (second, second))
    assert facts(paths)["logs"] == (
        f"{paths.root}/logs/local-2-rank0.log; of all its ranks: {paths.root}/logs/local-2-rank*.log"
    )
