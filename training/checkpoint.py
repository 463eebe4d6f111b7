"""Save and restore a run over all its ranks. What lies on disk is described in checkpoint_files.

Training waits for a copy of its state in the host's memory; a thread writes the copy while the steps go on, and talks
to the other ranks' threads over a gloo group of its own. Never two saves at once: with a disk that is slower than the
saves come, saves come later, and steps do not.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from cluster.environment import host_name
from cluster.errors import CheckpointError
from cluster.files import PARTIAL, fsync_path
from training import checkpoint_files
from training.checkpoint_files import Commit, DamagedError
from training.progress import Progress
from training.rank_files import FileFacts, Stretch, rank_file_name, write_rank_file
from training.staging import Staging, streamed, stretches_of
from training.weights import Weights

if TYPE_CHECKING:
    from training.engine import Engine

log = logging.getLogger(__name__)

WRITING_TIMEOUT = timedelta(
    hours=6
)  # one rank's disk may be that much slower than another's; hangs are found elsewhere
MAX_FAILED_SAVES = 3
SPARE_BYTES = 64 << 20  # what must stay free beside a checkpoint


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """Which checkpoints stay, and how many bytes of a host's memory the copies of its ranks may take."""

    keep_last: int
    keep_every_steps: int | None
    copy_bytes: int


