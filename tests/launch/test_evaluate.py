"""`shardline evaluate --export`: what is scored beside a run's verdict is of that run, or it is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from launch.__main__ import main
from training.export.export_record import RECORD, read_record, write_derived_record

Command = Callable[..., Any]  # returns a Result: see conftest.py

QUICK = ("-o", "evaluate.rows=1", "-o", "evaluate.samples=0", "-o", "evaluate.probed_rows=0")


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    run_yaml: Callable[..., Path],
    write_checkpoint: Callable[..., Path],
) -> Path:
    """Return a folder with the runs `mine` and `other`, exported from other weights of the same step."""
    folder = tmp_path_factory.mktemp("runs")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for name, scale in (("mine", 1.0), ("other", 1.5)):
        path = run_yaml(folder / name)
        weights = {key: weight.detach() * scale for key, weight in model.named_parameters()}
        write_checkpoint(folder / name / "run" / "checkpoints", weights)
        (folder / name / "run" / "config.yaml").write_text(json.dumps({**json.loads(path.read_text()), "folder": "."}))
        assert main(["export", str(folder / name / "run")]) == 0
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the two runs' folders, named mine and other, to change."""
    for name in ("mine", "other"):
        shutil.copytree(made / name / "run", tmp_path / name)
    return tmp_path


def test_the_command_for_the_data_repeats_the_settings_of_the_data_and_no_others(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command
) -> None:
    path, own = run_yaml(tmp_path), ["-o", f"data.folder={tmp_path / 'new'}"]
    result = shardline("evaluate", path, "-o", "evaluate={rows: 2}", *own, "-o", "export.dtype=fp32")
    result.assert_refused(f"no prepared data here; run `shardline prepare {path} {' '.join(own)}` first")


def test_another_runs_export_is_refused_and_nothing_is_written(runs: Path, shardline: Command) -> None:
    mine, other = runs / "mine", runs / "other"
    result = shardline("evaluate", mine, "--export", other / "export", *QUICK)
    result.assert_refused(
        f"an export of step 5 of another run than {mine}: the checkpoint of step 5 here is another one",
        f"to score it: shardline evaluate {other}; for this run's export, remove --export",
    )
    assert not list(mine.glob("evaluation*"))


def test_another_runs_quantized_form_is_refused_wherever_it_lies(runs: Path, shardline: Command) -> None:
    source = read_record(runs / "other" / "export")
    form = runs / "elsewhere"
    shutil.copytree(runs / "other" / "export", form, ignore=shutil.ignore_patterns(RECORD))
    write_derived_record(form, source, {"kind": "int8"})
    result = shardline("evaluate", runs / "mine", "--export", form, *QUICK)
    result.assert_refused("the int8 form of an export of step 5 of another run", "name the run that it is of")


def test_an_export_of_a_step_that_the_run_never_had_is_refused_if_its_run_is_known(
    runs: Path, shardline: Command
) -> None:
    change_step(runs / "other" / "export", 7)
    command = ("evaluate", runs / "mine", "--export", runs / "other" / "export", *QUICK)
    shardline(*command).assert_refused(f"its checkpoint is that of {runs / 'other'}")
    (runs / "other" / "config.yaml").unlink()
    result = shardline(*command)
    assert result.code == 0
    assert "of step 7, whose checkpoint is no longer in" in result.err and "is not known" in result.err


def change_step(export: Path, step: int) -> None:
    record = json.loads((export / RECORD).read_text())
    (export / RECORD).write_text(json.dumps({**record, "step": step}))


@pytest.mark.parametrize("is_superseded", [False, True])
def test_a_form_of_an_earlier_checkpoint_of_the_run_is_scored_without_a_doubt(
    runs: Path, shardline: Command, is_superseded: bool
) -> None:
    mine = runs / "mine"
    shutil.copytree(mine / "export", mine / "export-best")
    shutil.rmtree(mine / "export")
    if is_superseded:  # by a rollback, and taken again
        (mine / "checkpoints" / "superseded").mkdir()
        (mine / "checkpoints" / "step-000005").rename(mine / "checkpoints" / "superseded" / "step-000005")
        shutil.copytree(runs / "other" / "checkpoints" / "step-000005", mine / "checkpoints" / "step-000005")
    result = shardline("evaluate", mine, "--export", mine / "export-best", *QUICK)
    assert result.code == 0
    assert "not known" not in result.err
    assert (mine / "evaluation-export-best.json").is_file()


def test_a_folder_that_does_not_tell_what_it_is_of_is_scored_with_a_warning(runs: Path, shardline: Command) -> None:
    mine = runs / "mine"
    shutil.copytree(mine / "export", runs / "plain", ignore=shutil.ignore_patterns(RECORD))
    result = shardline("evaluate", mine, "--export", runs / "plain", *QUICK)
    assert result.code == 0
    assert f"{runs / 'plain'} has no {RECORD}, so whether it is of this run" in result.err
    assert result.err.count(" W ") == 1, result.err
