"""launch/train.sh beside fake `srun` and `scontrol`; tests/slurm/ runs it on a real Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run
from cluster.journal.records import read_events
from cluster.paths import RunPaths
from cluster.slurm.srun_output import BEGINS
from training.reporting.status import status_text

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "launch" / "train.sh"
SRUN = f"""#!/usr/bin/env bash
echo >>"$FAKES/starts"
printf '%s\\n' "$MASTER_ADDR" "$MASTER_PORT" "$SHARDLINE_LAUNCHER" "$@" >"$FAKES/started"
eval "$SRUN_FAILS"
echo "{BEGINS}" >&2
eval "$SRUN_DOES"
"""
TELL_RANKS = 'echo "$SHARDLINE_RANKS" >"$FAKES/ranks"'
SCONTROL = """#!/usr/bin/env bash
eval "$SCONTROL_DOES"
case "$1 $2" in
  "show hostnames") tr , '\\n' <<<"${3/node[[]7-8]/node7,node8}" ;;
  "show job") printf '%s\\n' "JobId=$3 JobName=shardline" "   $FACTS Restarts=$RESTARTS" "   Command=$COMMAND" ;;
  "--details show") echo "   Nodes=node7,node8 CPU_IDs=0-31 Mem=0 GRES=$GRES" ;;
  requeue*) echo "$2" >>"$FAKES/requeued" ;;
esac
"""
SQUEUE = """#!/usr/bin/env bash
[[ $* != *%e* ]] || { echo "$END_TIME"; exit; }
[[ ! -e $FAKES/step ]] || { cat "$FAKES/step" && touch "$FAKES/looked"; }
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
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "squeue": SQUEUE}.items():
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
            "SRUN_FAILS": "",
            "END_TIME": "NONE",
            "FACTS": facts,
            "RESTARTS": variables.get("SLURM_RESTART_COUNT", "0"),
            "GRES": "",
            "COMMAND": f"{TRAIN} run.yaml",
            "SHARDLINE_PATIENCE": "0",
            "SHARDLINE_PREFLIGHT": "off",  # tests/launch/test_bad_hosts.py
            "SCONTROL_DOES": "",
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS": "2",
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


@pytest.mark.parametrize("code", [0, 233])
def test_an_srun_that_fails_before_a_rank_begins_is_called_again_and_does_not_count(
    run_job: Callable[..., Result], tmp_path: Path, code: int
) -> None:
    fails = f'[[ $(wc -l <"$FAKES/starts") -gt 3 ]] || {{ echo "srun: error: no slurmd" >&2; exit {code}; }}'
    result = run_job(SRUN_FAILS=fails)
    assert (result.code, result.starts) == (0, 4)
    assert "srun could not start the ranks (no slurmd): trying again" in result.stderr
    assert [event["event"] for event in read_events(RunPaths(tmp_path / "my runs/run"))] == ["launch"]


def test_an_srun_that_never_starts_a_rank_ends_the_job_with_its_reason(run_job: Callable[..., Result]) -> None:
    result = run_job(SRUN_FAILS="echo 'srun: error: Requested node configuration is not available' >&2; exit 1")
    assert (result.code, result.starts, result.requeued) == (2, 8, [])
    assert "srun failed 8 times without starting the ranks; at last with: Requested node conf" in result.stderr


def test_an_srun_that_fails_in_a_job_that_ends_is_not_called_again(run_job: Callable[..., Result]) -> None:
    result = run_job(SRUN_FAILS="exit 233", facts="JobState=COMPLETING Reason=None")
    assert (result.code, result.starts) == (1, 1)


def test_the_reason_that_is_recorded_names_the_host_whose_launcher_was_killed_and_the_signal(
    run_job: Callable[..., Result], tmp_path: Path
) -> None:
    killed = "echo 'srun: error: node8: task 1: Killed' >&2; exit 137"
    run_job(srun=f'[[ $(wc -l <"$FAKES/starts") != 1 ]] || {{ {killed}; }}')
    reasons = [event.get("reason") for event in read_events(RunPaths(tmp_path / "my runs/run"))]
    assert reasons == [None, "the launcher of the ranks on node8 was killed by SIGKILL", None]


