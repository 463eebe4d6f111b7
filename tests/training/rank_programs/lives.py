"""Ranks that live, save, are killed and live again, in seconds: the real Checkpoints around a state of plain tensors.

    python tests/training/rank_programs/lives.py SCENARIO FOLDER [ARGUMENTS]

A life is a fork for each rank of a process that has imported torch. What DeepSpeed does to a state is tested with real
engines elsewhere; here the steps are cheap, so that hundreds of deaths fit into a minute. Disks fail by faults.c.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.errors import CheckpointError
from cluster.network.world import World
from training.checkpoints.async_save import SavePolicy
from training.checkpoints.checkpoint import Checkpoints
from training.checkpoints.layout import committed_folders, step_of, verify
from training.optimizer_state import KINDS
from training.step.loss import StepStats
from training.zero.partitions import Partition, Slot

SHAPES = {"matrix": (37, 11), "vector": (5,), "single": (1,)}
STEPS, SAVE_EVERY = 30, 3
STATS = StepStats(loss=1.0, gradient_norm=1.0)
POLICY = SavePolicy(keep_last=2, keep_every_steps=12, copy_bytes=1 << 30)


class PlainEngine:
    """A sharded state whose every element is its own arithmetic, so that any number of ranks gives the same bits."""

    def __init__(self, rank: int, size: int) -> None:
        self.world = World(rank=rank, size=size, local_rank=rank, local_size=size, master=("", 0))
        self.device = torch.device("cpu")
        self.state: dict[str, Partition] = {}
        self.updates = 0
        for name, shape in SHAPES.items():
            numel = torch.Size(shape).numel()
            part = -(-numel // size)
            start, stop = min(rank * part, numel), min((rank + 1) * part, numel)
            values = {kind: torch.zeros(stop - start) for kind in KINDS}
            self.state[name] = Partition(name=name, shape=shape, numel=numel, start=start, stop=stop, values=values)

    def layout(self) -> list[Slot]:
        return list(self.state.values())

    def parts(self, *, writing: bool = False) -> Iterator[Partition]:
        yield from self.state.values()

    def start_from(self, weights: None) -> None:
        for part in self.state.values():
            part.values["master"].copy_(torch.arange(part.start, part.stop))

    def continue_after(self, updates: int) -> None:
        self.updates = updates

    def step(self, step: int) -> None:
        self.updates += 1
        for part in self.state.values():
            places = torch.arange(part.start, part.stop, dtype=torch.float32)
            for number, kind in enumerate(KINDS):
                part.values[kind].mul_(0.97).add_(torch.sin(places * 0.1 + step + number) * self.updates)

    def all_reduce_max(self, value: int) -> int:
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)


@dataclass(frozen=True)
class Place:
    """Where a scenario happens."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def rules(self) -> Path:
        return self.folder / "rules"

    @property
    def hold(self) -> Path:
        return self.folder / "rules.hold"

    def note(self, **facts: Any) -> None:
        with (self.folder / "notes.jsonl").open("a") as stream:
            stream.write(json.dumps(facts) + "\n")


def begin_life(place: Place, rank: int, size: int, number: int) -> tuple[PlainEngine, Checkpoints]:
    """Join the other ranks of this life."""
    store = dist.FileStore(str(place.folder / f"store-{number}"), size)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    engine = PlainEngine(rank, size)
    return engine, Checkpoints(place.checkpoints, {"run": 1}, POLICY, first_weights=lambda: None)  # type: ignore[arg-type, return-value]


def live(place: Place, rank: int, size: int, number: int) -> None:
    """Resume from the newest checkpoint and train to the last step."""
    engine, checkpoints = begin_life(place, rank, size, number)
    engines: Any = engine
    progress = checkpoints.restore(engines)
    if rank == 0:
        place.note(begins=progress.steps_done, life=number, size=size)
    for step in range(progress.steps_done, STEPS):
        engine.step(step)
        progress = progress.after(step, STATS)
        checkpoints.offer(engines, progress, due=progress.steps_done % SAVE_EVERY == 0)
    checkpoints.complete(engines, progress)
    dist.barrier()


