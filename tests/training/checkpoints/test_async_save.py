"""Saves that training does not wait for, on disks that are slow, full or broken, by ranks that die at any moment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training.rank_programs.power import Disk
from training.checkpoints.layout import DamagedError, candidate_folders, step_of, verify

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).resolve().parents[3]
LIVES = ROOT / "tests" / "training" / "rank_programs" / "lives.py"


@dataclass(frozen=True)
class Told:
    """What the ranks of a scenario wrote and said."""

    folder: Path
    code: int
    log: str

    def notes(self) -> list[dict[str, Any]]:
        path = self.folder / "notes.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def note(self, name: str) -> dict[str, Any]:
        (found,) = [note for note in self.notes() if note["name"] == name]
        return found


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that makes a disk fail."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = ROOT / "tests" / "faults" / "faults.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def tell(faults: Path) -> Callable[..., Told]:
    """Run a scenario of lives.py in a folder."""

    def run(folder: Path, scenario: str, *numbers: int) -> Told:
        command = [sys.executable, str(LIVES), scenario, str(folder), *map(str, numbers)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(faults)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return Told(folder, done.returncode, done.stderr)

    return run


@pytest.fixture(scope="module")
def faulty(tell: Callable[..., Told], tmp_path_factory: pytest.TempPathFactory) -> Told:
    told = tell(tmp_path_factory.mktemp("faulty"), "faults")
    assert told.code == 0, told.log
    return told


FAULTS = {  # and what is said of each
    "a full disk": r"cannot write .*master-00001-of-00002.safetensors: No space left on device",
    "a disk that fills up": "No space left on device",
    "an input or output error when it should be durable": r"exp_avg-00001-of-00002.safetensors: Input/output error",
    "a commit file that cannot be written": "cannot be committed: No space left on device",
    "a folder that cannot be made": "Read-only file system",
    "a folder whose names cannot be made durable": "cannot be committed: Input/output error",
    "a name that cannot be given": "cannot be committed: Input/output error",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow
def test_a_save_that_fails_is_told_and_leaves_nothing_and_training_continues_to_the_next(
    faulty: Told, fault: str
) -> None:
    notes = faulty.notes()
    place = next(number for number, note in enumerate(notes) if note["name"] == fault)
    before, during, after = notes[place - 1 : place + 2]
    assert during["saved"] == before["saved"] and during["names"] == before["names"]
    assert during["at"] > before["at"]
    assert after["saved"] > during["saved"] and f"step-{after['saved']:06d}" in after["names"]


@pytest.mark.parametrize("said", sorted(set(FAULTS.values())))
@pytest.mark.slow
def test_a_save_that_fails_says_what_the_disk_said(faulty: Told, said: str) -> None:
    assert re.search(said, faulty.log)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_removed_has_lost_its_name_all_the_same(faulty: Told) -> None:
    names = faulty.note("a checkpoint that cannot be removed")["names"]
    assert [name for name in names if name.endswith(".removed.partial")]
    whole = [name for name in names if not name.endswith(".partial")]
    assert (
        len([name for name in whole if int(name.removeprefix("step-")) % 12]) <= 2
    )  # the last two; each twelfth stays


@pytest.mark.slow
def test_training_continues_while_nothing_moves_on_the_disk_and_the_save_that_was_due_follows(
    tell: Callable[..., Told], tmp_path: Path
) -> None:
    told = tell(tmp_path, "slow")
    assert told.code == 0, told.log
    held, moving, ended = told.notes()
    assert (held["at"], held["saved"]) == (5, None) and "step-000001" not in held["names"]
    assert "step 3 was not saved: step 1 is still being written" in told.log
    assert moving["saved"] > 5 and {"step-000001", f"step-{moving['saved']:06d}"} <= set(moving["names"])
    assert ended["saved"] == ended["at"]


@pytest.mark.slow
def test_the_third_save_in_a_row_that_fails_ends_the_run_on_all_ranks(
    tell: Callable[..., Told], tmp_path: Path
) -> None:
    told = tell(tmp_path, "broken")
    assert told.code == 2
    assert [note["name"] for note in told.notes()] == ["resumed", "resumed"]
    assert told.log.count("3 saves in a row have failed; make room or fix the disk") == 2  # by both ranks


@pytest.mark.slow
def test_a_run_does_not_end_well_without_its_last_checkpoint(tell: Callable[..., Told], tmp_path: Path) -> None:
    told = tell(tmp_path, "broken_at_the_end")
    assert told.code == 2
    assert "the run ends without a checkpoint of step" in told.log
    assert "it resumes from step 1" in told.log


@pytest.mark.slow
def test_ranks_that_do_not_see_the_same_checkpoint_all_stop_and_say_which_sees_another(
    tell: Callable[..., Told], tmp_path: Path
) -> None:
    told = tell(tmp_path, "split")
    assert told.code == 2
    assert told.log.count("as rank 1 on ") == told.log.count("all ranks must see the same shared folder") == 2


@pytest.mark.slow
def test_a_checkpoint_that_has_no_room_is_not_begun(
    tell: Callable[..., Told], small_disk: Callable[[int], Path]
) -> None:
    told = tell(small_disk(40_000_000), "once")
    assert told.code == 0, told.log
    assert told.note("saved")["saved"] is None
    assert told.note("saved")["names"] == []
    assert "a checkpoint needs 67.1 MB, of which 67.1 MB must stay free; the disk has " in told.log


@pytest.mark.slow
def test_ranks_that_die_at_any_moment_leave_a_run_that_ends_as_if_nothing_had_happened(
    tell: Callable[..., Told], tmp_path: Path
) -> None:
    deaths = 60
    told = tell(tmp_path, "kills", deaths, 7)
    assert told.code == 0, told.log
    assert told.notes()[-1]["died"] == deaths


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_thousand_deaths_of_ranks_leave_whole_checkpoints(
    tell: Callable[..., Told], tmp_path: Path, soak_seed: int, soak_log: Callable[[str], None]
) -> None:
    deaths = 1000
    told = tell(tmp_path, "kills", deaths, soak_seed)
    assert told.code == 0, told.log
    soak_log(f"{told.notes()[-1]['died']} deaths in {told.notes()[-1]['lives']} lives")


@pytest.mark.slow
def test_a_power_cut_after_any_operation_leaves_the_last_durable_checkpoint_and_nothing_that_is_misread(
    tell: Callable[..., Told], tmp_path: Path
) -> None:
    told = tell(tmp_path, "recorded")
    assert told.code == 0, told.log
    disk, durable, cuts = Disk(tmp_path / "checkpoints"), 0, 0
    for line in (tmp_path / "record").read_text().splitlines():
        operation, path, more = line.split(" ")
        if operation == "durable":
            durable = int(path)
        elif path.startswith(f"{disk.root}"):
            disk.apply(operation, Path(path), more)
        for names_last in (False, True):
            left = tmp_path / "left" / str(cuts)
            disk.leave(left, tmp_path / "copies", names_last=names_last)
            assert newest_good(left) >= durable, line
            cuts += 1
    assert durable == 5 and cuts > 100


def newest_good(checkpoints: Path) -> int:
    """Return the step of the newest checkpoint that is whole to the last byte, 0 without one."""
    for folder in reversed(candidate_folders(checkpoints)):
        try:
            verify(folder)
        except DamagedError:
            continue
        return step_of(folder)
    return 0
