"""A disk without room for checkpoints is told before anything is computed."""

from __future__ import annotations

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
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_cannot_be_saved_takes_no_step_until_there_is_room(
    short_run: Callable[..., Any], small_disk: Callable[[int], Path]
) -> None:
    run = short_run(steps=4)
    run.paths.root.mkdir(parents=True, exist_ok=True)
    disk = small_disk(SPARE_BYTES + 3_000_000)  # for some checkpoints
    run.paths.checkpoints.symlink_to(disk)
    (disk / "other").write_bytes(bytes(2_990_000))
    assert run.train(ranks=2) == 2
    assert run.steps() == [] and "a checkpoint needs" in run.events("no-start")[-1]["reason"]
    left = disk / "step-000002.partial"  # by a kill while saving: it is removed first
    left.mkdir()
    (disk / "other").rename(left / "other")
    assert run.train(ranks=2) == 0
