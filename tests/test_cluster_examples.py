"""The files of examples/cluster fit the schemas of what reads them, and this program: commands, exit codes, paths."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cluster.environment import read_host_place
from cluster.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ACTION
from cluster.network.world import HostPlace
from launch.arguments import VERBS, parser
from tests.floor_plan import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "cluster"
MODELS = {  # of Kubernetes' and Kubeflow's own schemas
    "PersistentVolumeClaim": "IoK8sApiCoreV1PersistentVolumeClaim",
    "Job": "IoK8sApiBatchV1Job",
    "TrainingRuntime": "TrainerV1alpha1TrainingRuntime",
    "TrainJob": "TrainerV1alpha1TrainJob",
}
POD = "IoK8sApiCoreV1PodTemplateSpec"
RAY_JOB = {  # those keys of KubeRay's schema that the example uses
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"},
    "spec.rayClusterSpec": {"rayVersion", "headGroupSpec", "workerGroupSpecs"},
    "group": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
SKY_TASK = {"name", "workdir", "num_nodes", "resources", "envs", "volumes", "setup", "run"}
SKY_RESOURCES = {"infra", "image_id", "cpus", "memory", "accelerators", "use_spot", "job_recovery"}


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in YAML(typ="safe").load_all(FOLDER / name) if document is not None]


KUBERNETES = {
    document["kind"]: document
    for path in sorted((FOLDER / "kubernetes").glob("*.yaml"))
    for document in documents(f"kubernetes/{path.name}")
}
SKY = {task["name"]: task for task in documents("skypilot.yaml")}


def check_schema(model: str, document: dict[str, Any]) -> None:
    """Check that a model of Kubernetes takes a document, and that it ignores nothing of it."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install -e '.[dev]'")
    assert getattr(models, model).from_dict(document).to_dict() == document


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the only container and the volumes of a Job or TrainingRuntime."""
    spec = document["spec"]
    if document["kind"] == "TrainingRuntime":
        spec = spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod: dict[str, Any] = spec["template"]["spec"]
    return pod


def check_command(words: list[str]) -> None:
    """Check that the program takes a command."""
    assert words[0] == "shardline"
    assert words[1] in VERBS
    parser(words[1:]).parse_args(words[1:])


@pytest.mark.parametrize("kind", MODELS)
def test_a_kubernetes_object_fits_its_schema(kind: str) -> None:
    check_schema(MODELS[kind], KUBERNETES[kind])


def test_the_ray_job_fits_the_keys_of_kuberay_and_its_pods_those_of_kubernetes() -> None:
    job = KUBERNETES["RayJob"]
    cluster = job["spec"]["rayClusterSpec"]
    assert set(KUBERNETES) == {*MODELS, "RayJob"}
    assert set(job) <= RAY_JOB[""]
    assert set(job["spec"]) <= RAY_JOB["spec"]
    assert set(cluster) <= RAY_JOB["spec.rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(group) <= RAY_JOB["group"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        check_schema(POD, group["template"])


def test_prepare_waits_for_every_host_of_the_ray_job_with_the_ray_of_the_image() -> None:
    spec = KUBERNETES["RayJob"]["spec"]
    hosts = 1 + sum(group["replicas"] for group in spec["rayClusterSpec"]["workerGroupSpecs"])
    env, variable, *command = shlex.split(spec["entrypoint"])
    assert (env, variable) == ("env", f"SHARDLINE_RAY_HOSTS={hosts}")
    check_command(command)
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_what_the_pods_run_is_a_command_of_the_program() -> None:
    check_command(KUBERNETES["TrainJob"]["spec"]["trainer"]["args"])
    check_command(pod_of(KUBERNETES["Job"])["containers"][0]["args"])
    assert "--restart" in KUBERNETES["TrainJob"]["spec"]["trainer"]["args"]


@pytest.mark.parametrize("kind", ["Job", "TrainingRuntime"])
def test_a_pod_whose_end_needs_a_person_is_not_started_again_but_others_are(kind: str) -> None:
    document = KUBERNETES[kind]
    spec = document["spec"]
    if kind == "TrainingRuntime":
        rule = spec["template"]["spec"]["failurePolicy"]["rules"][0]
        assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
        spec = spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
        assert spec["backoffLimit"] == 0  # a pod that is started again alone would find its world gone
    rule = spec["podFailurePolicy"]["rules"][0]
    ends = set(rule["onExitCodes"]["values"])
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert rule["onExitCodes"]["containerName"] == pod_of(document)["containers"][0]["name"]
    assert EXIT_USER_ACTION in ends
    assert ends <= {EXIT_USER_ACTION, EXIT_INTERRUPTED}
    assert pod_of(document)["restartPolicy"] == "Never"  # else Kubernetes takes no podFailurePolicy


def test_the_ranks_have_memory_to_share_time_to_save_and_need_no_network() -> None:
    pod = pod_of(KUBERNETES["TrainingRuntime"])
    container = pod["containers"][0]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"] == "shardline"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["HF_HOME"].startswith("/shared/")
    assert pod["terminationGracePeriodSeconds"] >= 300


def test_a_sky_task_has_keys_that_skypilot_knows_and_its_code_as_its_exit_codes_mean() -> None:
    assert set(SKY) == {"shardline", "prepare", "train", "export"}
    for name in ("prepare", "train", "export"):
        assert set(SKY[name]) <= SKY_TASK
        assert set(SKY[name]["resources"]) <= SKY_RESOURCES
    recovery = SKY["train"]["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [EXIT_STOPPED]
    assert 0 < recovery["max_restarts_on_errors"] < 10  # a 2 counts as an error there
    assert EXIT_FAILED not in recovery["recover_on_exit_codes"]  # what fails before it trains would go round for ever


@pytest.mark.parametrize("name", ["prepare", "train", "export"])
def test_a_sky_task_runs_a_command_that_knows_its_host(tmp_path: Path, name: str) -> None:
    (tmp_path / "shardline-venv/bin").mkdir(parents=True)
    (tmp_path / "shardline-venv/bin/activate").write_text(f"PATH={tmp_path}:$PATH\ncd() {{ :; }}\n")
    (tmp_path / "shardline").write_text('#!/bin/sh\necho shardline "$@"\nenv\nexit 75\n')
    (tmp_path / "shardline").chmod(0o755)
    sky = {"NUM_NODES": "2", "NODE_RANK": "1", "NUM_GPUS_PER_NODE": "8", "NODE_IPS": "10.0.0.5\n10.0.0.6"}
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | {f"SKYPILOT_{key}": sky[key] for key in sky}
    ended = subprocess.run(["bash", "-c", SKY[name]["run"]], env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 75, ended.stderr
    command, *said = ended.stdout.splitlines()
    check_command(command.split())
    place = read_host_place(dict(line.split("=", 1) for line in said if "=" in line))
    expected = HostPlace(number=1, count=2, ranks=8, master=("10.0.0.5", 29500))
    assert place == (expected if name == "train" else None)


def copied(name: str) -> list[str]:
    """Return the files and folders that an image gets from the checkout."""
    text = (FOLDER / name).read_text()
    if name == "Dockerfile":
        return [word for words in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in words.split()]
    return re.findall(r"^    (\S+) /opt/shardline/$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_an_image_has_what_the_readme_installs(name: str) -> None:
    text, readme = (FOLDER / name).read_text(), (ROOT / "README.md").read_text()
    install = re.search(r"^pip install (-c constraints.txt .*)$", readme, re.MULTILINE)
    torch = re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    index = re.search(r"--index-url (\S+)", readme)
    assert install
    assert torch
    assert index
    for words in (f"pip install --no-cache-dir {install[1]}", f"TORCH={torch[1]}\n", f"TORCH_INDEX={index[1]}\n"):
        assert words in text


def test_both_images_have_the_same_files_and_docker_sends_them() -> None:
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    assert sorted(copied("Dockerfile")) == sorted(copied("apptainer.def")) == sorted(sent)
    assert "launch/site.env" in ignored


def test_an_image_gets_every_package_and_what_its_build_reads() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        *PACKAGES,
        "ds_configs",
        "pyproject.toml",
        "constraints.txt",
        settings["readme"],
        *settings["license-files"],
    }
    assert names <= set(copied("Dockerfile"))
    assert all((ROOT / name).exists() for name in copied("Dockerfile"))
