"""Whoever is killed, and whenever: the next start ends with the bytes of a run that nobody disturbed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.disk.sizes import files_below
from data_prep.config import DataConfig
from data_prep.shards import Manifest, read_manifest
from data_prep.verify import verify

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"slice_bytes": 1024, "shard_rows": 16}
PROGRAM = """
import sys, time
from pathlib import Path
from cluster.disk.sizes import files_below
from data_prep.config import DataConfig
from data_prep.encode import encoded_slices
from data_prep.prepare import prepare
folder, held_at = Path(sys.argv[2]), int(sys.argv[3])
write_slice = encoded_slices.write_slice
def write_or_wait(*of_slice):
    while sum(path.suffix in (".arrow", ".json") for path, _ in files_below(folder)) >= held_at:
        time.sleep(0.01)
    write_slice(*of_slice)
encoded_slices.write_slice = write_or_wait
if __name__ == "__main__":
    prepare(DataConfig.model_validate_json(sys.argv[1]), folder, None, seed=1)
"""
NEVER = 10**9


def descendants(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def workers_of(pid: int) -> list[int]:
    """The processes of a preparation that encode: its own, or those of Ray."""
    return [child for child in descendants(pid) if "spawn_main" in command_of(child) or "ray::" in command_of(child)]


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@dataclass(frozen=True)
class Kill:
    """How a start is disturbed: when so many files have appeared, after a while, whoever is the victim.

    One that `is_held` writes no slice from then on, so the kill cannot come too late.
    """

    workers: int
    executor: str
    files: int
    wait_s: float
    victim: str
    is_held: bool = False


def random_kill(rng: random.Random, *, ray: bool) -> Kill:
    return Kill(
        workers=rng.choice((1, 2, 3, 5)),
        executor="ray" if ray else "local",
        files=rng.randrange(28),
        wait_s=rng.random() * 0.2,
        victim=rng.choice(("driver", "driver", "worker")),
    )


class Disturbed:
    """A preparation that is started and killed."""

    def __init__(self, folder: Path, config: Callable[..., DataConfig], corpus: Path) -> None:
        self.folder, self.config, self.corpus = folder, config, corpus
        self.program = folder.with_suffix(".py")
        self.program.write_text(PROGRAM)
        self.workers: set[int] = set()

    def start(self, held_at: int = NEVER, **settings: Any) -> subprocess.Popen[bytes]:
        config = self.config(self.corpus, **SMALL, **settings).model_dump_json()
        with self.folder.with_suffix(".log").open("ab") as log:
            command = [sys.executable, str(self.program), config, str(self.folder), str(held_at)]
            return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)

    def files(self) -> int:
        return sum(path.suffix in (".arrow", ".json") for path, _ in files_below(self.folder))

    def suffer(self, kill: Kill) -> bool:
        """Start, and kill as told; return whether anybody was killed."""
        held_at = kill.files if kill.is_held else NEVER
        process = self.start(held_at, workers=kill.workers, executor=kill.executor)
        while process.poll() is None and self.files() < kill.files:
            time.sleep(0.002)
        time.sleep(kill.wait_s)
        workers = workers_of(process.pid)
        self.workers |= set(workers)
        is_hit = process.poll() is None
        if is_hit and kill.victim == "worker" and workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(workers[0], signal.SIGKILL)
            process.wait()  # local workers: an error that says so; Ray: another worker does it
        process.kill()
        process.wait()
        return is_hit

    def end(self) -> str:
        """Let it end undisturbed, with no process left of the starts before; return its digest."""
        while any(map(is_alive, self.workers)):  # one that outlives its parent fails by the test's timeout
            time.sleep(0.05)
        process = self.start(workers=2)
        assert process.wait() == 0, self.folder.with_suffix(".log").read_text()
        assert not list(self.folder.rglob("*.partial")) and not (self.folder / "prepare.lock").exists()
        assert verify(self.folder) == []
        return read_manifest(self.folder).digest


@pytest.mark.slow
def test_a_run_that_was_killed_at_random_moments_ends_with_the_same_bytes(
    corpus: Path, prepared: Callable[..., Manifest], config_of: Callable[..., DataConfig], tmp_path: Path
) -> None:
    clean = prepared(corpus, into="clean", **SMALL)
    disturbed = Disturbed(tmp_path / "killed", config_of, corpus)
    kills = [
        Kill(workers=2, executor="local", files=1, wait_s=0.0, victim="driver", is_held=True),
        Kill(workers=3, executor="local", files=12, wait_s=0.0, victim="worker", is_held=True),
    ]

    assert all([disturbed.suffer(kill) for kill in kills])

    assert disturbed.workers, "no run was killed while it had workers"
    assert disturbed.end() == clean.digest


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_random_kill_schedules_end_with_one_digest(
    corpus: Path,
    prepared: Callable[..., Manifest],
    config_of: Callable[..., DataConfig],
    tmp_path: Path,
    soak_seed: int,
    soak_log: Callable[[str], None],
) -> None:
    """One to four starts each are killed: the driver or a worker, local or of Ray, at a random moment."""
    rng = random.Random(soak_seed)
    clean = prepared(corpus, into="clean", **SMALL)
    killed = 0
    for number in range(20):
        disturbed = Disturbed(tmp_path / f"killed-{number}", config_of, corpus)
        schedule = [random_kill(rng, ray=number % 5 == 0) for _ in range(rng.randint(1, 4))]

        hit = [disturbed.suffer(kill) for kill in schedule]

        assert disturbed.end() == clean.digest, schedule
        killed += sum(hit)
        soak_log(f"schedule {number + 1} of 20: {sum(hit)} of {len(hit)} starts killed, digest as it was")
    soak_log(f"20 schedules, {killed} starts killed, one digest: {clean.digest[:16]}")