def test_ranks_know_when_the_time_limit_ends_the_job_though_slurm_does_not_tell_the_job(
    run_job: Callable[..., Result], tmp_path: Path
) -> None:
    told = 'echo "$SLURM_JOB_END_TIME" >"$FAKES/end"'
    run_job(srun=told, END_TIME="1700000000")
    assert lines_of(tmp_path / "fakes" / "end") == ["1700000000"]
    run_job(srun=told, SLURM_JOB_END_TIME="1800000000")
    assert lines_of(tmp_path / "fakes" / "end") == ["1800000000"]


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


def test_a_job_that_slurm_does_not_put_back_leaves_a_note_that_the_next_start_and_its_status_read(
    run_job: Callable[..., Result], tmp_path: Path
) -> None:
    refused = '[[ $1 != requeue ]] || { echo "Requested operation is presently disabled" >&2; exit 1; }'
    assert run_job(srun="exit 75", SCONTROL_DOES=refused).code == 75
    told = status_text(RunPaths(tmp_path / "my runs" / "run"))
    assert "queue        job 12345 has stopped, and Slurm did not put it back: submit it again" in told
    said = run_job(SLURM_JOB_ID="12346").stderr
    assert "job 12345 has stopped, and Slurm did not put it back into the queue: continuing here" in said


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
    stopped = run_job(srun=f"{take_steps(1)}; touch run/STOP")
    submitted_again = run_job(srun="[[ ! -e run/STOP ]]")
    assert [stopped.code, submitted_again.code] == [0, 0]


def test_a_job_that_a_site_requeues_after_a_stop_starts_nothing(run_job: Callable[..., Result]) -> None:
    run_job(srun="mkdir -p run && touch run/STOP; exit 75")
    requeued = run_job(SLURM_RESTART_COUNT="1")
    assert (requeued.code, requeued.starts, requeued.requeued) == (2, 1, [])
    assert "run/STOP exists: nothing is started; submit again to resume" in requeued.stderr


def test_the_shell_survives_a_term_until_the_ranks_have_ended(run_job: Callable[..., Result]) -> None:
    result = run_job(srun="kill -TERM $PPID; sleep 0.1; exit 75")
    assert (result.code, result.requeued) == (75, ["12345"])


@pytest.mark.parametrize("name", ["USR1", "USR2"])
def test_a_signal_that_only_the_batch_script_gets_reaches_the_ranks_as_usr2(
    run_job: Callable[..., Result], name: str
) -> None:
    result = run_job(srun=f"trap 'exit 75' USR2; kill -{name} $PPID; while :; do sleep 0.05; done")
    assert (result.code, result.starts, result.requeued) == (75, 1, ["12345"])


def test_ctrl_c_saves_and_leaves_the_job_out_of_the_queue(run_job: Callable[..., Result]) -> None:
    result = run_job(srun="trap 'exit 75' USR2; kill -INT $PPID; while :; do sleep 0.05; done")
    assert (result.code, result.requeued) == (75, [])
    assert "interrupted: not put back into the queue; submit again to resume" in result.stderr


def test_ranks_that_fail_after_a_stop_was_asked_for_are_not_started_again(run_job: Callable[..., Result]) -> None:
    result = run_job(srun="trap 'exit 1' USR2; kill -USR2 $PPID; while :; do sleep 0.05; done")
    assert (result.code, result.starts, result.requeued) == (75, 1, ["12345"])


def test_an_srun_whose_step_slurm_no_longer_lists_is_ended_and_the_ranks_start_again(
    run_job: Callable[..., Result],
) -> None:
    names_its_step = 'for a; do [[ $a != --job-name=* ]] || echo "${a#*=}" >"$FAKES/new"; done; mv "$FAKES"/{new,step}'
    is_listed = 'until [[ -e $FAKES/looked ]]; do sleep 0.05; done; rm "$FAKES/step"'
    result = run_job(
        srun=f'[[ $(wc -l <"$FAKES/starts") == 1 ]] || exit 0; {names_its_step}; {is_listed}; exec sleep 600'
    )
    assert (result.code, result.starts) == (0, 2)
    assert "Slurm says that the ranks are gone, but srun waits for them" in result.stderr
    assert "the ranks ended with 143: restarting them" in result.stderr


