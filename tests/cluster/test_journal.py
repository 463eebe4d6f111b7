"""metrics.jsonl holds each step once, whatever happened to the writer."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.environment import STARTED
from cluster.errors import ClusterError
from cluster.heartbeats.heartbeat import Heartbeat
from cluster.journal.journal import Journal
from cluster.journal.records import attempt_of_step, read_events, read_lines, world_size_at, write_event
from cluster.network.world import World
from cluster.paths import RunPaths
from cluster.processes import process_age_s, uptime_s

WORLD = World(rank=0, size=1, local_rank=0, local_size=1, master=("127.0.0.1", 1))


def line(step: int, loss: float = 1.0) -> dict[str, float]:
    names = ("gradient_norm", "learning_rate", "tokens_per_s")
    return {"step": step, "loss": loss, **dict.fromkeys(names, 0.0)}


def test_steps_that_will_be_taken_again_are_removed_from_the_metrics(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.metrics.write_text("".join(json.dumps(line(step)) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    journal = Journal(paths, WORLD, Heartbeat(paths, WORLD))
    journal.begin(first_step=2, total_steps=4)
    journal.step(line(3, loss=9.0))
    assert [(entry["step"], entry["loss"]) for entry in read_lines(paths.metrics)] == [(1, 1.0), (2, 1.0), (3, 9.0)]


def test_every_start_and_end_leaves_a_line(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    journal = Journal(paths, WORLD, Heartbeat(paths, WORLD))
    journal.begin(first_step=0, total_steps=2)
    journal.step(line(1))
    journal.end("signal SIGTERM", exit_code=75)
    start, end = read_events(paths)
    assert (start["event"], start["step"], start["world_size"]) == ("start", 0, 1)
    assert (end["event"], end["step"], end["reason"], end["exit_code"]) == ("end", 1, "signal SIGTERM", 75)


def test_an_end_counts_its_seconds_from_the_start_that_was_recorded(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    journal = Journal(paths, WORLD, Heartbeat(paths, WORLD))
    journal.started -= 1000  # a model that took long to load
    journal.begin(first_step=0, total_steps=2)
    journal.end("done", exit_code=0)
    assert read_events(paths)[-1]["seconds"] < 500


def test_the_attempt_that_took_a_step_is_the_last_that_began_before_it(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    for step, ranks in ((0, 2), (10, 4), (5, 8)):  # the checkpoint of step 10 was damaged
        write_event(paths, "start", step=step, world_size=ranks)
    assert [world_size_at(paths, step) for step in (5, 6, 12)] == [2, 8, 8]
    start, since = attempt_of_step(read_events(paths), 5)
    assert start is not None and start["step"] == 0 and [event["step"] for event in since] == [10, 5]


def test_a_line_that_a_crash_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    write_event(paths, "launch", reached=0)
    with paths.attempts.open("a") as stream:
        stream.write('{"event": "sta')
    write_event(paths, "launch", reached=3)
    assert [event["reached"] for event in read_events(paths)] == [0, 3]


def test_a_start_tells_how_long_each_of_its_phases_took(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    journal = Journal(paths, WORLD, Heartbeat(paths, WORLD))
    journal.mark("imports")
    journal.begin(first_step=0, total_steps=1)
    phases = read_events(paths)[0]["phases"]
    assert list(phases) == ["imports", "weights"] and 0 < sum(phases.values()) <= process_age_s() + 0.1


def test_the_imports_of_a_rank_that_was_forked_are_those_since_its_launcher_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STARTED, str(uptime_s() - 1e5))
    journal = Journal(RunPaths(tmp_path), WORLD, Heartbeat(RunPaths(tmp_path), WORLD))
    journal.mark("imports")
    assert 1e5 <= journal.phases["imports"] < 1e5 + 60


def test_a_rollback_takes_back_the_lines_of_the_steps_and_tells_which_were_left_out(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    journal = Journal(paths, WORLD, Heartbeat(paths, WORLD))
    journal.begin(first_step=0, total_steps=9)
    for step in (1, 2, 3):
        journal.step(line(step))
    journal.skip(3, "loss is nan", rows=[7, 4])
    journal.roll_back(1, failed_step=3, excluded=[1, 2])
    journal.step(line(2, loss=9.0))
    assert [(entry["step"], entry["loss"]) for entry in read_lines(paths.metrics)] == [(1, 1.0), (2, 9.0)]
    _, skip, rollback = read_events(paths)
    assert (skip["event"], skip["step"], skip["reason"], skip["rows"]) == ("skip", 3, "loss is nan", [7, 4])
    assert (rollback["event"], rollback["step"], rollback["failed_step"], rollback["barred"]) == (
        "rollback",
        1,
        3,
        [2, 3],
    )


def test_a_start_that_fails_before_its_first_step_says_why(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    Journal(paths, WORLD, Heartbeat(paths, WORLD)).end("OSError: no such device", exit_code=1)
    (entry,) = read_events(paths)
    assert (entry["event"], entry["reason"], entry["exit_code"]) == ("no-start", "OSError: no such device", 1)


def test_what_one_rank_alone_can_say_is_the_end_of_the_attempt(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    other = World(rank=1, size=2, local_rank=1, local_size=2, master=("127.0.0.1", 1))
    first, second = (Journal(paths, world, Heartbeat(paths, world)) for world in (WORLD, other))
    for journal in (first, second):
        journal.begin(first_step=0, total_steps=2)
    assert first.end_by_another_rank() is None
    second.end("DataError: a shard is damaged", exit_code=2, is_own=True)
    assert first.end_by_another_rank() == "DataError: a shard is damaged"
    first.end("RuntimeError: connection closed by peer", exit_code=1)
    assert [event["reason"] for event in read_events(paths) if event["event"] == "end"] == [
        "DataError: a shard is damaged"
    ]


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    other = World(rank=1, size=2, local_rank=1, local_size=2, master=("127.0.0.1", 1))
    journal = Journal(RunPaths(tmp_path), other, Heartbeat(RunPaths(tmp_path), other))
    journal.begin(first_step=0, total_steps=2)
    journal.step(line(1))
    journal.skip(2, "loss is nan", rows=[3])
    journal.roll_back(0, failed_step=2, excluded=[1])
    journal.end("done", exit_code=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rank", "written"), [(0, 1), (1, 0)])
def test_what_an_accepted_start_writes_is_written_once_by_the_first_rank(
    tmp_path: Path, rank: int, written: int
) -> None:
    paths, world, calls = RunPaths(tmp_path), replace(WORLD, rank=rank, local_rank=rank), []
    journal = Journal(paths, world, Heartbeat(paths, world))
    journal.when_accepted(lambda first_step: calls.append((first_step, paths.attempts.exists())))
    assert calls == []
    journal.begin(4, 8)
    assert calls == [(4, False)] * written
    journal.end("done", 0)


def test_a_line_that_is_damaged_is_named_and_one_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text('{"step": 1}\n{"step": 2')
    assert read_lines(tmp_path / "lines") == [{"step": 1}]
    (tmp_path / "lines").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ClusterError, match="lines:2: damaged"):
        read_lines(tmp_path / "lines")


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"event": "start", "step": 3, "world_size": 2},
        {"event": "start", "time": "yesterday", "step": 3, "world_size": 2},
        {"event": "start", "time": "2026-01-01T00:00:00+00:00", "step": "3", "world_size": 2},
        {"event": "end", "time": "2026-01-01T00:00:00+00:00", "step": 3},
        {"event": ["end"], "time": "2026-01-01T00:00:00+00:00"},
    ],
)
def test_a_line_of_attempts_that_is_no_event_is_named(tmp_path: Path, line: dict[str, object]) -> None:
    paths = RunPaths(tmp_path)
    write_event(paths, "launch", reached=0)
    with paths.attempts.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    with pytest.raises(ClusterError, match=r"attempts\.jsonl:2: damaged: not an event"):
        read_events(paths)


@pytest.mark.parametrize("damaged", ["{}", '{"step": "three"}', '{"step": null}'])
def test_a_line_of_metrics_without_a_step_is_named(tmp_path: Path, damaged: str) -> None:
    paths = RunPaths(tmp_path)
    paths.metrics.write_text(json.dumps(line(1)) + "\n" + damaged + "\n")
    with pytest.raises(ClusterError, match=r"metrics.jsonl:2: damaged: no number under step"):
        Journal(paths, WORLD, Heartbeat(paths, WORLD)).begin(first_step=1, total_steps=4)


def test_a_slow_rank_names_itself_and_the_others_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = RunPaths(tmp_path)
    for rank in (0, 1):
        world = replace(WORLD, rank=rank, size=2)
        Journal(paths, world, Heartbeat(paths, world)).slow_rank(1, 0.154, 50)
    (event,) = read_events(paths)
    assert (event["event"], event["rank"], event["excess"], event["steps"]) == ("slow-rank", 1, 0.154, 50)
    assert caplog.text.count("computes slower than the median rank, by 15% over 50 steps") == 1


def test_the_mfu_is_in_a_steps_line_and_in_the_log_only_if_it_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = RunPaths(tmp_path)
    journal = Journal(paths, WORLD, Heartbeat(paths, WORLD))
    journal.begin(first_step=0, total_steps=2)
    with caplog.at_level(logging.INFO):
        journal.step(line(1))
        journal.mfu = lambda record: 0.4123
        journal.step(line(2))
    first, second = read_lines(paths.metrics)
    assert "mfu" not in first and second["mfu"] == 0.4123
    assert caplog.text.count("MFU") == 1 and "MFU 41.2%" in caplog.text
