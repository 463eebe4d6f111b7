"""`push`: what arrives on the Hub, what is refused before anything is sent, and what a cut leaves to do."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.model_files import weights_digest
from cluster.paths import RunPaths
from data_prep.shards import read_manifest
from launch.__main__ import main
from tests.conftest import lines
from tests.hub_stand_in import READ, WRITE, Fault, Hub, serving
from training.export.export_record import RECORD

Command = Callable[..., Any]  # returns a Result: see conftest.py
ROOT = Path(__file__).resolve().parents[2]
REPO = "zoe/tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, write_checkpoint: Callable[..., Path]) -> Path:
    """Return the folder of an exported run with metrics and an evaluation, and its YAML beside it."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("push")
    texts = [{"text": f"{number} {line}"} for number, line in enumerate(lines(30))]
    (folder / "lines.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    source = {"path": str(folder / "lines.jsonl"), "license": "cc-by-4.0"}
    values = {
        "name": "tiny",
        "folder": str(folder / "run"),
        "data": {"sources": [source], "row_tokens": 64, "cleaning": {"near_duplicates": "off"}},
        "model": {"path": str(tiny_model)},
        "export": {"shard_bytes": 30_000},
    }
    (folder / "run.yaml").write_text(json.dumps(values))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    assert main(["prepare", str(folder / "run.yaml")]) == 0
    weights = AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters()
    write_checkpoint(folder / "run" / "checkpoints", {name: weight.detach().float() for name, weight in weights})
    assert main(["export", str(folder / "run.yaml")]) == 0
    root.handlers[:] = handlers
    root.setLevel(level)
    write_history(RunPaths(folder / "run"))
    return folder


def write_history(paths: RunPaths) -> None:
    """Write the metrics of 5 steps and an evaluation of the export."""
    step = {"gradient_norm": 1.0, "learning_rate": 1e-3, "trained_tokens": 99, "tokens_per_s": 9.0, "step_s": 0.2}
    found = [{"step": n, "loss": 4 - n / 10, **step} for n in range(1, 6)]
    paths.metrics.write_text("".join(json.dumps(line) + "\n" for line in found))
    models = {name: {"path": f"/data/{name}", "loss": loss, "perplexity": 9.0} for name, loss in SCORES.items()}
    export = {"path": str(paths.export), "digest": weights_digest(paths.export)}
    half = {"killed_after_step": 2, "steps": 4, "ranks": 2, "other_ranks": 1, "tolerance": 1e-6}
    data = read_manifest(paths.shards).content_digest
    held = {"bit_identical": True, "other_ranks_within_tolerance": True, "data": data}
    paths.certificate.write_text(json.dumps({**half, **held, "other_ranks_largest_relative_loss_difference": 1e-8}))
    paths.evaluation.write_text(json.dumps({"rows": 7, "documents": 9, "models": models, "export": export}))


SCORES = {"base": 3.25, "tuned": 1.75}


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A stand-in of the Hub that the library talks to, in parts of 10 kB, with a token that may write."""
    from huggingface_hub import close_session, constants

    with serving(part_bytes=10_000) as hub:
        # what HF_ENDPOINT, HF_HUB_DISABLE_XET and HF_HOME set, which the library reads when it is imported
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", WRITE)
        yield hub
        close_session()  # a connection outlives its server, and a later one may get the same port


def exported(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "export").iterdir()}


def test_a_push_is_one_commit_of_the_exports_bits_and_a_second_one_sends_nothing(
    run: Path, hub: Hub, shardline: Command
) -> None:
    assert shardline("push", run, REPO).code == 0
    there = hub.model(REPO).files
    assert exported(run).items() <= there.items()
    assert there.keys() - exported(run).keys() == {".gitattributes", "README.md", "loss.svg"}
    assert hub.model(REPO).messages == ["initial commit", "Step 5 of tiny"]
    sent = len(hub.writes())
    again = shardline("push", run, REPO)
    assert (again.code, len(hub.writes())) == (0, sent)
    assert "skipped" in again.out


@pytest.mark.slow
def test_a_push_that_is_killed_twice_and_run_again_sends_no_file_twice(run: Path, hub: Hub) -> None:
    large = list((run / "export").glob("*.safetensors"))
    in_a_file = Fault("hold", r"PUT /lfs/\w+/3", after_bytes=5_000)
    before_the_commit = Fault("hold", "POST .*/commit/main")
    hub.faults = [in_a_file, before_the_commit]
    for fault in hub.faults:
        process = started(run, hub)
        assert fault.held.wait(timeout=110)
        while len(hub.arrived) < len(large) - (fault is in_a_file):  # the others arrive meanwhile
            time.sleep(0.01)
        process.kill()
        process.wait()
        fault.released.set()
        assert hub.model(REPO).messages == ["initial commit"]
    hub.faults = [Fault("cut", "POST .*/preupload/main")]  # which the library tries again by itself
    process = started(run, hub)
    assert process.wait(timeout=240) == 0
    assert exported(run).items() <= hub.model(REPO).files.items()
    assert len(hub.arrived) == len(set(hub.arrived)) == len(large) > 2
    assert hub.model(REPO).messages == ["initial commit", "Step 5 of tiny"]


def started(run: Path, hub: Hub) -> subprocess.Popen[bytes]:
    import os

    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "launch", "push", str(run), REPO], env=environment, cwd=ROOT)


def test_files_of_an_earlier_push_that_would_be_loaded_instead_go_in_the_same_commit(
    run: Path, hub: Hub, shardline: Command
) -> None:
    shardline("push", run, REPO)
    stale = {"model.safetensors": b"old", "adapter_config.json": b"{}", "adapter_model.safetensors": b"old"}
    hub.model(REPO).files |= {**stale, "notes.md": b"mine", "shardline.json": b"{}"}
    listed = shardline("push", run, REPO, "--dry-run").out
    assert all(f"remove {name}" in " ".join(line.split()[::3]) for name, line in lines_about(listed, stale).items())
    result = shardline("push", run, REPO)
    assert result.code == 0
    assert not stale.keys() & hub.model(REPO).files.keys()
    assert hub.model(REPO).files["notes.md"] == b"mine"
    assert len(hub.model(REPO).messages) == 3


def lines_about(text: str, names: Any) -> dict[str, str]:
    return {name: next(line for line in text.splitlines() if f" {name}  " in line) for name in names}


def test_a_public_repository_is_refused_where_a_private_one_was_asked_for(
    run: Path, hub: Hub, shardline: Command
) -> None:
    shardline("push", run, REPO)
    sent = len(hub.writes())
    shardline("push", run, REPO, "--private").assert_refused("--private", "exists and is public")
    assert len(hub.writes()) == sent
    assert shardline("push", run, "zoe/secret", "--private").code == 0
    assert hub.model("zoe/secret").private


def test_a_dry_run_writes_nothing_and_needs_no_hub(
    run: Path, hub: Hub, shardline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    listed = shardline("push", run, REPO, "--dry-run")
    assert (listed.code, hub.writes()) == (0, [])
    assert all(f"  {name}\n" in listed.out for name in exported(run))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN")
    alone = shardline("push", run, REPO, "--dry-run")
    assert alone.code == 0
    assert "cannot be reached" in alone.out


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        (None, REPO, "no token for the Hub"),
        ("hf_wrong", REPO, "does not accept the token (401)"),
        (READ, REPO, "the token may not write to zoe's repositories (403)"),
        (WRITE, "other/tiny", "the token may not write to other's repositories (403)"),
        (WRITE, "tiny", "add your account's name"),
        (WRITE, "zoe/a b", "is no name of a repository"),
    ],
)
def test_a_push_that_may_not_be_is_refused_in_one_line(
    run: Path, hub: Hub, shardline: Command, monkeypatch: pytest.MonkeyPatch, token: str | None, repo: str, said: str
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    shardline("push", run, repo).assert_refused(said)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(503, 1, "run the same command again"), (429, 1, "asks to wait"), (412, 2, "changed by somebody else")],
)
def test_a_hub_that_refuses_the_commit_is_told_by_whether_time_may_help(
    run: Path, hub: Hub, shardline: Command, status: int, code: int, said: str
) -> None:
    hub.faults = [Fault(status, "POST .*/commit/main")]
    result = shardline("push", run, REPO)
    assert (result.code, "Traceback" in result.err) == (code, False)
    assert said in result.err.splitlines()[-1]
    assert shardline("push", run, REPO).code == 0
    assert len(hub.arrived) == len(set(hub.arrived))


def test_an_export_that_is_no_longer_what_was_verified_is_refused(run: Path, hub: Hub, shardline: Command) -> None:
    (run / "export" / "pytorch_model.bin").write_text("other weights")
    shardline("push", run, REPO).assert_refused("was not written by the export")
    (run / "export" / "pytorch_model.bin").unlink()
    (run / "export" / "config.json").write_text("{}")
    shardline("push", run, REPO).assert_refused("changed since the export was verified")
    assert not hub.requests


def test_a_model_from_elsewhere_is_not_published_as_an_export(tiny_model: Path, hub: Hub, shardline: Command) -> None:
    shardline("push", tiny_model, REPO).assert_refused("has no shardline.json", f"hf upload {REPO}")
    assert not hub.requests


def test_a_file_that_the_hub_has_otherwise_than_it_was_sent_is_named(run: Path, hub: Hub, shardline: Command) -> None:
    record = json.loads((run / "export" / RECORD).read_text())["files"]
    name, facts = next((name, facts) for name, facts in record.items() if name.endswith(".safetensors"))
    hub.objects[facts["sha256"]] = b"something else"
    shardline("push", run, REPO).assert_refused(f"{name} differs there from the file here")


def test_the_card_says_what_the_run_says_and_nothing_of_this_machine(run: Path, hub: Hub, shardline: Command) -> None:
    assert shardline("push", run, REPO, "--license", "mit", "--base", "zoe/base").code == 0
    card = hub.model(REPO).files["README.md"].decode()
    assert "| `lines.jsonl` | cc-by-4.0 |" in card
    assert "| Loss | 3.2500 | 1.7500 |" in card
    assert "base_model: zoe/base" in card
    assert "| Steps | 5 of 5 |" in card
    assert "Killed after step 2 of 4 and resumed on 2 ranks, losses and gradient norms were the same to the bit" in card
    assert "/tmp/" not in card
    assert card == (run / "card" / "README.md").read_text()
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**evaluation, "export": {"digest": "of another"}}))
    assert "there is no evaluation of this export" in shardline("push", run, REPO).err
    assert "This export was not evaluated." in hub.model(REPO).files["README.md"].decode()


def test_metrics_of_another_training_are_not_put_beside_an_export(run: Path, hub: Hub, shardline: Command) -> None:
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    shardline("push", run, REPO).assert_refused("is of step 5 of another training")


@pytest.mark.parametrize("private", ["hf_" + "a" * 34, "password: hunter2hunter2", "see /home/zoe/data/rows.jsonl"])
def test_a_card_of_ones_own_with_something_private_is_not_uploaded(
    run: Path, hub: Hub, shardline: Command, tmp_path: Path, private: str
) -> None:
    (tmp_path / "mine.md").write_text(f"---\nlicense: mit\n---\n\n{private}\n")
    result = shardline("push", run, REPO, "--card", tmp_path / "mine.md")
    result.assert_refused("nothing was uploaded", "README.md, line 5")
    assert private not in result.err
    assert not hub.requests


def test_a_space_chats_with_the_model_that_was_pushed(run: Path, hub: Hub, shardline: Command) -> None:
    shardline("push", run, REPO, "--space").assert_refused("there is no model zoe/tiny yet")
    shardline("push", run, REPO)
    assert shardline("push", run, REPO, "--space").code == 0
    files = hub.repositories["space", REPO].files
    assert files.keys() == {".gitattributes", "app.py", "requirements.txt", "README.md"}
    compile(files["app.py"], "app.py", "exec")
    assert 'MODEL = "zoe/tiny"' in files["app.py"].decode()
    assert "sdk: gradio" in files["README.md"].decode()


def test_an_adapter_is_published_with_the_name_of_its_base_on_the_hub(
    tmp_path: Path, hub: Hub, shardline: Command
) -> None:
    from training.export.export_record import ExportRecord, files_of

    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/data/llama", "r": 4}))
    record = ExportRecord(step=3, checkpoint="c", files=files_of(folder))
    (folder / RECORD).write_text(json.dumps(record.__dict__))
    shardline("push", folder, REPO).assert_refused("a folder of this machine", "--base OWNER/NAME")
    assert shardline("push", folder, REPO, "--base", "meta/llama").code == 0
    there = json.loads(hub.model(REPO).files["adapter_config.json"])
    assert there == {"base_model_name_or_path": "meta/llama", "r": 4}
    assert "library_name: peft" in hub.model(REPO).files["README.md"].decode()


def test_a_licence_changes_no_shard(made: Path, shardline: Command) -> None:
    manifest = (made / "run" / "shards" / "manifest.json").read_bytes()
    values = json.loads((made / "run.yaml").read_text())
    values["data"]["sources"][0]["license"] = "mit"
    (made / "other.yaml").write_text(json.dumps(values))
    assert "preparing again" not in shardline("prepare", made / "other.yaml").err
    assert (made / "run" / "shards" / "manifest.json").read_bytes() == manifest
