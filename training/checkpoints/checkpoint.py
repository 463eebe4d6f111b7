"""The checkpoints of a run, as its loop sees them. What lies on disk is described in layout."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from cluster.environment import node_name
from cluster.errors import CheckpointError
from cluster.wording import count_of
from training.checkpoints import layout
from training.checkpoints.async_save import SavePolicy, Saver, all_gather_text
from training.checkpoints.layout import Commit, DamagedError
from training.checkpoints.room import require_room, state_bytes
from training.models.initial_weights import Weights
from training.run_identity import check_identity
from training.train_state import TrainState

if TYPE_CHECKING:
    from training.zero.engine import ZeroEngine

log = logging.getLogger(__name__)

WRITING_TIMEOUT = timedelta(hours=6)  # a rank's disk may be that much slower than another's; the watchdog finds hangs


class Checkpoints:
    """Restores a run and saves it. Collective, except for `choose`, which rank 0 calls."""

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        policy: SavePolicy,
        first_weights: Callable[[], Weights],
        rows: int | None = None,
        total_steps: int | None = None,
    ) -> None:
        """`rows` of the data are given if a run may resume with another length: see training.run_identity.

        With `total_steps`, a run that has steps left is restored only if the disk has room for a checkpoint.
        """
        self.folder, self.identity, self.first_weights, self.rows = folder, identity, first_weights, rows
        self.total_steps = total_steps
        self.restored_identity: dict[str, Any] | None = None
        self.group = dist.new_group(backend="gloo", timeout=WRITING_TIMEOUT)
        self.saver = Saver(folder, identity, policy, self.group)

    def offer(self, engine: ZeroEngine, progress: TrainState, *, due: bool) -> None:
        """Save if a checkpoint is due, or was due while the one before was still being written."""
        self.saver.offer(engine, progress, due=due)

    def complete(self, engine: ZeroEngine, progress: TrainState) -> None:
        """Return when the checkpoint of this progress is durable. Raises CheckpointError if it cannot be written."""
        self.saver.complete(engine, progress)

    def longest_save_s(self) -> float:
        """Return the longest time that a save of this start has taken, in seconds; 0 before the first one."""
        return self.saver.longest_s

    def restore(self, engine: ZeroEngine, before: int | None = None, last: int | None = None) -> TrainState:
        """Fill the engine from the newest good checkpoint, or with the run's first weights; return how far the run is.

        The first rank chooses and all ranks check that they see the same; a damaged checkpoint is set aside and the
        next older one used. Raises CheckpointError if there were checkpoints and none is good. With `before`, the run
        goes back: checkpoints of that step and later ones are superseded. With `last`, only those of at most that step
        count, and nothing on the disk is changed.
        """
        self.saver.settle()
        if engine.world.is_first and last is None and before is not None:
            layout.supersede(self.folder, before)
        refused: set[Path] = set()
        while True:
            chosen = self.choose_together(engine, last, refused)
            if engine.world.is_first and last is None:  # now: a start that is refused leaves everything as it was
                layout.sweep(self.folder)
            if last is None and before is None:
                self.require_room(engine, 0 if chosen is None else chosen[1].step)
            if chosen is None:
                engine.start_from(self.first_weights())
                return TrainState()
            folder, commit = chosen
            started = time.monotonic()
            damaged = all_gather_text(self.check(folder, commit, engine), self.group)
            if not damaged:
                break
            refused.add(folder)
            if engine.world.is_first:
                refuse(folder, "\n  ".join(damaged), aside=last is None)
        self.load(engine, folder, commit)
        ranks = count_of(commit.world_size, "rank")
        log.info("loaded %s, written by %s, in %.1f s", folder, ranks, time.monotonic() - started)
        self.saver.saved_step, self.restored_identity = commit.step, commit.identity
        return commit.resumed()

    def require_room(self, engine: ZeroEngine, steps_done: int) -> None:
        """Raise CheckpointError, before anything is computed, if what is computed next cannot be saved."""
        if self.total_steps is None or steps_done >= self.total_steps:
            return
        told: list[Any] = [self.lack_of_room(engine) if engine.world.is_first else None]
        dist.broadcast_object_list(told, src=0, group=self.group)
        if told[0]:
            raise CheckpointError(f"{told[0]}; make room, or choose another folder, then start the run again")

    def lack_of_room(self, engine: ZeroEngine) -> str | None:
        """Return what a checkpoint needs if the disk has less. A disk that fails may be back when one is due."""
        try:
            require_room(self.folder, state_bytes(slot.shape for slot in engine.layout()))
        except CheckpointError as error:
            return str(error)
        except OSError as error:
            log.warning("%s: how much is free is not known: %s", self.folder, error.strerror)
        return None

    def choose_together(self, engine: ZeroEngine, last: int | None, refused: set[Path]) -> tuple[Path, Commit] | None:
        """Return the first rank's choice on all ranks; an error there is raised by all."""
        chosen: list[Any] = [self.choose(last, refused) if engine.world.is_first else None]
        dist.broadcast_object_list(chosen, src=0, group=self.group)
        if isinstance(chosen[0], CheckpointError):
            raise chosen[0]
        found: tuple[Path, Commit] | None = chosen[0]
        return found

    def choose(self, last: int | None, refused: set[Path]) -> tuple[Path, Commit] | CheckpointError | None:
        """Return the newest checkpoint of this run with all its files, None for a run without one, or an error.

        Not collective. A damaged one is set aside, unless `last` is given: then nothing on the disk is changed.
        """
        for folder in reversed(layout.candidate_folders(self.folder)):
            if folder in refused or (last is not None and layout.step_of(folder) > last):
                continue
            try:
                commit = layout.read_commit(folder)
                check_identity(commit.identity, self.identity, folder, steps_done=commit.step, rows=self.rows)
            except DamagedError as error:
                refuse(folder, str(error), aside=last is None)
            except CheckpointError as error:
                return error
            else:
                return folder, commit
        if layout.set_aside_folders(self.folder):
            return CheckpointError(
                f"{self.folder}: no good checkpoint is left; the damaged ones are in"
                f" {self.folder / layout.SET_ASIDE}, each with its reason. Put a whole one back, or remove"
                " that folder to begin again at step 0"
            )
        return None

    def check(self, folder: Path, commit: Commit, engine: ZeroEngine) -> list[str]:
        """Return what is wrong with the files that this rank checks for all. Collective.

        The first rank has looked at the size of every file; each rank looks at its own, so that a rank that does not
        see the shared folder as the first one does is found before a file is called damaged.

        Raises CheckpointError on all ranks if one of them sees another checkpoint in this place than the first rank.
        """
        seen = []
        dealt = layout.files_of_rank(commit, engine.world.rank, engine.world.size)
        try:
            if layout.read_commit_file(folder).digest != commit.digest:
                seen.append("it holds another checkpoint than for the first rank")
            else:
                layout.check_sizes(folder, commit, dealt)
        except CheckpointError as error:
            seen.append(str(error))
        where = f"rank {engine.world.rank} on {node_name()}"
        others = all_gather_text([f"{folder}, as {where} sees it: {problem}" for problem in seen], self.group)
        if others:
            raise CheckpointError("\n  ".join([*others, "all ranks must see the same shared folder; fix the mount"]))
        shapes = {slot.name: list(slot.shape) for slot in engine.layout()}
        if shapes != commit.shapes:
            other = layout.first_difference(shapes, commit.shapes)
            raise CheckpointError(f"{folder}: holds another model; first difference: {other}")
        return layout.damaged_files(folder, commit, dealt)

    def load(self, engine: ZeroEngine, folder: Path, commit: Commit) -> None:
        """Fill this rank's partitions, each from only the files and bytes it needs."""
        failed = []
        try:
            with layout.stored_state(folder, commit) as state:
                for part in engine.parts(writing=True):
                    for kind, tensor in part.values.items():
                        state.read(f"{kind}.{part.name}", part.start, tensor)
        except (CheckpointError, OSError) as error:
            failed.append(f"rank {engine.world.rank} on {node_name()} cannot load {folder}: {error}")
        failed = all_gather_text(failed, self.group)
        if failed:
            raise CheckpointError("\n  ".join(failed))
        engine.continue_after(commit.resumed().updates)


def refuse(folder: Path, reason: str, *, aside: bool) -> None:
    """Say why a damaged checkpoint is not used, and set it aside."""
    where = f"moved to {layout.set_aside(folder, reason)}" if aside else "left where it is"
    log.warning("%s\n  this checkpoint is damaged: %s; the next older one is used", reason, where)
