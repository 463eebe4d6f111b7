"""`shardline submit` beside fake `sbatch`, `squeue` and `scancel`; tests/slurm/test_submit.py has a real queue."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.disk.lock_holder import Holder
from cluster.disk.run_lock import hold_run
from cluster.paths import RunPaths
from cluster.preflight.excluded_hosts import ExcludedHosts, write_excluded
from data_prep.shards import read_manifest
from launch.jobs.stages import stages_to_do
from launch.saved_config import load_run
from tests.launch.conftest import ROOT, Result
from training.plan import identity_of

FAKES = {
    "sbatch": """#!/usr/bin/env bash
[[ -z $REFUSED || $* != *$REFUSED* ]] || { echo "sbatch: error: Invalid account" >&2 && exit 1; }
printf '%s\\0' "$@" >"$FAKES/job-$((100 + $(ls "$FAKES" | grep -c ^job-)))"
echo "${ANSWER-$((99 + $(ls "$FAKES" | grep -c ^job-)));alpha}"
""",
    "squeue": """#!/usr/bin/env bash
[[ -z $SQUEUE_STATES ]] || exit 3
cat "$FAKES/queue"
exit "$(cat "$FAKES/squeue_code")"
""",
    "scancel": """#!/usr/bin/env bash
echo "$@" >"$FAKES/cancelled"
""",
}
CLUSTER = {"nodes": 2, "ranks_per_node": 2, "memory": "all", "options": ["--comment=two words"]}


@dataclass(frozen=True)
class Site:
    """A folder with a run whose data is prepared, and a Slurm that does nothing."""

    folder: Path
    fakes: Path
    shardline: Callable[..., Result]

    @property
    def yaml(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.folder / "run")

    def submit(self, *options: str) -> Result:
        return self.shardline("submit", self.yaml, *options)

    def change(self, **keys: Any) -> None:
        self.yaml.write_text(json.dumps({**json.loads(self.yaml.read_text()), **keys}))

    def jobs(self) -> list[list[str]]:
        """Return the arguments of each sbatch."""
        return [path.read_text().split("\0")[:-1] for path in sorted(self.fakes.glob("job-*"))]

    def queue(self, *lines: str, code: int = 0) -> None:
        """Set what squeue will answer."""
        (self.fakes / "queue").write_text("".join(f"{line}\n" for line in lines))
        (self.fakes / "squeue_code").write_text(str(code))


@pytest.fixture
def site(
    tmp_path: Path,
    run_yaml: Callable[..., Path],
    shardline: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> Site:
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    for name, text in FAKES.items():
        (fakes / name).write_text(text)
        (fakes / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{fakes}:/usr/bin:/bin")
    monkeypatch.setenv("FAKES", str(fakes))
    monkeypatch.setenv("REFUSED", "")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")  # would hide the jobs that wait
    found = Site(tmp_path / "my runs", fakes, shardline)
    run_yaml(found.folder)
    found.change(cluster=CLUSTER, name="a-run")
    found.queue()
    return found


def expected(site: Site, stage: str, nodes: str, tasks: str, after: str | None, script: list[str]) -> list[str]:
    waits = [] if after is None else [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    name, log = f"--job-name=a-run-{stage}", f"--output={site.paths.logs}/%x-%j.log"
    size = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--mem=0"]
    (snapshot,) = site.paths.submissions.glob("*.yaml")
    return ["--parsable", *waits, name, log, *size, "--comment=two words", *script, str(snapshot)]


def test_what_is_left_of_a_run_becomes_a_chain_that_a_failure_ends(site: Site) -> None:
    result = site.submit()
    assert result.code == 0, result.err
    launch = ROOT / "launch"
    assert site.jobs() == [
        expected(site, "train", "2", "2", None, [f"{launch}/train.sh"]),
        expected(site, "export", "1", "1", "100", [f"{launch}/run.sh", "export"]),
        expected(site, "evaluate", "1", "1", "101", [f"{launch}/run.sh", "evaluate"]),
    ]
    assert result.out.splitlines()[:3] == [
        "train     job 100, no checkpoint yet",
        "export    job 101, after job 100",
        "evaluate  job 102, after job 101",
    ]
    run = shlex.quote(str(site.yaml))
    assert f"shardline status {run} --watch" in result.out
    assert "squeue --jobs=100,101,102" in result.out
    assert "scancel 100 101 102" in result.out


def test_a_training_is_submitted_without_the_hosts_that_the_run_has_excluded(site: Site) -> None:
    site.paths.root.mkdir(parents=True)
    bad = {"node2": "two failures", "node3": "no facts"}
    write_excluded(site.paths, ExcludedHosts().excluding(bad, 3, silent=["node3"]))
    forgive = f"shardline doctor {shlex.quote(str(site.paths.root))} --forgive HOST"
    assert f"{forgive}): node2: two failures" in site.submit("--dry-run").err
    result = site.submit()
    assert (result.code, forgive in result.err, "node3" in result.err) == (0, True, False)
    assert ["--exclude=node2" in job for job in site.jobs()] == [True, False, False]


def test_what_a_key_does_on_one_host_is_told_by_check_and_not_where_the_jobs_have_several(site: Site) -> None:
    hpz = ("-o", "train.hpz=true")
    assert "train.hpz keeps no copy of the weights on one host" in site.shardline("check", site.yaml, *hpz).out
    submitted = site.submit("--dry-run", *hpz)
    assert submitted.code == 0 and "hpz" not in submitted.err


def test_a_refusal_of_a_training_without_excluded_hosts_says_how_to_use_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.paths.root.mkdir(parents=True)
    write_excluded(site.paths, ExcludedHosts().excluding({"node2": "two failures"}, 3))
    monkeypatch.setenv("REFUSED", "--exclude=node2")
    site.submit().assert_refused("or use a host again that the run has excluded (node2): shardline doctor", "HOST")


def test_the_jobs_use_the_configuration_as_it_was_submitted_and_code_and_packages_are_recorded(site: Site) -> None:
    assert site.submit("-o", "train.steps=5").code == 0
    site.change(train={"steps": 6})
    (snapshot,) = site.paths.submissions.glob("*.yaml")
    run = load_run(snapshot)
    assert (run.train.steps, run.paths.root) == (5, site.paths.root)
    record = json.loads((site.paths.submissions / "100.json").read_text())
    assert [(job["stage"], job["job"], job["after"]) for job in record["jobs"]] == [
        ("train", "100", None),
        ("export", "101", "100"),
        ("evaluate", "102", "101"),
    ]
    assert record["jobs"][0]["command"] == ["sbatch", *site.jobs()[0]]
    assert record["configuration"] == snapshot.name
    assert {"shardline", "commit", "dirty", "torch"} <= record["versions"].keys()
    assert "pydantic" in record["packages"]


def test_a_dry_run_prints_the_commands_of_the_submission_and_writes_nothing(site: Site) -> None:
    dry = site.submit("--dry-run")
    assert (dry.code, site.jobs(), site.paths.root.exists()) == (0, [], False)
    site.paths.logs.mkdir(parents=True)
    subprocess.run(["bash", "-euc", dry.out], check=True)  # the fakes are on PATH
    from_dry_run = site.jobs()
    for path in site.fakes.glob("job-*"):
        path.unlink()
    assert site.submit().code == 0
    assert from_dry_run == site.jobs()


def test_a_run_is_not_submitted_while_a_job_of_it_waits_or_runs(site: Site) -> None:
    assert site.submit().code == 0
    site.queue("102|RUNNING|None|somebody-s", "101|PENDING|Dependency|a-run-export", "100|RUNNING|None|a-run-train")
    refused = site.submit()
    refused.assert_refused(
        "job 100 (a-run-train, RUNNING), job 101 (a-run-export, PENDING); wait for it", "scancel 100 101"
    )
    assert len(site.jobs()) == 3
    site.queue()
    assert site.submit("--only", "train").code == 0


def test_a_job_that_slurm_accepts_but_will_not_start_is_told(site: Site) -> None:
    site.queue("100|PENDING|PartitionTimeLimit|a-run-train")
    result = site.submit("--only", "train")
    assert "job 100 (a-run-train, PENDING) will not start: PartitionTimeLimit" in result.err
    assert "take all out (scancel 100), correct `cluster`, and submit again" in result.err
    assert result.code == 2


def test_a_queue_that_does_not_answer_is_not_taken_for_an_empty_one(site: Site) -> None:
    assert site.submit().code == 0
    site.queue(code=1)
    assert site.submit("--dry-run").code == 0
    site.submit().assert_refused("squeue did not say whether job 100, job 101, job 102 of this run is still there")
    assert len(site.jobs()) == 3


def test_a_run_is_not_submitted_while_another_process_works_in_its_folder(site: Site) -> None:
    with hold_run(site.paths, Holder.here("shardline train")):
        site.submit().assert_refused("`shardline train` is already running here")
    assert site.jobs() == []


def test_a_job_that_slurm_refuses_takes_the_earlier_ones_out_of_the_queue(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSED", "run.sh evaluate")
    result = site.submit()
    result.assert_refused("sbatch refused the job of evaluate (exit code 1)", "Invalid account")
    assert (site.fakes / "cancelled").read_text() == "100 101\n"


def test_an_answer_without_a_job_id_is_told_and_a_greeting_before_it_is_skipped(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSWER", "Welcome to this cluster\n7")
    assert site.submit("--only", "train").out.startswith("train  job 7, asked for")
    monkeypatch.setenv("ANSWER", "Submitted batch job 7")
    site.submit().assert_refused("sbatch answered 'Submitted batch job 7' where a job's id was expected")


def test_without_slurm_the_commands_can_still_be_printed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(site.folder))
    assert site.submit("--dry-run").code == 0
    site.submit().assert_refused("sbatch is not here", "--dry-run")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"cluster": None}, "cluster: missing"),
        ({"cluster": {"nodes": 2, "nodez": 3}}, "cluster.nodez: unknown key; did you mean 'nodes'?"),
        ({"model": {"path": "/no/such/model"}}, "/no/such/model"),
        ({"train": {"deepspeed": "/no/such/template.json"}}, "/no/such/template.json"),
    ],
)
def test_what_is_wrong_in_the_yaml_never_enters_the_queue(site: Site, keys: dict[str, Any], words: str) -> None:
    site.change(**keys)
    site.submit().assert_refused(words)
    assert (site.jobs(), site.paths.root.exists()) == ([], False)


def test_stages_that_are_done_are_left_out(site: Site, write_checkpoint: Callable[..., Path]) -> None:
    run = load_run(site.yaml)
    assert list(stages_to_do(run)) == ["train", "export", "evaluate"]
    identity = identity_of(run.train, read_manifest(run.shards).content_digest, run.seed)
    write_checkpoint(run.paths.checkpoints, {}, step=4, **identity)
    assert stages_to_do(run)["train"] == "the newest checkpoint is of step 4 of 8"
    write_checkpoint(run.paths.checkpoints, {}, step=8, **identity)
    site.submit("-o", "data.row_tokens=32").assert_refused("has a checkpoint of step 8", "use --from train")
    assert list(stages_to_do(run)) == ["export", "evaluate"]
    run.paths.export.mkdir()
    (run.paths.export / "config.json").write_text("{}")
    record = run.paths.export / "shardline.json"
    record.write_text(json.dumps({"version": 1, "step": 4, "checkpoint": "", "files": {}}))
    assert stages_to_do(run)["export"] == "the export is of step 4, the newest checkpoint of 8"
    record.write_text(json.dumps({"version": 1, "step": 8, "checkpoint": "", "files": {}}))
    assert stages_to_do(run) == {"evaluate": "no evaluation yet"}
    run.paths.evaluation.write_text("{}")
    assert stages_to_do(run) == {}
    assert site.submit().out.startswith("nothing to do: prepare, train, export, evaluate are done")
    assert list(stages_to_do(run, start="export")) == ["export", "evaluate"]
    assert list(stages_to_do(run, only="export")) == ["export"]
    assert site.submit("-o", "data.row_tokens=32", "--from", "train").code == 2


def test_a_stage_is_not_submitted_alone_without_what_it_starts_from(site: Site) -> None:
    site.submit("--only", "export").assert_refused("has no checkpoint; use --from train")
    site.submit("--from", "evaluate").assert_refused("has no exported model; use --from export")
    site.submit("-o", f"data.folder={site.folder}/none", "--only", "train").assert_refused("use --from prepare")