def fork(work: Callable[[], None]) -> int:
    """Do something in a process of its own; return its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        code = 2
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for(ranks: list[int], kill_after_s: float | None = None) -> list[int]:
    """Wait for all ranks; when one has died, or after a time, kill the others. Return how each ended."""
    ended: dict[int, int] = {}
    started = time.monotonic()
    while len(ended) < len(ranks):
        for pid in ranks:
            if pid not in ended and (status := os.waitpid(pid, os.WNOHANG))[0]:
                ended[pid] = os.waitstatus_to_exitcode(status[1])
        late = kill_after_s is not None and time.monotonic() - started > kill_after_s
        if late or any(code < 0 for code in ended.values()):
            for pid in set(ranks) - ended.keys():
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    return [ended[pid] for pid in ranks]


def life(
    place: Place, size: int, number: int, rule: tuple[int, str] | None = None, after_s: float | None = None
) -> bool:
    """Let a world live, one rank under a rule or all killed after a time; return whether it came to its end."""

    def work(rank: int) -> Callable[[], None]:
        def run() -> None:
            if rule is not None and rule[0] == rank:
                place.rules.write_text(rule[1])
                os.environ["FAULT_RULES"] = str(place.rules)
            live(place, rank, size, number)

        return run

    codes = wait_for([fork(work(rank)) for rank in range(size)], after_s)
    killed = any(code < 0 for code in codes)  # the others may then find it out before they are killed: exit code 1
    if any(code > (1 if killed else 0) for code in codes):
        raise SystemExit(f"life {number} ended with {codes}")
    return codes == [0] * size


class Trial:
    """One rank of two in a life whose disk is told how to fail."""

    def __init__(self, place: Place, rank: int) -> None:
        os.environ["FAULT_RULES"] = str(place.rules)
        self.place, self.rank = place, rank
        self.engine, self.checkpoints = begin_life(place, rank, 2, 0)
        self.progress = self.checkpoints.restore(self.engines)

    @property
    def engines(self) -> Any:
        return self.engine

    def step(self, *, due: bool = False) -> None:
        self.engine.step(self.progress.steps_done)
        self.progress = self.progress.after(self.progress.steps_done, STATS)
        self.checkpoints.offer(self.engines, self.progress, due=due)

    def rule(self, text: str, *, hold: bool = False) -> None:
        """Make the disk fail from now on."""
        if self.rank == 0:
            self.place.rules.write_text(text + "\n")
            self.place.hold.touch() if hold else self.place.hold.unlink(missing_ok=True)
        dist.barrier()

    def save(self) -> None:
        """Take a step that is saved, and further ones until the save has come to its end."""
        self.step(due=True)
        while self.checkpoints.saver.pending is not None:
            self.step()
            time.sleep(0.002)

    def note(self, name: str) -> None:
        dist.barrier()
        if self.rank == 0:
            names = sorted(path.name for path in self.place.checkpoints.iterdir())
            self.place.note(
                name=name, saved=self.checkpoints.saver.saved_step, at=self.progress.steps_done, names=names
            )
        dist.barrier()


FAULTS = {
    "a full disk": "write master-00001 errno 28 0",
    "a disk that fills up": "write .safetensors errno 28 1",
    "an input or output error when it should be durable": "fsync exp_avg-00001 errno 5 0",
    "a commit file that cannot be written": "write commit.json errno 28 0",
    "a folder that cannot be made": "mkdir .partial errno 30 0",
    "a folder whose names cannot be made durable": "fsync .partial errno 5 0",
    "a name that cannot be given": "rename .partial errno 5 0",
}


def faults(place: Place, rank: int) -> None:
    """Every fault once, and a good save after each."""
    trial = Trial(place, rank)
    trial.save()
    trial.note("before")
    for name, rule in FAULTS.items():
        trial.rule(rule)
        trial.save()
        trial.note(name)
        trial.rule("")
        trial.save()
        trial.note("after")
    trial.rule("remove .removed errno 5 0")
    trial.save()
    while not any(place.checkpoints.glob("*.removed.partial")):  # how many steps a save takes is chance: what was to go
        trial.save()  # was of a twelfth step, and stays
    trial.note("a checkpoint that cannot be removed")


def slow(place: Place, rank: int) -> None:
    """A disk on which nothing moves while a second and a third save are due."""
    trial = Trial(place, rank)
    trial.rule("write exp_avg-00001 hold 0 0", hold=True)
    trial.step(due=True)
    for due in (False, True, True, False):
        trial.step(due=due)
    trial.note("held")
    trial.rule("")
    while trial.checkpoints.saver.saved_step is None:
        trial.step()
    owed = trial.progress.steps_done
    while trial.checkpoints.saver.saved_step != owed:
        trial.step()
    trial.note("moving")
    trial.checkpoints.complete(trial.engines, trial.progress)
    trial.note("ended")


def broken(place: Place, rank: int) -> None:
    """A disk that never takes a save."""
    trial = Trial(place, rank)
    trial.rule("write .safetensors errno 28 0")
    while True:
        trial.save()
        trial.note("resumed")


def broken_at_the_end(place: Place, rank: int) -> None:
    """A disk that takes the first save and not the last."""
    trial = Trial(place, rank)
    trial.save()
    trial.rule("fsync .safetensors errno 5 0")
    trial.step()
    trial.checkpoints.complete(trial.engines, trial.progress)


def once(place: Place, rank: int) -> None:
    """One save, as the disk is."""
    trial = Trial(place, rank)
    trial.save()
    trial.note("saved")


def recorded(place: Place, rank: int) -> None:
    """Some saves whose every operation is recorded, each with a copy and a mark in the record when it was durable."""
    if rank == 1:
        return
    os.environ["FAULT_RECORD"] = str(place.folder / "record")
    engine, checkpoints = begin_life(place, 0, 1, 0)
    engines: Any = engine
    progress = checkpoints.restore(engines)
    for step in range(5):
        engine.step(step)
        progress = progress.after(step, STATS)
        checkpoints.complete(engines, progress)
        with (place.folder / "record").open("a") as stream:
            stream.write(f"durable {progress.steps_done} \n")
        name = f"step-{progress.steps_done:06d}"
        shutil.copytree(place.checkpoints / name, place.folder / "copies" / name)


def split(place: Place, rank: int) -> None:
    """Two ranks for which one path leads to two folders: the second one's is a copy that is a save behind."""
    trial = Trial(place, rank)
    trial.save()
    if rank == 0:
        shutil.copytree(place.checkpoints, place.folder / "other" / "checkpoints")
    trial.save()
    os.chdir(place.folder if rank == 0 else place.folder / "other")
    again = Checkpoints(Path("checkpoints"), {"run": 1}, POLICY, first_weights=lambda: None)  # type: ignore[arg-type, return-value]
    again.restore(trial.engines)


