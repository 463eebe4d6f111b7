"""`shardline doctor` as it is typed: each fault with its message and its exit code, and never a hang."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.preflight.examine import OF_HOSTS
from launch.preflight.room import room_needed
from launch.runs.doctor import CHECKS
from launch.saved_config import load_run

Command = Callable[..., Any]  # returns a Result: see conftest.py
ROOT = Path(__file__).resolve().parents[2]
DOCTOR = f"'{sys.executable}' -m launch doctor"
SRUN = """#!/bin/bash
for word; do
  case $word in
  --nodelist=*) host=${word#*=} ;;
  --*) ;;
  srun) ;;
  *) break ;;
  esac
  shift
done
case $host in
dead) echo "srun: error: Task launch for StepId=7.1 failed on node dead: no route" >&2; exit 1 ;;
hung) sleep 600 ;;
esac
echo "welcome to $host"
exec "$@"
"""
SCONTROL = """#!/bin/bash
case "$2" in
hostnames) printf '%s\\n' $HOSTS ;;
job) echo "JobId=$3 JobName=x Requeue=1 BatchFlag=1 RunTime=00:01:00 TimeLimit=01:00:00" ;;
esac
"""


@pytest.fixture(scope="module")
def printed() -> tuple[dict[str, Any], float]:
    """The facts that this machine prints, and how many seconds it took."""
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-m", "launch", "doctor", "--facts"], cwd=ROOT, capture_output=True)
    return json.loads(result.stdout), time.monotonic() - began


@pytest.fixture(scope="module")
def facts(printed: tuple[dict[str, Any], float]) -> dict[str, Any]:
    """The facts that this machine prints, made good where the tests' machine may not be."""
    found = copy.deepcopy(printed[0])
    limits = {"open_files": 65536, "core_bytes": 0, "file_bytes": None, "has_infiniband": False}
    shared = dict.fromkeys(("shared_memory_bytes", "shared_memory_free_bytes"), 8 << 30)
    found["limits"] |= limits | shared
    found["name"] |= {"name": "node1", "addresses": ["10.0.0.1"]}
    return found


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put this process into a Slurm job of some hosts, all of which are this machine."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def enter(*hosts: str) -> None:
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("HOSTS", " ".join(hosts))
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_JOB_NODELIST", f"node[1-{len(hosts)}]")

    return enter


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    values = {
        "name": "examined",
        "folder": str(tmp_path / "the run"),
        "data": {"sources": [{"path": "corpus.txt"}], "row_tokens": 64, "tokenizer": {"train": {"vocab_size": 512}}},
        "model": {"new": {"config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}}},
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values))
    return path


def in_shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)


def by_level(record: dict[str, Any], level: str) -> list[tuple[str, list[str]]]:
    return [(one["check"], one["hosts"]) for one in record["findings"] if one["level"] == level]


def test_the_machine_is_examined_with_a_line_for_each_check(shardline: Command, run_file: Path, tmp_path: Path) -> None:
    result = shardline("doctor", run_file, "--json")
    record = json.loads(result.out)
    assert result.code == record["exit_code"] == (2 if by_level(record, "failure") else 0)
    assert {one["check"] for one in record["findings"]} == set(CHECKS) - {"network", "clocks", "slurm"}
    assert not (tmp_path / "the run").exists()


def test_hosts_without_slurm_are_compared_by_their_facts(
    shardline: Command, facts: dict[str, Any], tmp_path: Path
) -> None:
    other = {**facts, "name": {**facts["name"], "name": "node2"}, "code": {**facts["code"], "deepspeed": "0.1"}}
    same = {**facts, "name": {**facts["name"], "name": "node3"}}
    paths = [tmp_path / f"{number}.json" for number in range(3)]
    for path, its in zip(paths, (facts, other, same), strict=True):
        path.write_text(json.dumps(its))
    assert shardline("doctor", "--compare", paths[0], paths[2]).code == 0
    result = shardline("doctor", "--compare", *paths)
    assert result.code == 2
    assert "FAILURE  code       deepspeed differs: node2: 0.1; node1, node3:" in result.out
    assert "expected: the same deepspeed on all hosts" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert shardline("doctor", "--compare", *paths, "--skip", "code").code == 0


