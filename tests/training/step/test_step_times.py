"""A trace of chosen steps costs the run nothing but time."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from training.step.step_times import Profile


def profile_in(folder: Path, told: list[int]) -> Profile:
    return Profile(first=2, last=3, folder=folder, rank=0, before_writing=told.append)


def test_only_the_named_steps_are_traced_and_told_before_they_are_written(tmp_path: Path) -> None:
    told: list[int] = []
    profile = profile_in(tmp_path / "profile", told)
    for step in (0, 1, 3):
        with profile.around(step):
            torch.ones(2).sum()
    assert [path.name for path in profile.folder.iterdir()] == ["step-000002-rank-00000.json.gz"]
    assert told == [1] and profile.traced == 1


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").write_text("no folder")
    profile = profile_in(tmp_path / "profile", [])
    with caplog.at_level(logging.WARNING), profile.around(1):
        taken = torch.ones(2).sum()
    assert taken == 2 and profile.traced == 0
    assert "this trace was not written" in caplog.text
