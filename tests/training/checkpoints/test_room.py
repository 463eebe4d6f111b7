"""A disk without room for checkpoints is told before anything is computed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import CheckpointError
from training.checkpoints.room import SPARE_BYTES, require_room

BIG = 1 << 60


def test_what_is_needed_and_free_is_told_of_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert require_room(tmp_path / "run" / "checkpoints", 5_000_000).startswith("72.1 MB, of which 67.1 MB must stay")
    with pytest.raises(
        CheckpointError, match=rf"{tmp_path}: a checkpoint needs .* must stay free; the disk has .* GB free"
    ):
        require_room(tmp_path / "run", BIG)
    with pytest.raises(CheckpointError, match="3 checkpoints at a time need"):
        require_room(tmp_path, BIG // 2, 3)


@pytest.mark.slow
def test_a_run_that_cannot_be_saved_takes_no_step(short_run: Callable[..., Any]) -> None:
    run = short_run(steps=4)
    run.paths.checkpoints.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SPARE_BYTES // 2}", "tmpfs", run.paths.checkpoints], check=True
    )
    try:
        assert run.train(ranks=1) == 2
        assert run.steps() == []
    finally:
        subprocess.run(["umount", run.paths.checkpoints], check=True)
    assert run.train(ranks=1) == 0