def test_files_that_cannot_be_compared_are_refused(shardline: Command, facts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps(facts))
    (tmp_path / "bad.json").write_text("[1]")
    shardline("doctor", "--compare", tmp_path / "bad.json").assert_refused("bad.json: no facts of a host")
    shardline("doctor", "--compare", tmp_path / "good.json", tmp_path / "good.json").assert_refused("the same host")


def test_wrong_limits_and_a_full_quota_fail_with_what_to_type(run_file: Path) -> None:
    unwritten = "export PYTHONDONTWRITEBYTECODE=1"  # Python would keep a module that was cut off at that size
    result = in_shell(f"{unwritten}; ulimit -n 256; ulimit -f 100; {DOCTOR} '{run_file}'")
    assert result.returncode == 2, result.stderr
    text = " ".join(result.stdout.split())
    assert "256 open files are allowed expected: 4,096 or more next: " in text
    assert "no file may become larger than 102.4 kB" in text
    assert "cannot be written to: a file may not become larger here (`ulimit -f`)" in text


def test_a_full_disk_fails(run_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=64k small '{folder}'"
    if in_shell(f"unshare --mount -- {mount}").returncode != 0:
        pytest.skip("run as root, where a disk may be mounted")
    inside = f"{mount} && {DOCTOR} '{run_file}' -o 'folder={folder}/run' --skip torch"
    result = subprocess.run(["unshare", "--mount", "bash", "-c", inside], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, "cannot be written to: the disk is full" in result.stdout) == (2, True), result.stdout


def test_all_hosts_of_a_job_are_asked_and_those_that_do_not_answer_are_named(
    shardline: Command,
    job: Callable[..., None],
    printed: tuple[dict[str, Any], float],
    run_file: Path,
    tmp_path: Path,
) -> None:
    job("node1", "dead", "hung")
    within_s = max(12, round(8 * printed[1]))  # the hosts have 45% of it: a loaded machine needs long to print facts
    began = time.monotonic()
    result = shardline("doctor", run_file, "--json", "--hosts", "--within", str(within_s))
    assert time.monotonic() - began < 280  # not the 600 s that the hung host takes
    record = json.loads(result.out)
    assert result.code == 2
    assert [one for one in by_level(record, "failure") if one[0] == "hosts"] == [
        ("hosts", ["dead"]),
        ("hosts", ["hung"]),
    ]
    told = {one["hosts"][0]: one["found"] for one in record["findings"] if one["check"] == "hosts"}
    assert "Task launch for StepId=7.1 failed on node dead" in told["dead"]
    assert f"did not answer within {within_s * OF_HOSTS:g} s" in told["hung"]
    assert "slurm" in record["facts"]["node1"]
    assert not (tmp_path / "the run").exists()


def test_a_doctor_that_srun_has_started_many_times_is_refused(
    shardline: Command, job: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    job("node1", "node2")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    shardline("doctor").assert_refused("start it once")


def test_hosts_are_refused_outside_of_a_job(shardline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    shardline("doctor", "--hosts").assert_refused("this is no Slurm job", "--compare")


def test_checkpoints_that_are_there_need_no_more_room(run_file: Path, tiny_shards: Callable[..., Path]) -> None:
    run = load_run(run_file, [f"data.folder={tiny_shards()}", "train.global_batch_rows=8", "train.epochs=1"])
    assert room_needed(load_run(run_file)) is None  # nothing is prepared there
    run.paths.root.mkdir()
    run.paths.plan.write_text(json.dumps({"parameters": 1000, "trained_parameters": 1000}))
    fresh = room_needed(run)
    assert fresh is not None and fresh >= 12_000
    (run.paths.checkpoints / "step-000001").mkdir(parents=True)
    (run.paths.checkpoints / "step-000001" / "rank-0").write_bytes(b"\0" * 12_000)
    assert room_needed(run) == fresh - 12_000
