"""What a job asks Slurm for, from the `cluster` section of a run's YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config_loading import validate
from cluster.errors import ConfigError
from cluster.submission.config import ClusterConfig
from cluster.submission.sbatch import PYTHON, SRUN_OPTIONS, excluding, make_job

LOGS = Path("/shared/my runs/a/logs")
GPUS = {"partition": "gpu", "nodes": 4, "gpus_per_node": "h100:8", "memory": "all", "time": "1-12:00:00"}


def options_of(stage: str, **cluster: Any) -> list[str]:
    """Return a job's options after its name and its log."""
    config = validate(ClusterConfig, cluster, source="run.yaml")
    first, log, *options = make_job(config, stage, f"a-{stage}", LOGS, ["train.sh", "run.yaml"], []).options
    assert (first, log) == (f"--job-name=a-{stage}", "--output=/shared/my runs/a/logs/%x-%j.log")
    return options


def test_a_training_gets_all_gpus_an_evaluation_one_and_the_other_stages_none() -> None:
    size = {
        "prepare": ["--nodes=4", "--ntasks-per-node=1"],
        "train": ["--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=h100:8"],
        "export": ["--nodes=1", "--ntasks-per-node=1"],
        "evaluate": ["--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=h100:1"],
    }
    for stage, options in size.items():
        assert options_of(stage, **GPUS) == [*options, "--mem=0", "--partition=gpu", "--time=1-12:00:00"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--mem=0"], ["--mem=0", "--exclude=node2,node9"]),
        (["--exclude=a[01-03],node2", "--mem=0"], ["--mem=0", "--exclude=a[01-03],node2,node2,node9"]),
        (["--exclude", "a", "-x b", "-xc"], ["--exclude=a,b,c,node2,node9"]),
        (["--exclud=a", "--exclusive"], ["--exclusive", "--exclude=a,node2,node9"]),
        *((same, same) for same in (["--nodel=a"], ["-wa"], ["--nodefile=a"], ["-F a"], ["--exclude=/a/file"])),
    ],
)
def test_bad_hosts_are_excluded_beside_those_that_the_yaml_excludes(options: list[str], expected: list[str]) -> None:
    assert excluding(options, ["node2", "node9"]) == expected
    assert excluding(options, []) == options


def test_every_key_becomes_its_option() -> None:
    options = options_of(
        "train",
        nodes=4,
        min_nodes=2,
        ranks_per_node=2,
        cpus_per_node=16,
        memory="200G",
        exclusive=True,
        account="lab",
        qos="high",
        time="00:30:00",
        constraint="ib&nvme",
        reservation="maint",
        mail={"user": "a@b.org", "events": ["FAIL"]},
        options=["--exclude=node7", "-x node8"],
    )
    assert options == [
        *("--nodes=2-4", "--ntasks-per-node=2", "--cpus-per-task=8", "--mem=200G", "--exclusive"),
        *("--account=lab", "--qos=high", "--time=00:30:00", "--constraint=ib&nvme", "--reservation=maint"),
        *("--mail-user=a@b.org", "--mail-type=FAIL", "--exclude=node7", "-x node8"),
    ]


def test_a_stage_s_own_keys_win_and_its_options_are_added() -> None:
    stages = {"evaluate": {"gpus_per_node": 2, "partition": "small", "options": ["--nice=5"]}, "train": {"nodes": 1}}
    cluster = {**GPUS, "min_nodes": 2, "options": ["--exclude=node7"], **stages}
    evaluate = options_of("evaluate", **cluster)
    assert {"--gpus-per-node=2", "--partition=small"} <= set(evaluate)
    assert evaluate[-2:] == ["--exclude=node7", "--nice=5"]
    assert options_of("train", **cluster)[0] == "--nodes=1"
    assert options_of("prepare", **cluster)[0] == "--nodes=2-4"