NO_ANSWER = (
    "if [[ -e $FAKES/away && $(wc -l <$FAKES/away) -lt 4 ]]; then echo >>$FAKES/away;"
    " echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1; fi"
)


def test_no_answer_from_the_controller_does_not_end_a_job_whose_ranks_have_failed(
    run_job: Callable[..., Result],
) -> None:
    result = run_job(srun='[[ -e $FAKES/away ]] && exit 0; touch "$FAKES/away"; exit 137', SCONTROL_DOES=NO_ANSWER)
    assert (result.code, result.starts) == (0, 2)
    assert "no answer to `scontrol show job 12345`: asking again for 10 minutes" in result.stderr


def test_a_controller_that_is_away_when_the_job_starts_is_asked_again(
    run_job: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "fakes" / "away").touch()
    (tmp_path / "fakes" / "sleep").write_text("#!/bin/sh\n")
    (tmp_path / "fakes" / "sleep").chmod(0o755)
    assert run_job(SCONTROL_DOES=NO_ANSWER).code == 0


def test_what_srun_and_salloc_have_left_in_the_environment_does_not_reach_the_ranks(
    run_job: Callable[..., Result], tmp_path: Path
) -> None:
    left = ["SLURM_CPU_BIND", "SLURM_CPU_BIND_LIST", "SLURM_MEM_BIND_TYPE", "SLURM_GPUS", "SLURM_NTASKS_PER_GPU"]
    left += ["SLURM_MEM_PER_CPU", "SLURM_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND", "SLURM_GPUS_PER_NODE"]
    result = run_job(srun='env >"$FAKES/env"', **dict.fromkeys(left, "1"))
    names = {line.partition("=")[0] for line in lines_of(tmp_path / "fakes" / "env")}
    assert (result.code, names & set(left)) == (0, set())
    assert "SLURM_JOB_ID" in names


def test_a_task_of_srun_starts_no_ranks(run_job: Callable[..., Result]) -> None:
    result = run_job(SLURM_STEP_NUM_TASKS="2")
    assert (result.code, result.starts) == (2, 0)
    assert "train.sh was started 2 times, by srun; it uses all hosts of the job itself" in result.stderr


def test_a_heterogeneous_job_is_refused(run_job: Callable[..., Result]) -> None:
    result = run_job(SLURM_HET_SIZE="2", SLURM_JOB_ID_HET_GROUP_0="12345")
    assert (result.code, result.starts) == (2, 0)
    assert run_job(SLURM_HET_SIZE="2", SLURM_JOB_ID_HET_GROUP_0="12").code == 0  # of an outer job
    assert "heterogeneous job, and only its first component would be used" in result.stderr