class Checkpoints:
    """The checkpoints of one run. Every method is collective."""

    def __init__(
        self, folder: Path, identity: dict[str, Any], policy: SavePolicy, first_weights: Callable[[], Weights]
    ) -> None:
        self.folder, self.identity, self.policy = folder, identity, policy
        self.first_weights = first_weights
        self.group = dist.new_group(backend="gloo", timeout=WRITING_TIMEOUT)
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.staging: Staging | None = None
        self.pending: Future[list[str]] | None = None
        self.pending_step = 0
        self.saved_step: int | None = None  # of the newest committed checkpoint
        self.failures = 0
        self.owed = False

    # ---- restoring

    def restore(self, engine: Engine, before: int | None = None) -> Progress:
        """Fill the engine from the newest good checkpoint, or with the run's first weights; return how far the run is.

        The first rank chooses and all ranks check that they see the same; a damaged checkpoint is set aside and the
        next older one used. Raises CheckpointError if there were checkpoints and none is good. With `before`, the run
        goes back: checkpoints of more steps than that are left behind.
        """
        if self.pending is not None:
            self.conclude()
        if engine.world.is_first:
            checkpoint_files.sweep(self.folder)
            if before is not None:
                checkpoint_files.leave_behind(self.folder, before)
        self.saved_step = None
        while True:
            chosen = self.choose_together(engine)
            if chosen is None:
                engine.start_from(self.first_weights())
                return Progress()
            folder, commit = chosen
            started = time.monotonic()
            damaged = self.gathered(self.check(folder, commit, engine))
            if not damaged:
                break
            if engine.world.is_first:
                put_aside(folder, "\n  ".join(damaged))
        self.load(engine, folder, commit)
        log.info("loaded %s, written by %d ranks, in %.1f s", folder, commit.world_size, time.monotonic() - started)
        self.saved_step = commit.step
        return commit.resumed()

    def choose_together(self, engine: Engine) -> tuple[Path, Commit] | None:
        """Return the first rank's choice on all ranks; an error there is raised by all."""
        chosen: list[Any] = [self.choose() if engine.world.is_first else None]
        dist.broadcast_object_list(chosen, src=0, group=self.group)
        if isinstance(chosen[0], CheckpointError):
            raise chosen[0]
        found: tuple[Path, Commit] | None = chosen[0]
        return found

    def choose(self) -> tuple[Path, Commit] | CheckpointError | None:
        """Return the newest checkpoint of this run with all its files, None for a run without one, or an error.

        Not collective. A damaged one is set aside.
        """
        for folder in reversed(checkpoint_files.candidate_folders(self.folder)):
            try:
                commit = checkpoint_files.read_commit(folder)
                checkpoint_files.check_identity(commit.identity, self.identity, folder)
            except DamagedError as error:
                put_aside(folder, str(error))
            except CheckpointError as error:
                return error
            else:
                return folder, commit
        if checkpoint_files.set_aside_folders(self.folder):
            return CheckpointError(
                f"{self.folder}: no good checkpoint is left; the damaged ones are in"
                f" {self.folder / checkpoint_files.SET_ASIDE}, each with its reason. Put a whole one back, or remove"
                " that folder to begin again at step 0"
            )
        return None

    def check(self, folder: Path, commit: Commit, engine: Engine) -> list[str]:
        """Return what is wrong with the files that are dealt to this rank. Collective.

        Raises CheckpointError on all ranks if one of them sees another checkpoint in this place than the first rank.
        """
        seen = []
        try:
            if checkpoint_files.read_commit(folder).digest != commit.digest:
                seen.append("it holds another checkpoint than for the first rank")
        except CheckpointError as error:
            seen.append(str(error))
        where = f"rank {engine.world.rank} on {host_name()}"
        others = self.gathered([f"{folder}, as {where} sees it: {problem}" for problem in seen])
        if others:
            raise CheckpointError("\n  ".join([*others, "all ranks must see the same shared folder; mend the mount"]))
        shapes = {slot.name: list(slot.shape) for slot in engine.layout()}
        if shapes != commit.shapes:
            other = checkpoint_files.first_difference(shapes, commit.shapes)
            raise CheckpointError(f"{folder}: holds another model; first difference: {other}")
        dealt = list(commit.files)[engine.world.rank :: engine.world.size]
        return checkpoint_files.damaged_files(folder, commit, dealt)

    def load(self, engine: Engine, folder: Path, commit: Commit) -> None:
        """Fill this rank's parts, each from only the bytes it needs."""
        failed = []
        try:
            with checkpoint_files.stored_state(folder, commit) as state:
                for part in engine.parts(writing=True):
                    for kind, tensor in part.values.items():
                        state.read(f"{kind}.{part.name}", part.start, tensor)
        except (CheckpointError, OSError) as error:
            failed.append(f"rank {engine.world.rank} on {host_name()} cannot load {folder}: {error}")
        failed = self.gathered(failed)
        if failed:
            raise CheckpointError("\n  ".join(failed))
        engine.continue_after(commit.resumed().updates)

    def gathered(self, mine: list[str]) -> list[str]:
        """Return what all ranks say, in their order."""
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine, group=self.group)
        return [text for texts in everyone for text in texts]

    # ---- saving

    def offer(self, engine: Engine, progress: Progress, *, due: bool) -> None:
        """Save if a checkpoint is due, or was due while the one before was still being written."""
        if self.pending is not None and engine.all_reduce_max(0 if self.pending.done() else 1) == 0:
            self.conclude()
        if self.pending is None and (due or self.owed):
            self.begin(engine, progress)
        elif due:
            self.owed = True
            self.tell(
                logging.WARNING,
                "step %d was not saved: step %d is still being written",
                progress.steps_done,
                self.pending_step,
            )

    def complete(self, engine: Engine, progress: Progress) -> None:
        """Return when the checkpoint of this progress is durable. Raises CheckpointError if it cannot be written."""
        if self.pending is not None:
            self.conclude()
        if self.saved_step != progress.steps_done:
            self.begin(engine, progress)
            self.conclude()
        if self.saved_step != progress.steps_done:
            raise CheckpointError(
                f"{self.folder}: the run ends without a checkpoint of step {progress.steps_done}; make room or mend the"
                f" disk, then start it again: it goes on from step {self.saved_step or 0}"
            )

    def begin(self, engine: Engine, progress: Progress) -> None:
        """Copy the state and have it written; without memory for the copy, write while training waits."""
        started = time.monotonic()
        if self.staging is None:
            self.staging = Staging.within(self.policy.copy_bytes // engine.world.local_size, engine)
        self.owed, self.pending_step = False, progress.steps_done
        commit = Commit(
            step=progress.steps_done,
            progress=progress.as_record(),
            world_size=engine.world.size,
            identity=self.identity,
            shapes={slot.name: list(slot.shape) for slot in engine.layout()},
            files={},
        )
        if self.staging is None:
            self.pending = Future()
            data = streamed(engine)
            self.pending.set_result(self.write(commit, stretches_of(engine), data, engine.world.rank, started))
            return
        stretches = self.staging.copy(engine)
        log.info("step %d: copied for saving, training waited %.2f s", commit.step, time.monotonic() - started)
        copied = iter([self.staging.buffer])
        self.pending = self.thread.submit(self.write, commit, stretches, copied, engine.world.rank, started)

    def conclude(self) -> None:
        """Wait for the save that is under way. Raises CheckpointError at the third failure in a row."""
        assert self.pending is not None
        problems = self.pending.result()
        self.pending = None
        if not problems:
            self.failures, self.saved_step = 0, self.pending_step
            return
        self.failures += 1
        what = "\n  ".join([f"step {self.pending_step} was not saved:", *problems])
        if self.failures == MAX_FAILED_SAVES:
            raise CheckpointError(
                f"{what}\n  {MAX_FAILED_SAVES} saves in a row have failed; make room or mend the disk"
            )
        self.tell(
            logging.ERROR, "%s\n  training goes on; the newest checkpoint is of step %s", what, self.saved_step or 0
        )

    def tell(self, level: int, message: str, *values: Any) -> None:
        """Log, once, what all ranks know."""
        if dist.get_rank() == 0:
            log.log(level, message, *values)

    def write(
        self, commit: Commit, stretches: list[Stretch], data: Iterator[torch.Tensor], rank: int, started: float
    ) -> list[str]:
        """Write this rank's file and, on the first rank, commit; return what went wrong, the same on all ranks."""
        final = checkpoint_files.folder_of(self.folder, commit.step)
        partial = final.with_name(final.name + PARTIAL)
        name = rank_file_name(rank, commit.world_size)
        facts: FileFacts | None = None
        problem = self.room_problem(stretches, commit.world_size) if rank == 0 else None
        try:
            if not self.gathered([problem] if problem else []):
                partial.mkdir(parents=True, exist_ok=True)
                facts = write_rank_file(partial / name, stretches, data)
        except OSError as error:
            problem = f"rank {rank} on {host_name()} cannot write {partial / name}: {error.strerror or error}"
        everyone: list[Any] = [None] * commit.world_size
        dist.all_gather_object(everyone, (name, facts, problem), group=self.group)
        problems = [text for _, _, text in everyone if text]
        verdict: list[Any] = [problems]
        if rank == 0:
            files = checkpoint_files.files_record({n: f for n, f, _ in everyone if f})
            verdict = [problems or self.commit(partial, final, replace(commit, files=files))]
            if verdict[0]:
                shutil.rmtree(partial, ignore_errors=True)  # swept at the next start if not now
            else:
                log.info("saved %s, %.3f GB in %.1f s", final, sum_bytes(files) / 1e9, time.monotonic() - started)
                self.retire()
        dist.broadcast_object_list(verdict, src=0, group=self.group)
        told: list[str] = verdict[0]
        return told

    def room_problem(self, stretches: list[Stretch], world_size: int) -> str | None:
        """Return what is wrong if the disk has no room for a checkpoint."""
        needed = world_size * max(1, sum(part.numel for part in stretches)) * 4 + SPARE_BYTES
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                fsync_path(self.folder.parent)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            return f"{self.folder}: {error.strerror}"
        if free < needed:
            return f"{self.folder}: {free / 1e9:.3f} GB free, a checkpoint needs {needed / 1e9:.3f} GB"
        return None

    def commit(self, partial: Path, final: Path, commit: Commit) -> list[str]:
        """Make the written files a checkpoint; return what went wrong. On the first rank."""
        try:
            checkpoint_files.commit_folder(partial, final, commit)
        except OSError as error:
            return [f"{final}: cannot be committed: {error.strerror or error}"]
        return []

    def retire(self) -> None:
        """Remove the checkpoints that need not stay. On the first rank."""
        committed = checkpoint_files.committed_folders(self.folder)
        for folder in checkpoint_files.expired(committed, self.policy.keep_last, self.policy.keep_every_steps):
            try:
                checkpoint_files.remove(folder)
            except OSError as error:
                log.warning("%s: could not be removed (%s); it stays", folder, error.strerror)


def put_aside(folder: Path, reason: str) -> None:
    """Set a damaged checkpoint aside and say so."""
    aside = checkpoint_files.set_aside(folder, reason)
    log.warning("%s\n  this checkpoint is damaged: moved to %s; the next older one is used", reason, aside)


def sum_bytes(files: dict[str, dict[str, Any]]) -> int:
    return sum(int(facts["bytes"]) for facts in files.values())
