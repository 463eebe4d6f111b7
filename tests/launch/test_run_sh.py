"""launch/run.sh beside fake `python`, `srun`, `scontrol` and `apptainer`: which command a verb's job becomes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "launch" / "run.sh"
SAYS_WHAT_IT_IS = """#!/usr/bin/env bash
[[ $1 != -c ]] || exit 0
printf '%s\\n' "${0##*/}" "$@"
exit "${CODE:-0}"
"""
SCONTROL = f"""#!/usr/bin/env bash
printf '%s\\n' "JobId=$3 JobName=shardline" "   Command={RUN} export run.yaml"
"""

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def run_sh(tmp_path: Path) -> Callable[..., Done]:
    """Run a copy of run.sh in a folder with a space in its name, as Slurm does."""
    fakes, folder = tmp_path / "fakes", tmp_path / "my runs"
    for path in (fakes, folder):
        path.mkdir()
    for name in ("python", "srun", "apptainer"):
        (fakes / name).write_text(SAYS_WHAT_IT_IS)
    (fakes / "scontrol").write_text(SCONTROL)
    for path in fakes.iterdir():
        path.chmod(0o755)
    script = shutil.copy(RUN, tmp_path / "slurm_script")

    def run(*arguments: str, **variables: str) -> Done:
        path = f"{fakes}:{os.environ['PATH']}"
        environment = {"PATH": path, "VIRTUAL_ENV": str(fakes), "SLURM_JOB_ID": "12", **variables}
        return subprocess.run(["bash", script, *arguments], cwd=folder, env=environment, capture_output=True, text=True)

    return run


def test_the_verb_and_its_options_reach_python_whole_and_its_exit_code_is_the_job_s(
    run_sh: Callable[..., Done],
) -> None:
    done = run_sh("export", "a run.yaml", "-o", "export.dtype=fp32", CODE="75")
    words = ["python", "-m", "launch", "export", "a run.yaml", "-o", "export.dtype=fp32"]
    assert (done.returncode, done.stdout.splitlines()) == (75, words)


def test_a_container_of_pyxis_is_srun_s_and_one_of_apptainer_a_prefix(run_sh: Callable[..., Done]) -> None:
    options = "--container-image=a.sqsh '--container-mounts=/a b:/a b'"
    pyxis = run_sh(
        "export", "run.yaml", SHARDLINE_SRUN_OPTIONS=options, SHARDLINE_PYTHON="python3", SLURM_CPUS_ON_NODE="8"
    )
    srun = ["srun", "--ntasks=1", "--nodes=1", "--overlap", "--export=ALL", "--mpi=none"]
    srun += ["--cpus-per-task=8", "--cpu-bind=none"]
    inside = ["--container-image=a.sqsh", "--container-mounts=/a b:/a b", "python3"]
    assert pyxis.stdout.splitlines() == [*srun, *inside, "-m", "launch", "export", "run.yaml"]
    apptainer = run_sh("export", "run.yaml", SHARDLINE_PYTHON="apptainer exec --nv 'my image.sif' python3")
    words = ["apptainer", "exec", "--nv", "my image.sif", "python3", "-m", "launch", "export", "run.yaml"]
    assert apptainer.stdout.splitlines() == words


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["export"], {}, "usage: launch/run.sh VERB RUN.yaml"),
        (["train", "run.yaml"], {}, "submit launch/train.sh RUN.yaml"),
        (["prepare", "run.yaml"], {}, "submit launch/prepare.sh RUN.yaml"),
        (["export", "run.yaml"], {"SLURM_JOB_NUM_NODES": "2"}, "uses one node, and this job has 2; submit with -N1"),
    ],
)
def test_a_job_that_would_waste_its_nodes_ends_with_2(
    run_sh: Callable[..., Done], arguments: list[str], variables: dict[str, str], words: str
) -> None:
    done = run_sh(*arguments, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_a_controller_that_does_not_answer_at_first_is_asked_again(run_sh: Callable[..., Done], tmp_path: Path) -> None:
    away_once = '[[ -e $0.asked ]] || { touch "$0.asked"; exit 1; }\n'
    (tmp_path / "fakes" / "scontrol").write_text(SCONTROL.replace("\n", "\n" + away_once, 1))
    (tmp_path / "fakes" / "sleep").symlink_to("/bin/true")
    done = run_sh("export", "run.yaml")
    assert (done.returncode, done.stdout.splitlines()) == (0, ["python", "-m", "launch", "export", "run.yaml"])


def test_all_scripts_find_the_checkout_in_the_same_way() -> None:
    texts = [(ROOT / "launch" / f"{name}.sh").read_text() for name in ("train", "prepare", "tune", "run")]
    begins, ends = "checkout=$(dirname", "[[ -f $checkout/launch/common.sh ]] ||"
    assert len({text[text.index(begins) : text.index(f"\n{ends}")] for text in texts}) == 1
