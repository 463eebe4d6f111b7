"""launch/prepare.sh beside a fake `srun`; tests/slurm/ runs it on a real Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.launching.ray_host import PORT_IN_USE
from cluster.slurm.srun_output import BEGINS

ROOT = Path(__file__).resolve().parents[2]
PREPARE = ROOT / "launch" / "prepare.sh"
SRUN = f"""#!/usr/bin/env bash
for word; do [[ $word != --nodelist=* ]] || host=${{word#*=}}; done
printf '%s\\n' "$@" >"$FAKES/words-$host"
trap 'echo ended >>"$FAKES/ended-$host"; exit 140' USR2
trap 'echo killed >>"$FAKES/ended-$host"; exit 143' TERM
echo >>"$FAKES/starts-$host" # from here on a signal is heard
[[ $host != node7 || -e $FAKES/refuses ]] || echo "{BEGINS}" >&2
[[ $host == node7 ]] || until false; do sleep 0.05; done
until (($(cat "$FAKES/starts-node8" 2>/dev/null | wc -l) >= $(wc -l <"$FAKES/starts-node7"))); do sleep 0.05; done
eval "$FIRST_DOES"
"""
SCONTROL = f"""#!/usr/bin/env bash
case "$1 $2" in
  "show hostnames") printf 'node7\\nnode8\\n' ;;
  "show job") echo "   Command={PREPARE} run.yaml" ;;
esac
"""
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def run_job(tmp_path: Path, fakes: Path, run_yaml: Callable[..., Path]) -> Callable[..., Done]:
    """Run a copy of prepare.sh as Slurm does, in a job of two nodes; the first one's srun does as told."""
    folder = run_yaml(tmp_path / "my runs").parent
    script = shutil.copy(PREPARE, tmp_path / "slurm_script")

    def run(first: str = "exit 0", **variables: str) -> Done:
        environment = {
            "PATH": f"{fakes}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            **{"VIRTUAL_ENV": sys.prefix, "FAKES": str(fakes), "FIRST_DOES": first, "SHARDLINE_PATIENCE": "0"},
            **{"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"},
            **{"SLURM_JOB_CPUS_PER_NODE": "8,4", **variables},
        }
        command = ["bash", script, "run.yaml"]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)

    return run


def words(fakes: Path, host: str) -> list[str]:
    return (fakes / f"words-{host}").read_text().splitlines()


def test_each_host_gets_an_srun_with_all_its_cpus_and_the_first_one_the_command(
    run_job: Callable[..., Done], fakes: Path
) -> None:
    assert run_job().returncode == 0
    assert {"--nodelist=node7", "--cpus-per-task=8", "--port=23450", "--hosts=node7,node8"} <= set(
        words(fakes, "node7")
    )
    assert words(fakes, "node7")[-6:] == ["-m", "launch", "prepare", "run.yaml", "-o", "data.executor=ray"]
    assert {"--nodelist=node8", "--cpus-per-task=4", "--cpus=4", "--name=node8"} <= set(words(fakes, "node8"))
    assert words(fakes, "node8")[-1] == "--" and "--port=23450" in words(fakes, "node8")


@pytest.mark.parametrize("code", [0, 2])
def test_the_exit_code_is_the_command_s_and_the_other_hosts_are_asked_to_end(
    run_job: Callable[..., Done], fakes: Path, code: int
) -> None:
    assert run_job(f"exit {code}").returncode == code
    assert (fakes / "ended-node8").read_text().splitlines()[0] == "ended"


def test_a_host_whose_srun_fails_does_not_cost_the_job(run_job: Callable[..., Done], fakes: Path) -> None:
    is_seen = 'while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done'  # it stays a zombie until the launcher has looked
    lost = f'pid=$(<"$FAKES/pid-node8"); kill -KILL "$pid"; {is_seen}'
    (fakes / "srun").write_text(SRUN.replace("trap", 'echo $$ >"$FAKES/pid-$host"\ntrap', 1))
    done = run_job(lost)
    assert done.returncode == 0
    assert "Ray on node8 ended with -9: continuing without it" in done.stderr


def test_a_port_that_another_program_has_is_not_used(run_job: Callable[..., Done], fakes: Path) -> None:
    assert run_job(f"[[ $* == *--port=23451* ]] || exit {PORT_IN_USE}").returncode == 0
    assert "--port=23451" in words(fakes, "node8")


def test_an_srun_that_fails_by_itself_is_called_again(run_job: Callable[..., Done], fakes: Path) -> None:
    (fakes / "refuses").touch()
    done = run_job('[[ $(wc -l <"$FAKES/starts-node7") == 1 ]] || exit 0; rm "$FAKES/refuses"; exit 233')
    assert done.returncode == 0
    assert "srun could not start Ray on node7 (srun ended with 233): trying again" in done.stderr


def test_a_cancelled_job_ends_all_hosts(run_job: Callable[..., Done], fakes: Path) -> None:
    assert run_job("kill -TERM $PPID; while :; do sleep 0.05; done").returncode == 143
    assert [(fakes / f"ended-{host}").read_text().splitlines()[0] for host in ("node7", "node8")] == ["ended", "ended"]


def test_ray_runs_in_the_container_that_the_job_names(run_job: Callable[..., Done], fakes: Path) -> None:
    options = "--container-image=a.sqsh '--container-mounts=/a b:/a b'"
    run_job(SHARDLINE_SRUN_OPTIONS=options, SHARDLINE_PYTHON="apptainer exec 'my image.sif' python3")
    told = words(fakes, "node8")
    assert {"--container-image=a.sqsh", "--container-mounts=/a b:/a b"} <= set(told[: told.index("sh")])
    assert told[told.index("apptainer") :][:5] == ["apptainer", "exec", "my image.sif", "python3", "-m"]


def test_a_wrong_configuration_ends_with_2_before_a_host_is_started(run_job: Callable[..., Done], fakes: Path) -> None:
    (fakes.parent / "my runs" / "run.yaml").write_text("{nmae: r}")
    assert run_job().returncode == 2
    assert not (fakes / "starts-node7").exists()


def test_a_task_of_srun_starts_nothing(run_job: Callable[..., Done]) -> None:
    done = run_job(SLURM_STEP_NUM_TASKS="2")
    assert done.returncode == 2
    assert "prepare.sh was started 2 times, by srun" in done.stderr
