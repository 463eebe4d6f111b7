"""The commands in messages work as they are printed."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

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
