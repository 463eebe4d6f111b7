"""A folder that is named is the run: wherever it was copied or moved to, and from whichever folder it is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.paths import RunPaths
from launch.saved_config import load_run, save_config, saved_text

Command = Callable[..., Any]  # returns a Result: see conftest.py


def kept(project: Path, *overrides: str) -> Path:
    """Keep the project's configuration in its run's folder, and return that."""
    run = load_run(Path("run.yaml"), overrides)
    save_config(run)
    return project / run.paths.root


def test_a_copied_run_is_the_copy_and_its_shards_are_those_beside_it(project: Path) -> None:
    original = kept(project)
    run = load_run(Path(shutil.copytree(original, project / "copy")))
    assert run.paths == RunPaths(project / "copy")
    assert run.shards == project / "copy" / "shards"


def test_a_run_is_named_by_a_dot_from_inside_of_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kept(project))
    assert load_run(Path()).paths == RunPaths(Path())
    assert load_run(Path("config.yaml")).paths == RunPaths(Path())


def test_what_lies_outside_of_a_run_is_found_from_any_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kept(project)
    monkeypatch.chdir("/")
    run = load_run(folder)
    (source,) = run.data.sources
    assert (source.relative_to, source.path) == (project, "corpus/*.txt")
    assert run.model.path == str(project / "model")
    assert (run.train.deepspeed, run.data.chat_template) == (project / "zero.json", str(project / "chat.jinja"))


def test_what_lies_inside_of_a_run_goes_along_with_it(project: Path) -> None:
    (project / "runs" / "t").mkdir(parents=True)
    shutil.move("model", "runs/t/base")
    folder = kept(project, "model.path=runs/t/base", "data.folder=runs/t/rows")
    moved = Path(shutil.move(folder, project / "moved"))
    run = load_run(moved)
    assert (run.model.path, run.shards) == (str(moved / "base"), moved / "rows")


@pytest.mark.parametrize("model", ["owner/name", "gpt2"])
def test_an_id_of_the_hub_stays_one(project: Path, model: str) -> None:
    assert load_run(kept(project, f"model.path={model}")).model.path == model


def test_keeping_what_was_kept_changes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kept(project)
    before = (folder / "config.yaml").read_text()
    monkeypatch.chdir("/")
    assert saved_text(load_run(folder)) == before


def test_another_folder_than_the_one_that_was_named_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"-o folder: the run was named by its folder: .*runs/t; name a YAML"):
        load_run(kept(project), ["folder=elsewhere"])


def test_a_configuration_of_an_older_version_is_of_the_folder_it_lies_in(project: Path) -> None:
    folder = kept(project)
    (folder / "config.yaml").write_text((project / "run.yaml").read_text())
    assert load_run(folder).paths == RunPaths(folder)
    assert load_run(folder).model.path == "model"


def test_data_is_prepared_once_whichever_folder_the_run_is_named_from(
    project: Path, shardline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shardline("prepare", "run.yaml", "-o", "data.chat_template=null").code == 0
    manifest = (project / "runs/t/shards/manifest.json").read_bytes()
    copy = Path(shutil.copytree("runs/t", project / "copy"))
    monkeypatch.chdir("/")
    result = shardline("prepare", copy)
    assert "already prepared" in result.err and f"next: shardline train '{copy}'" in result.out
    assert (copy / "shards/manifest.json").read_bytes() == manifest
    shown = shardline("inspect", copy, "--step", "1", "--originals")
    assert shown.code == 0 and "A run that ends is worth" in shown.out


def test_a_preparation_that_fails_keeps_no_configuration(project: Path, shardline: Command) -> None:
    shardline("prepare", "run.yaml", "-o", "data.sources=[{path: nowhere}]").assert_refused("nowhere")
    assert not Path("runs/t/config.yaml").exists()
    shardline("status", "runs/t").assert_refused("holds no run yet", "name the YAML file instead")
    shardline("status").assert_refused("runs: no run in it has begun yet")


def test_preparing_does_not_change_the_configuration_that_training_has_accepted(
    project: Path, shardline: Command
) -> None:
    options = ["-o", "data.chat_template=null", "-o", "train.steps=5"]
    assert shardline("prepare", "run.yaml", *options).code == 0
    Path("runs/t/plan.json").write_text('{"total_steps": 5}')
    before = Path("runs/t/config.yaml").read_bytes()
    assert shardline("prepare", "run.yaml", "-o", "data.chat_template=null").code == 0
    assert Path("runs/t/config.yaml").read_bytes() == before


def test_what_to_type_next_works_as_it_is_printed(project: Path, shardline: Command) -> None:
    options = ["-o", "data.chat_template=null", "-o", "folder=the run"]
    assert "next: shardline train 'the run'\n" in shardline("prepare", "run.yaml", *options).out
    refused = shardline("export", "run.yaml", "-o", "folder=the run")
    refused.assert_refused("run `shardline train run.yaml -o 'folder=the run'` first")


def test_a_run_from_another_one_has_its_export_and_its_shards(project: Path, shardline: Command) -> None:
    assert shardline("prepare", "run.yaml", "-o", "data.chat_template=null").code == 0
    shutil.copytree("model", "runs/t/export")
    Path("new.yaml").write_text("{name: second, train: {steps: 3}}")
    run = load_run(Path("new.yaml"), start_from=Path("runs/t"))
    save_config(run)
    assert (run.model.path, run.shards, run.data.row_tokens) == ("runs/t/export", Path("runs/t/shards"), 64)
    again = load_run(project / "runs" / "second")
    assert (again.model.path, again.shards) == (f"{project}/runs/t/export", project / "runs/t/shards")
    assert (again.name, again.train.steps) == ("second", 3)


def test_a_run_from_one_without_an_export_is_told_to_export_first(project: Path, shardline: Command) -> None:
    folder = kept(project)
    Path("new.yaml").write_text("{name: second}")
    refused = shardline("train", "new.yaml", "--from", folder)
    refused.assert_refused(
        f"no exported model to start from (an adapter alone is not one); first: shardline export '{folder}'"
    )
    assert not Path("runs/second").exists()


def test_a_run_does_not_begin_from_itself(project: Path, shardline: Command) -> None:
    shutil.copytree("model", kept(project) / "export")
    refused = shardline("train", "run.yaml", "--from", "runs/t")
    refused.assert_refused("--from runs/t: the same run; give the new run another `name` or `folder`")
