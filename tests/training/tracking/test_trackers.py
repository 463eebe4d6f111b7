"""Each tracker's own reader finds every step once, with the value of metrics.jsonl. No network: all record locally."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from cluster.errors import EXIT_USER_ACTION
from cluster.paths import RunPaths
from launch.config import RunConfig
from launch.runs.track import followed, missing_trackers
from tests.training.tracking.life import Life
from tests.training.tracking.tensorboard_files import scalars, texts
from training.tracking.configuration import sent_configuration
from training.tracking.follower import Follower
from training.tracking.tracker import TRACKERS

ROOT = Path(__file__).resolve().parents[3]
WANDB_BLOCK = 32768
OFFLINE = {"WANDB_MODE": "offline", "COMET_START_ONLINE": "0", "COMET_API_KEY": "none"}
PATIENT = {"WANDB__SERVICE_WAIT": "240", "WANDB_INIT_TIMEOUT": "240"}  # seconds: its own process starts beside others


@pytest.fixture(scope="module")
def sent_twice(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run of nine steps that all trackers got in two portions; steps 5 to 7 were taken twice, the first 7 is NaN."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("send_twice.py")), str(folder)],
        env={**os.environ, **OFFLINE, **PATIENT, "PYTHONPATH": str(ROOT), "HOME": str(folder.parent)},
        cwd=folder.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return RunPaths(folder)


def check_first_values(found: Mapping[int, float], paths: RunPaths) -> None:
    """Assert that a tracker that keeps what it has got each step once: those taken again have their first values."""
    life = {line["step"]: line["loss"] for line in map(json.loads, paths.metrics.read_text().splitlines())}
    assert sorted(found) == list(range(1, 10))
    assert [found[step] for step in (1, 2, 3, 4, 5, 6)] == [1 / 3 + n for n in range(1, 7)]
    assert math.isnan(found[7])
    assert {step: found[step] for step in (8, 9)} == {step: life[step] for step in (8, 9)}


def test_a_folder_that_is_named_like_a_library_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_by_wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TRACKERS, "wandb", replace(TRACKERS["wandb"], library="made_by_wandb"))
    run = RunConfig.model_construct(trackers=["tensorboard", "wandb"])
    assert list(missing_trackers(run)) == ["tracker wandb needs made_by_wandb: pip install -e '.[trackers]'"]


def test_a_follower_that_cannot_write_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "trackers").write_text("no folder")
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert followed(RunPaths(tmp_path), ["tensorboard"]) == EXIT_USER_ACTION
    assert "tracker tensorboard: not used: [Errno 17]" in caplog.text


def test_tensorboard_has_the_last_values_of_steps_that_were_taken_twice(sent_twice: RunPaths) -> None:
    found = scalars(sent_twice, "loss")
    expected = [json.loads(line) for line in sent_twice.metrics.read_text().splitlines()]
    assert found == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in expected]
    assert [step for step, _ in scalars(sent_twice, "validation_loss")] == [4, 8]
    notes = " ".join(texts(sent_twice, "events"))
    assert "skipped: loss is nan" in notes and "started after step 4" in notes and "done" in notes


def test_wandb_has_each_step_once(sent_twice: RunPaths) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[int, float] = {}
    ids = set()
    for path in sorted((sent_twice.trackers / "wandb").glob("offline-run-*/*.wandb")):
        for data in wandb_records(path.read_bytes()):
            record = Record.FromString(data)
            ids |= {record.run.run_id} if record.HasField("run") else set()
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            if "loss" in items:
                step = int(items["step"])
                assert step not in found
                found[step] = float(json.loads(items["loss"]))
    check_first_values(found, sent_twice)
    assert len(ids) == 1


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a W&B file: LevelDB's log format after seven bytes that name it."""
    position, whole = 7, b""
    while position + 7 <= len(data):
        left = WANDB_BLOCK - position % WANDB_BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def test_mlflow_has_each_step_once(sent_twice: RunPaths) -> None:
    with sqlite3.connect(sent_twice.trackers / "mlflow.db") as database:
        rows = database.execute("select step, value, is_nan from metrics where key = 'loss'").fetchall()
        (runs,) = database.execute("select count(*) from runs").fetchone()
        status = database.execute("select status from runs").fetchone()
    assert (runs, len(rows), status) == (1, 9, ("FINISHED",))
    check_first_values({step: math.nan if is_nan else value for step, value, is_nan in rows}, sent_twice)


def test_trackio_has_each_step_once(sent_twice: RunPaths) -> None:
    with sqlite3.connect(sent_twice.trackers / "trackio" / "shardline.db") as database:
        rows = database.execute("select step, metrics, run_name from metrics").fetchall()
    losses = [(step, json.loads(metrics)["loss"]) for step, metrics, _ in rows if "loss" in json.loads(metrics)]
    assert len(losses) == 9 and len({name for *_, name in rows}) == 1
    check_first_values({step: float(loss) for step, loss in losses}, sent_twice)


def test_comet_has_each_step_once(sent_twice: RunPaths) -> None:
    found: list[tuple[int, float]] = []
    for path in sorted((sent_twice.trackers / "comet").glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        metrics = [message["payload"]["metric"] | message["payload"] for message in messages if is_loss(message)]
        found += [(int(metric["step"]), float(metric["metricValue"])) for metric in metrics]
    assert len(found) == 9
    check_first_values(dict(found), sent_twice)


def is_loss(message: dict[str, Any]) -> bool:
    return bool(message["type"] == "metric_msg" and message["payload"]["metric"]["metricName"] == "loss")


def test_no_tracker_gets_a_path_or_a_secret(sent_twice: RunPaths) -> None:
    sent = sent_configuration(sent_twice)
    assert sent["train.learning_rate"] == 1e-3 and sent["model.path"] == "SmolLM2"
    assert not any("hunter2" in str(value) or "/" in str(value) for value in sent.values())
    secret = [path for path in sent_twice.trackers.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert not secret


def test_the_yaml_takes_the_names_of_all_trackers() -> None:
    annotation = RunConfig.model_fields["trackers"].annotation
    names = next(get_args(get_args(one)[0]) for one in get_args(annotation) if get_args(get_args(one)[0]))
    assert set(names) == set(TRACKERS)


def test_a_tracker_that_fails_is_told_once_and_gets_all_steps_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(tmp_path / "run")
    life.begin(0)
    life.run(5)
    in_the_way = life.paths.trackers / "tensorboard"
    in_the_way.parent.mkdir()
    in_the_way.touch()  # where a folder should be
    failing = Follower(life.paths, "tensorboard")
    failing.is_over.set()
    assert not failing.follow()
    assert [record.message for record in caplog.records if "failed" in record.message] != []

    in_the_way.unlink()
    again = Follower(life.paths, "tensorboard")
    again.is_over.set()
    assert again.follow()
    assert [step for step, _ in scalars(life.paths, "loss")] == [1, 2, 3, 4, 5]
