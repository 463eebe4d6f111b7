"""The commands in messages work as they are printed."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from cluster.errors import EXIT_STOPPED
from launch.config import RunConfig
from launch.runs.train import tell_next
from launch.wording import with_run_named

OVERRIDES = ["data.row_tokens=64", "train.steps=8", "evaluate.rows=2", "export.dtype=fp32", "seed=1", "trackers=[]"]


@pytest.mark.parametrize(
    ("verb", "kept"),
    [
        ("prepare", ["data.row_tokens=64", "seed=1"]),
        ("train", ["data.row_tokens=64", "train.steps=8", "seed=1", "'trackers=[]'"]),
        ("export", ["data.row_tokens=64", "train.steps=8", "export.dtype=fp32", "seed=1", "'trackers=[]'"]),
        ("evaluate", ["data.row_tokens=64", "train.steps=8", "evaluate.rows=2", "seed=1", "'trackers=[]'"]),
        ("submit", [*OVERRIDES[:-1], "'trackers=[]'"]),
    ],
)
def test_a_suggested_command_repeats_those_of_the_typed_settings_that_its_verb_needs(
    verb: str, kept: list[str]
) -> None:
    options = Namespace(run=Path("my run.yaml"), overrides=OVERRIDES)
    text = with_run_named(f"run `shardline {verb} RUN.yaml` first", options)
    assert text == f"run `shardline {verb} 'my run.yaml' {' '.join(f'-o {one}' for one in kept)}` first"


@pytest.mark.parametrize(
    ("ranks", "restart", "typed"), [(None, False, ""), (2, False, " --ranks 2"), (2, True, " --ranks 2 --restart")]
)
def test_the_command_that_resumes_a_run_has_the_options_of_the_one_that_was_typed(
    ranks: int | None, restart: bool, typed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Namespace(run=Path("a.yaml"), overrides=[], ranks=ranks, restart=restart)
    run = RunConfig.model_construct(name="a", folder=tmp_path)
    tell_next(run, options, EXIT_STOPPED)
    assert capsys.readouterr().out == f"to start again: shardline train a.yaml{typed}\n"
