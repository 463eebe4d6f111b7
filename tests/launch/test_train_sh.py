"""launch/train.sh beside fake `srun` and `scontrol`; tests/slurm/ runs it on a real Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run
from cluster.paths import RunPaths

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "launch" / "train.sh"
SRUN = """#!/usr/bin/env bash
echo >>"$FAKES/starts"
printf '%s\\n' "$MASTER_ADDR" "$MASTER_PORT" "$SHARDLINE_LAUNCHER" "$@" >"$FAKES/started"
eval "$SRUN_DOES"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
  "show hostnames") printf '%s\\n' node7 node8 ;;
  "show job") printf '%s\\n' "JobId=$3 JobName=shardline" "   $FACTS Restarts=0" "   Command=$COMMAND" ;;
  requeue*) echo "$2" >>"$FAKES/requeued" ;;
esac
"""


@dataclass(frozen=True)
class Result:
    code: int
    stderr: str
    started: list[str]
    """What srun saw: MASTER_ADDR, MASTER_PORT, SHARDLINE_LAUNCHER and its arguments."""
    requeued: list[str]
    starts: int
    """How often srun was called."""


@pytest.fixture
def run_job(tmp_path: Path, run_yaml: Callable[..., Path]) -> Callable[..., Result]:
    """Run a copy of train.sh as Slurm does, in a batch job of two nodes; srun does as told."""
    fakes, folder = tmp_path / "fakes", tmp_path / "my runs"
    fakes.mkdir()
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (fakes / name).write_text(text)
        (fakes / name).chmod(0o755)
    script = shutil.copy(TRAIN, tmp_path / "slurm_script")
    run_yaml(folder)

    def run(
        *arguments: str, srun: str = "exit 0", facts: str = "JobState=RUNNING Reason=None", **variables: str
    ) -> Result:
        environment = {
            "PATH": f"{fakes}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VIRTUAL_ENV": sys.prefix,
            "FAKES": str(fakes),
            "SRUN_DOES": srun,
            "FACTS": facts,
            "COMMAND": f"{TRAIN} run.yaml",
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_TASKS_PER_NODE": "1(x2)",
            "SLURM_JOB_CPUS_PER_NODE": "32(x2)",
            **variables,
        }
        done = subprocess.run(
            ["bash", script, *(arguments or ["run.yaml"])], cwd=folder, env=environment, capture_output=True, text=True
        )
        return Result(
            done.returncode,
            done.stderr,
            lines_of(fakes / "started"),
            lines_of(fakes / "requeued"),
            len(lines_of(fakes / "starts")),
        )

    return run


def take_steps(last: int) -> str:
    """Return what an srun does whose ranks come to a step."""
    return f"echo '{{\"step\": {last}}}' >run/metrics.jsonl"


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("code", [0, 2, 130])
def test_an_exit_code_of_the_ranks_passes_through(run_job: Callable[..., Result], code: int) -> None:
    result = run_job(srun=f"exit {code}")
    assert (result.code, result.requeued) == (code, [])


@pytest.mark.parametrize("code", [1, 137])
def test_ranks_that_fail_are_started_again_until_two_starts_made_no_new_step(
    run_job: Callable[..., Result], code: int
) -> None:
    result = run_job(srun=f"{take_steps(2)}; exit {code}")
    assert (result.code, result.starts, result.requeued) == (2, 3, [])
    assert result.started[1] == "23452"  # a port of its own for each start
    assert "the last 2 attempts made no step beyond step 2; the last one ended with: it was killed, or" in result.stderr
    assert run_job(srun="exit 0").code == 0  # a person has looked


def test_a_job_is_refused_while_another_one_trains_in_the_folder_and_leaves_its_stop_file(
    run_job: Callable[..., Result], tmp_path: Path
) -> None:
    paths = RunPaths(tmp_path / "my runs" / "run")
    with hold_run(paths, Holder.here("shardline train")):
        paths.stop_request.touch()
        result = run_job(srun="exit 0")
        assert (result.code, result.starts, paths.stop_request.exists()) == (2, 0, True)
        assert "`shardline train` is already running here" in result.stderr
        assert not paths.attempts.exists()


def test_ranks_that_fail_once_are_started_again_in_the_same_job(run_job: Callable[..., Result]) -> None:
    result = run_job(srun='[[ $(wc -l <"$FAKES/starts") == 2 ]]')
    assert (result.code, result.starts) == (0, 2)
    assert "the ranks ended with 1: restarting them" in result.stderr


@pytest.mark.parametrize("facts", ["JobState=COMPLETING Reason=None", "JobState=NODE_FAIL Reason=None"])
def test_ranks_of_a_job_that_is_ending_are_not_started_again(run_job: Callable[..., Result], facts: str) -> None:
    result = run_job(srun="exit 143", facts=facts)
    assert (result.code, result.starts) == (143, 1)


def test_ranks_that_fail_are_not_started_again_if_a_stop_is_asked_for(run_job: Callable[..., Result]) -> None:
    result = run_job(srun="mkdir -p run && touch run/STOP; exit 1")
    assert (result.code, result.starts) == (1, 1)


def test_a_job_that_stopped_on_purpose_is_requeued_once(run_job: Callable[..., Result]) -> None:
    result = run_job(srun="exit 75")
    assert (result.code, result.requeued) == (75, ["12345"])


def test_a_job_that_the_time_limit_ended_is_requeued(run_job: Callable[..., Result]) -> None:
    assert run_job(srun="exit 75", facts="JobState=COMPLETING Reason=TimeLimit").requeued == ["12345"]


def test_a_job_that_slurm_requeues_or_cancels_is_left_alone(run_job: Callable[..., Result]) -> None:
    result = run_job(srun="exit 75", facts="JobState=COMPLETING Reason=None")
    assert (result.code, result.requeued) == (75, [])


def test_a_job_with_a_stop_file_is_left_alone(run_job: Callable[..., Result]) -> None:
    result = run_job(srun="mkdir -p run && touch run/STOP; exit 75")
    assert (result.code, result.requeued) == (75, [])
    assert "run/STOP exists" in result.stderr


def test_a_stop_file_of_an_earlier_job_is_removed_but_one_of_this_job_stays(run_job: Callable[..., Result]) -> None:
    still_there = "[[ -e run/STOP ]]"
    stopped = run_job(srun=f"{take_steps(1)}; touch run/STOP")
    restarted = run_job(srun=f"{take_steps(2)}; {still_there}", SLURM_RESTART_COUNT="1")
    submitted_again = run_job(srun=f"{still_there} || exit 75")
    assert [stopped.code, restarted.code, submitted_again.code] == [0, 0, 75]


def test_the_shell_survives_a_term_until_the_ranks_have_ended(run_job: Callable[..., Result]) -> None:
    result = run_job(srun="kill -TERM $PPID; sleep 0.1; exit 75")
    assert (result.code, result.requeued) == (75, ["12345"])


def test_names_with_spaces_reach_the_ranks_whole(run_job: Callable[..., Result], tmp_path: Path) -> None:
    shutil.copy(tmp_path / "my runs" / "run.yaml", tmp_path / "my runs" / "a run.yaml")
    folder = f"folder={tmp_path / 'my runs' / 'one'}"
    started = run_job("a run.yaml", "-o", folder).started
    assert started[-5:] == ["launch", "train", "a run.yaml", "-o", folder]


def test_ranks_meet_on_the_first_host_at_a_port_that_a_restart_changes(run_job: Callable[..., Result]) -> None:
    assert run_job().started[:3] == ["node7", "23450", "srun"]
    assert run_job(SLURM_RESTART_COUNT="2").started[:3] == ["node7", "23452", "srun"]


def test_each_gpu_gets_a_rank_and_its_share_of_the_cpus(run_job: Callable[..., Result]) -> None:
    started = run_job(SLURM_GPUS_ON_NODE="8").started
    assert {"--ntasks=16", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=4"} <= set(started)


def test_without_gpus_each_task_is_a_rank(run_job: Callable[..., Result]) -> None:
    started = run_job(SLURM_TASKS_PER_NODE="2(x2)").started
    assert {"--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=16"} <= set(started)
    assert not any("gpu" in argument for argument in started)


def test_fewer_cpus_than_gpus_end_before_a_rank_starts(run_job: Callable[..., Result]) -> None:
    result = run_job(SLURM_GPUS_ON_NODE="8", SLURM_JOB_CPUS_PER_NODE="1(x2)")
    assert (result.code, result.started) == (2, [])
    assert "1 CPUs for 8 ranks on a node; add --exclusive" in result.stderr


def test_a_wrong_configuration_ends_with_2_before_a_rank_starts(run_job: Callable[..., Result]) -> None:
    result = run_job("run.yaml", "-o", "train.stepz=3")
    assert (result.code, result.started) == (2, [])
    assert "train.stepz: unknown key; did you mean 'steps'?" in result.stderr


def test_a_checkout_that_is_nowhere_ends_with_2_and_says_how_to_submit(run_job: Callable[..., Result]) -> None:
    result = run_job(COMMAND="(null)")
    assert result.code == 2
    assert "submit with: sbatch CHECKOUT/launch/train.sh" in result.stderr


def test_without_slurm_the_command_takes_over(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 75\n')
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": "active"}
    done = subprocess.run([TRAIN, "a run.yaml", "--ranks", "2"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "-m|launch|train|--restart|a run.yaml|--ranks|2|")


def is_shell_script(path: Path) -> bool:
    if not path.is_file() or path.suffix not in ("", ".sh"):
        return False
    with path.open("rb") as stream:
        first_line = stream.readline()
    return first_line.startswith(b"#!") and first_line.split(b"/")[-1].split()[-1] in (b"bash", b"sh")


def test_every_shell_script_satisfies_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        reason = "shellcheck is missing: apt-get install -y shellcheck"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    scripts = [name for name in listed if is_shell_script(ROOT / name)]
    assert "launch/train.sh" in scripts
    checked = subprocess.run(["shellcheck", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", ["train.sh", "prepare.sh"])
def test_a_link_to_the_script_finds_the_checkout_from_any_folder(tmp_path: Path, name: str) -> None:
    link = tmp_path / "a link.sh"
    link.symlink_to(ROOT / "launch" / name)
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    environment.pop("SLURM_JOB_ID", None)
    ended = subprocess.run([link, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"shardline {name.removesuffix('.sh')}" in ended.stdout