def together(work: Callable[[Place, int], None]) -> Callable[[Place], None]:
    """Return what runs a scenario on two ranks and ends with the larger exit code."""

    def run(place: Place) -> None:
        raise SystemExit(max(wait_for([fork(partial(work, place, rank)) for rank in range(2)])))

    return run


MOMENTS = [  # where a rank dies: operation, path, how often at most it went well before
    ("mkdir", ".partial", 3),
    ("write", ".safetensors", 12),
    ("fsync", ".safetensors", 4),
    ("write", "commit.json", 3),
    ("fsync", "commit.json", 3),
    ("rename", "commit.json", 3),
    ("fsync", ".partial", 6),
    ("rename", ".partial", 3),
    ("fsync", "checkpoints", 6),
    ("rename", "step-", 8),
    ("remove", ".removed", 6),
    ("read", ".safetensors", 12),
]


def kills(place: Place, deaths: int, seed: int) -> None:
    """Kill a run so many times, at every kind of moment, in worlds of 1 to 4 ranks; it must end as if nothing was."""
    generator = random.Random(seed)
    died, number = 0, 0
    while died < deaths:
        number += 1
        size = generator.randint(1, 4)
        if generator.random() < 0.3:
            ended = life(place, size, number, after_s=generator.uniform(0.0, 0.6))
        else:
            operation, path, most = generator.choice(MOMENTS)
            rule = f"{operation} {path} kill 0 {generator.randint(0, most)}\n"
            rank = 0 if operation in ("rename", "remove") or "commit" in path else generator.randrange(size)
            ended = life(place, size, number, rule=(rank, rule))
        if ended:  # it was not killed: begin another run, so that all deaths are of runs under way
            check_end(place)
            for folder in committed_folders(place.checkpoints):
                if step_of(folder) > STEPS // 2:
                    folder.rename(place.folder / f"old-{number}-{folder.name}")
        else:
            died += 1
    if not life(place, generator.randint(1, 4), number + 1):
        raise SystemExit("the last life did not come to its end")
    check_end(place)
    place.note(died=died, lives=number + 1)


def check_end(place: Place) -> None:
    """Check that a run's last checkpoints are whole and hold what an undisturbed run's do."""
    expected = PlainEngine(0, 1)
    expected.start_from(None)
    kept = {step_of(folder): folder for folder in committed_folders(place.checkpoints)}
    assert max(kept) == STEPS, kept
    for step in range(STEPS):
        expected.step(step)
        if step + 1 in kept:
            check_same(kept[step + 1], expected)


def check_same(folder: Path, engine: PlainEngine) -> None:
    from training.checkpoints.layout import stored_state

    commit = verify(folder)
    assert (commit.resumed().steps_done, commit.resumed().skipped) == (step_of(folder), ())
    with stored_state(folder, commit) as state:
        for part in engine.parts():
            for kind, tensor in part.values.items():
                assert torch.equal(state.read(f"{kind}.{part.name}", 0, torch.empty(part.numel)), tensor), folder


if __name__ == "__main__":
    scenario, folder, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    scenarios = {
        work.__name__: together(work) for work in (faults, slow, broken, broken_at_the_end, once, recorded, split)
    }
    if scenario == "kills":
        kills(Place(Path(folder)), *map(int, rest))
    else:
        scenarios[scenario](Place(Path(folder)))
