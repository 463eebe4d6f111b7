"""Save a run from all its ranks, while its steps continue.

Training waits for a copy of its state in the host's memory; a thread writes the copy during the next steps, and talks
to the other ranks' threads over a gloo group of its own. There are never two saves at once: if the disk is too slow for
the saves that are due, saves are delayed and steps are not.
"""

from __future__ import annotations

import logging
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from cluster.disk.atomic_files import PARTIAL, fsync_path
from cluster.environment import node_name
from cluster.errors import CheckpointError
from training.checkpoints import layout
from training.checkpoints.layout import Commit
from training.checkpoints.room import require_room, state_bytes
from training.checkpoints.shard_files import FileFacts, rank_file_name, write_rank_file
from training.checkpoints.span_index import rank_spans, runs_of
from training.checkpoints.staging import KindState, Staging, streamed
from training.train_state import TrainState

if TYPE_CHECKING:
    from training.zero.engine import ZeroEngine

log = logging.getLogger(__name__)

MAX_FAILED_SAVES = 3


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """Which checkpoints stay, and how many bytes of a host's memory the copies of its ranks may take."""

    keep_last: int
    keep_every_steps: int | None
    copy_bytes: int


def all_gather_text(mine: list[str], group: dist.ProcessGroup) -> list[str]:
    """Return what all ranks say, in their order. Collective."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine, group=group)
    return [text for texts in everyone for text in texts]


class Saver:
    """Writes the checkpoints of one run. Collective, except for methods marked as of one rank."""

    def __init__(self, folder: Path, identity: dict[str, Any], policy: SavePolicy, group: dist.ProcessGroup) -> None:
        """`group` is a gloo group that nothing else uses while a save is under way."""
        self.folder, self.identity, self.policy, self.group = folder, identity, policy, group
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.staging: Staging | None = None
        self.pending: Future[list[str]] | None = None
        self.pending_step = 0
        self.saved_step: int | None = None  # of the newest committed checkpoint
        self.failures = 0
        self.owed = False
        self.longest_s = 0.0
        """From the beginning of a save to its end, the longest that was seen."""

    def settle(self) -> None:
        """Wait for a save that is under way, and forget which checkpoint was saved last."""
        if self.pending is not None:
            self.conclude()
        self.saved_step = None

    def offer(self, engine: ZeroEngine, progress: TrainState, *, due: bool) -> None:
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

    def complete(self, engine: ZeroEngine, progress: TrainState) -> None:
        """Return when the checkpoint of this progress is durable. Raises CheckpointError if it cannot be written."""
        if self.pending is not None:
            self.conclude()
        if self.saved_step != progress.steps_done:
            self.begin(engine, progress)
            self.conclude()
        if self.saved_step != progress.steps_done:
            raise CheckpointError(
                f"{self.folder}: the run ends without a checkpoint of step {progress.steps_done}; make room or fix the"
                f" disk, then start it again: it resumes from step {self.saved_step or 0}"
            )

    def begin(self, engine: ZeroEngine, progress: TrainState) -> None:
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
            self.pending.set_result(self.write(commit, streamed(engine), engine.world.rank, started))
            return
        state = self.staging.copy(engine)
        log.info("step %d: copied for saving, training waited %.2f s", commit.step, time.monotonic() - started)
        self.pending = self.thread.submit(self.write, commit, state, engine.world.rank, started)

    def conclude(self) -> None:
        """Wait for the save that is under way. Raises CheckpointError at the third failure in a row."""
        if self.pending is None:
            raise RuntimeError("no save is in flight; begin one before waiting for it")
        problems = self.pending.result()
        self.pending = None
        if not problems:
            self.failures, self.saved_step = 0, self.pending_step
            return
        self.failures += 1
        what = "\n  ".join([f"step {self.pending_step} was not saved: {problems[0]}", *problems[1:]])
        if self.failures == MAX_FAILED_SAVES:
            raise CheckpointError(f"{what}\n  {MAX_FAILED_SAVES} saves in a row have failed; make room or fix the disk")
        self.tell(
            logging.ERROR, "%s\n  training continues; the newest checkpoint is of step %s", what, self.saved_step or 0
        )

    def tell(self, level: int, message: str, *values: Any) -> None:
        """Log, once, what all ranks know."""
        if dist.get_rank() == 0:
            log.log(level, message, *values)

    def write(self, commit: Commit, state: list[KindState], rank: int, started: float) -> list[str]:
        """Write this rank's files and, on the first rank, commit; return what went wrong, the same on all ranks."""
        final = layout.folder_of(self.folder, commit.step)
        partial = final.with_name(final.name + PARTIAL)
        facts: dict[str, FileFacts] = {}
        path = partial
        problem = self.room_problem(commit) if rank == 0 else None
        try:
            if not all_gather_text([problem] if problem else [], self.group):
                partial.mkdir(parents=True, exist_ok=True)
                for part in state:
                    path = partial / rank_file_name(part.kind, rank, commit.world_size)
                    facts[path.name] = write_rank_file(path, part.spans, part.data)
        except OSError as error:
            problem = f"rank {rank} on {node_name()} cannot write {path}: {error.strerror or error}"
        told = (facts, rank_spans(state[0].kind, state[0].spans), problem)
        everyone: list[Any] | None = [None] * commit.world_size if rank == 0 else None
        dist.gather_object(told, everyone, dst=0, group=self.group)  # to one rank: the others need only the outcome
        verdict: list[Any] = [None]
        if everyone is not None:
            problems = [text for *_, text in everyone if text]
            files = layout.files_record({name: theirs[name] for theirs, *_ in everyone for name in theirs})
            whole = replace(commit, files=files, spans=runs_of([spans for _, spans, _ in everyone]))
            verdict = [problems or self.commit(partial, final, whole)]
            if verdict[0]:
                shutil.rmtree(partial, ignore_errors=True)  # swept at the next start if not now
            else:
                log.info("saved %s, %.3f GB in %.1f s", final, whole.bytes / 1e9, time.monotonic() - started)
                self.retire()
        dist.broadcast_object_list(verdict, src=0, group=self.group)
        self.longest_s = max(self.longest_s, time.monotonic() - started)
        wrong: list[str] = verdict[0]
        return wrong

    def room_problem(self, commit: Commit) -> str | None:
        """Return what is wrong if the disk has no room for a checkpoint. On the first rank."""
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                fsync_path(self.folder.parent)
            require_room(self.folder, state_bytes(commit.shapes.values()))
        except CheckpointError as error:
            return str(error)
        except OSError as error:
            return f"{self.folder}: {error.strerror}"
        return None

    def commit(self, partial: Path, final: Path, commit: Commit) -> list[str]:
        """Make the written files a checkpoint; return what went wrong. On the first rank."""
        try:
            layout.commit_folder(partial, final, commit)
        except OSError as error:
            return [f"{final}: cannot be committed: {error.strerror or error}"]
        return []

    def retire(self) -> None:
        """Remove the checkpoints that are no longer needed. On the first rank."""
        committed = layout.committed_folders(self.folder)
        for folder in layout.expired(committed, self.policy.keep_last, self.policy.keep_every_steps):
            try:
                layout.remove(folder)
            except OSError as error:
                log.warning("%s: could not be removed (%s); it stays", folder, error.strerror)