@pytest.mark.parametrize("name", ["train.sh", "prepare.sh"])
def test_a_shell_that_is_not_bash_is_told(name: str) -> None:
    done = subprocess.run(["dash", ROOT / "launch" / name, "run.yaml"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"{name}: needs bash: bash launch/{name} RUN.yaml\n")


def test_uneven_tasks_are_ranks_on_the_hosts_that_have_them(run_job: Callable[..., Result], tmp_path: Path) -> None:
    shape = {"SLURM_TASKS_PER_NODE": "2,1", "SLURM_NTASKS": "3", "SLURM_JOB_CPUS_PER_NODE": "4,1"}
    started = run_job(srun=TELL_RANKS, **shape).started
    assert {"--ntasks=2", "--ntasks-per-node=1", "--whole", "--cpu-bind=none", "--mpi=none"} <= set(started)
    assert lines_of(tmp_path / "fakes" / "ranks") == ["node7:2 node8:1"]


def test_names_with_spaces_reach_the_ranks_whole(run_job: Callable[..., Result], tmp_path: Path) -> None:
    shutil.copy(tmp_path / "my runs" / "run.yaml", tmp_path / "my runs" / "a run.yaml")
    folder = f"folder={tmp_path / 'my runs' / 'one'}"
    started = run_job("a run.yaml", "-o", folder).started
    assert started[-5:] == ["launch", "train", "a run.yaml", "-o", folder]


def test_ranks_meet_on_the_first_host_at_a_port_that_a_restart_changes(run_job: Callable[..., Result]) -> None:
    assert run_job().started[:3] == ["node7", "23450", "srun"]
    assert run_job(SLURM_RESTART_COUNT="2").started[:3] == ["node7", "23452", "srun"]


def test_a_number_of_restarts_that_another_job_has_left_is_not_this_one_s(
    run_job: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "my runs" / "run").mkdir()
    (tmp_path / "my runs" / "run" / "STOP").touch()  # of an earlier job: a requeued one would end with 2
    assert run_job(SLURM_RESTART_COUNT="3", RESTARTS="0").started[1] == "23450"


def test_a_shell_of_salloc_has_the_gpus_that_slurm_gave_the_job(run_job: Callable[..., Result], tmp_path: Path) -> None:
    result = run_job(srun=TELL_RANKS, GRES="gpu:h200:8(IDX:0-7)", SLURM_GPUS="16")
    assert "--gpus-per-node=8" in result.started
    assert lines_of(tmp_path / "fakes" / "ranks") == ["node7:8 node8:8"]


def test_gpus_that_another_job_has_left_are_told_and_not_used(run_job: Callable[..., Result], tmp_path: Path) -> None:
    result = run_job(srun=TELL_RANKS, SLURM_GPUS_ON_NODE="8")
    assert lines_of(tmp_path / "fakes" / "ranks") == ["node7:1 node8:1"]
    assert "the environment tells of 8 GPUs a host, but Slurm gave this job none" in result.stderr


def test_a_shell_that_is_a_step_uses_all_hosts_and_tasks_of_the_job(
    run_job: Callable[..., Result], tmp_path: Path
) -> None:
    step = {"SLURM_TASKS_PER_NODE": "1", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
    run_job(srun=TELL_RANKS, facts="JobState=RUNNING NumTasks=4", **step)
    assert lines_of(tmp_path / "fakes" / "ranks") == ["node7:2 node8:2"]
    unclear = run_job(facts="JobState=RUNNING NumTasks=3", **step)
    assert (unclear.code, "does not tell how many tasks each of its 2 hosts has" in unclear.stderr) == (2, True)


def test_each_gpu_gets_a_rank_of_the_one_launcher_on_its_host(run_job: Callable[..., Result], tmp_path: Path) -> None:
    result = run_job(srun=TELL_RANKS, SLURM_GPUS_ON_NODE="8", GRES="gpu:8(IDX:0-7)")
    assert {"--ntasks=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=32"} <= set(result.started)
    assert lines_of(tmp_path / "fakes" / "ranks") == ["node7:8 node8:8"]


def test_without_gpus_each_task_is_a_rank(run_job: Callable[..., Result], tmp_path: Path) -> None:
    started = run_job(srun=TELL_RANKS, SLURM_TASKS_PER_NODE="2(x2)", SLURM_NTASKS="4").started
    assert {"--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=32"} <= set(started)
    assert not any(argument.startswith("--gpu") for argument in started)
    assert lines_of(tmp_path / "fakes" / "ranks") == ["node7:2 node8:2"]


def test_a_number_of_tasks_that_another_job_has_left_is_not_the_layout(
    run_job: Callable[..., Result], tmp_path: Path
) -> None:
    left = {"SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_NTASKS": "8"}  # as --exclusive without -n sets the first of them
    result = run_job(srun=TELL_RANKS, facts="JobState=RUNNING NumTasks=2", **left)
    assert lines_of(tmp_path / "fakes" / "ranks") == ["node7:1 node8:1"]
    assert "SLURM_NTASKS=8 is left over from another job" in result.stderr
    run_job(srun=TELL_RANKS, facts="JobState=RUNNING NumTasks=8", **left)
    assert lines_of(tmp_path / "fakes" / "ranks") == ["node7:4 node8:4"]


def test_fewer_cpus_than_gpus_end_before_a_rank_starts(run_job: Callable[..., Result]) -> None:
    result = run_job(GRES="gpu:8(IDX:0-7)", SLURM_JOB_CPUS_PER_NODE="1(x2)")
    assert (result.code, result.started) == (2, [])
    assert "1 CPU for 8 ranks on node7; submit with --exclusive" in result.stderr


def test_a_wrong_configuration_ends_with_2_before_a_rank_starts(run_job: Callable[..., Result]) -> None:
    result = run_job("run.yaml", "-o", "train.stepz=3")
    assert (result.code, result.started) == (2, [])
    assert "train.stepz: unknown key; did you mean 'steps'?" in result.stderr


def test_a_checkout_that_is_nowhere_ends_with_2_and_says_how_to_submit(run_job: Callable[..., Result]) -> None:
    result = run_job(COMMAND="(null)")
    assert result.code == 2
    assert "submit with: sbatch CHECKOUT/launch/train.sh" in result.stderr


@pytest.fixture
def run_here(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run train.sh of a checkout outside of Slurm, with the Pythons `venv` and `active`, which tell what they get."""
    for name, folder in {"venv": tmp_path / "checkout/.venv/bin", "active": tmp_path / "active"}.items():
        folder.mkdir(parents=True)
        (folder / "python").write_text(
            f'#!/bin/sh\n[ "$1" != -c ] || exit $BROKEN\nprintf "%s|" {name} $SITE "$@"\nexit 75\n'
        )
        (folder / "python").chmod(0o755)
    left_out = shutil.ignore_patterns("*.py", "site.env", "__pycache__")  # other processes write into the last one
    shutil.copytree(ROOT / "launch", tmp_path / "checkout/launch", ignore=left_out)

    def run(site: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "checkout/launch/site.env").write_text(site)
        environment = {"PATH": f"{tmp_path / 'active'}:{os.environ['PATH']}", "BROKEN": "0", **variables}
        command = [str(tmp_path / "checkout/launch/train.sh"), "a run.yaml", "--ranks", "2"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def test_a_requeued_job_waits_for_a_disk_that_is_away(run_job: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "fakes" / "sleep").write_text(f"#!/bin/sh\nln -s '{ROOT}' '{tmp_path}/away'\n")
    (tmp_path / "fakes" / "sleep").chmod(0o755)
    assert run_job(COMMAND=f"{tmp_path}/away/launch/train.sh run.yaml", SLURM_RESTART_COUNT="1").code == 0


def test_without_slurm_the_command_takes_over(run_here: Callable[..., Any]) -> None:
    done = run_here(VIRTUAL_ENV="active")
    assert (done.returncode, done.stdout) == (75, "active|-m|launch|train|--restart|a run.yaml|--ranks|2|")


def test_the_python_of_the_checkout_wins_over_conda_but_not_over_an_active_venv(
    run_here: Callable[..., Any],
) -> None:
    assert run_here(CONDA_PREFIX="/opt/conda").stdout.startswith("venv|")
    assert run_here(CONDA_PREFIX="/opt/conda", VIRTUAL_ENV="active").stdout.startswith("active|")


def test_a_python_without_our_packages_is_named(run_here: Callable[..., Any], tmp_path: Path) -> None:
    done = run_here(BROKEN="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path}/checkout/.venv/bin/python cannot import pydantic: install Shardline" in done.stderr


@pytest.mark.parametrize("line", ["no_such_program load cuda", 'echo "$NOT_SET"', "[ -d /no/such/folder ] && false"])
def test_a_line_that_fails_in_site_env_does_not_end_the_job(run_here: Callable[..., Any], line: str) -> None:
    assert run_here(f"export SITE=here\n{line} >&2\n").stdout.startswith("venv|here|-m|launch|train|")


@pytest.mark.parametrize("line", ["exit 3", "set -e; false", "exit"])
def test_a_site_env_that_ends_the_script_is_named(run_here: Callable[..., Any], line: str) -> None:
    done = run_here(f"{line}\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("train.sh: launch/site.env has ended the script: take `exit` and `set -e` out of it\n")


def test_a_site_env_may_declare_its_variables_as_export_p_writes_them(run_here: Callable[..., Any]) -> None:
    assert run_here('declare -x SITE="here"\n').stdout.startswith("venv|here|")


@pytest.mark.parametrize("line", ["set -- other words", "shift", "cd /", "checkout=/nowhere script=other"])
def test_what_a_site_env_does_to_arguments_folder_and_our_variables_changes_nothing(
    run_here: Callable[..., Any], line: str
) -> None:
    done = run_here(f"export SITE=here\n{line}\n")
    assert done.stdout.startswith("venv|here|-m|launch|train|--restart|a run.yaml|")


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