def test_a_section_that_was_written_into_a_run_s_folder_asks_for_the_same() -> None:
    config = validate(ClusterConfig, {**GPUS, "export": {"memory": "64G"}}, source="run.yaml")
    again = config.model_dump(mode="json")
    assert again == {**GPUS, "export": {"memory": "64G"}}
    assert options_of("export", **again) == options_of("export", **GPUS, export={"memory": "64G"})


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"time": "90"}, "time: expected 'hours:minutes:seconds' or 'days-hours:minutes:seconds', got '90'"),
        ({"time": 90}, "got '90'"),
        ({"time": "1:30"}, "time: expected 'hours:minutes:seconds'"),
        ({"gpus_per_node": "eight"}, "gpus_per_node: expected a number, or kind:number as in h100:8, got 'eight'"),
        ({"memory": 64}, "memory: expected a size such as 200G, or all, got '64'"),
        ({"memory": "64"}, "memory: expected a size such as 200G, or all, got '64'"),
        ({"partition": "gpu; rm"}, "partition: expected a text without spaces"),
        ({"account": "--wrap"}, "account: expected a text without spaces"),
        ({"partitions": "gpu"}, "did you mean 'partition'?"),
        ({"min_nodes": 3}, "min_nodes: 3 is more than nodes, which is 1 unless it is set"),
        ({"nodes": 2, "min_nodes": 3}, "min_nodes: 3 is more than nodes: 2"),
        ({"gpus_per_node": 8, "ranks_per_node": 2}, "with GPUs there is one rank for each"),
        ({"gpus_per_node": 8, "cpus_per_node": 4}, "cpus_per_node: 4 for 8 ranks on a node"),
        ({"ranks_per_node": 3, "cpus_per_node": 8}, "8 is not a multiple of ranks_per_node: 3"),
        ({"prepare": {"ranks_per_node": 2}}, "prepare.ranks_per_node: is a key of trainings"),
        ({"export": {"nodes": 2}}, "export.nodes: unknown key"),
        ({"options": ["--array=0-3"]}, "'--array=0-3' is decided by `shardline submit`"),
        ({"options": ["--dep=singleton"]}, "'--dep=singleton' is decided by `shardline submit`"),
        ({"options": ["-Jmine"]}, "'-Jmine' is decided by `shardline submit`"),
        ({"options": ["--partition=gpu"]}, "has a key of its own: partition"),
        ({"options": ["-N2"]}, "has a key of its own: nodes"),
        ({"options": ["node7"]}, "expected an option of sbatch as one text"),
        ({"mail": {"user": "a@b", "events": ["START"]}}, "mail.events.0: expected 'BEGIN'"),
        ({"container": {"image": "a.sqsh"}}, "container.runtime: required, but missing"),
        (
            {"container": {"image": "a.sif", "runtime": "apptainer", "mounts": ["data"]}},
            "expected /here, /here:/inside",
        ),
    ],
)
def test_a_mistake_is_told_in_words_before_anything_is_submitted(cluster: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(ClusterConfig, cluster, source="run.yaml")
    assert words in str(refused.value)


def test_a_folder_with_a_percent_sign_is_not_taken_for_a_pattern_of_slurm() -> None:
    job = make_job(ClusterConfig(), "train", "a", Path("/shared/100%j"), [], [])
    assert "--output=/shared/100%%j/%x-%j.log" in job.options
    with pytest.raises(ConfigError, match="backslash"):
        make_job(ClusterConfig(), "train", "a", Path("/shared/a\\b"), [], [])


def container(**values: Any) -> dict[str, str]:
    config = validate(ClusterConfig, {"container": values}, source="run.yaml")
    job = make_job(config, "train", "a", LOGS, ["train.sh"], [Path("/code"), Path("/runs/a"), Path("/code")])
    assert "--export=ALL" in job.options
    return job.variables


def test_a_container_sees_its_mounts_the_code_and_the_run_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    assert container(
        image="a.sqsh", runtime="pyxis", mounts=["/data:/data:ro"], options=["--no-container-entrypoint"]
    ) == {
        SRUN_OPTIONS: "--container-image=a.sqsh --container-mounts=/data:/data:ro,/code:/code,/runs/a:/runs/a"
        " --container-workdir=/usr --no-container-entrypoint",
        PYTHON: "python3",
    }
    assert container(image="a.sif", runtime="apptainer", mounts=["/data"], python="/venv/bin/python") == {
        PYTHON: "apptainer exec --nv --bind=/data:/data,/code:/code,/runs/a:/runs/a --pwd=/usr a.sif /venv/bin/python"
    }


def test_a_folder_that_cannot_be_mounted_is_named() -> None:
    config = ClusterConfig.model_validate({"container": {"image": "a.sif", "runtime": "apptainer"}})
    with pytest.raises(ConfigError, match="cannot mount '/my runs'"):
        make_job(config, "train", "a", LOGS, [], [Path("/my runs")])
