"""File operations on the shared disk as ranks become more: heartbeats a second, and those of one restore.

The watchdogs' own code runs for every host of a simulated cluster, with one clock, and every call that names a path in
the shared folder is counted: open, stat, rename, unlink, mkdir, list. So does a restore for every rank of a checkpoint
of small files. What the version before did is computed from its code (commit d5d564e): each host opened every rank's
file twice a second; each rank looked at the size of every file twice, and opened every file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cluster.hangs.hang_detection import Watch
from cluster.hangs.shared_view import POLL_S, SharedView
from cluster.hangs.watchdog import HostWatch
from cluster.heartbeats.heartbeat_files import Beat, RankFile, local_folders
from cluster.paths import RunPaths
from cluster.processes import started_at
from training.checkpoints import layout
from training.checkpoints.shard_files import Span, rank_file_name, write_rank_file
from training.checkpoints.span_index import rank_spans, runs_of
from training.optimizer_state import KINDS

LAUNCH = "first:29500"
RANKS_PER_HOST = 8
SIZES = (8, 64, 1024)
SIMULATED_S = 8.0
EVENTS = {"open": "open", "os.rename": "rename", "os.remove": "unlink", "os.mkdir": "mkdir", "os.scandir": "list"}
EVENTS |= {"os.listdir": "list"}
NUMEL = 4096


class Counting:
    """Counts the calls that name a path below a folder, in this process, while it is entered.

    An audit hook sees all but stat, and cannot be taken out again: it is put in once.
    """

    current: Counting | None = None
    is_hooked = False

    def __init__(self, folder: Path) -> None:
        self.prefix, self.calls = str(folder), Counter[str]()

    def note(self, kind: str, path: object) -> None:
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.prefix):
            self.calls[kind] += 1


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if Counting.current is not None and event in EVENTS and arguments:
        Counting.current.note(EVENTS[event], arguments[0])


@contextmanager
def counting(folder: Path) -> Iterator[Counter[str]]:
    """Count the file operations below a folder until the context ends."""
    if not Counting.is_hooked:
        sys.addaudithook(hook)
        Counting.is_hooked = True
    counter = Counting(folder)
    stat = os.stat

    def counted_stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        counter.note("stat", path)
        return stat(path, *arguments, **options)

    Counting.current = counter
    os.stat = counted_stat
    try:
        yield counter.calls
    finally:
        os.stat = stat
        Counting.current = None


class Cluster:
    """Some hosts of eight ranks, each with the watchdog's own code, beside one clock."""

    def __init__(self, root: Path, ranks: int) -> None:
        self.paths, self.ranks, self.now = RunPaths(root), ranks, 0.0
        self.paths.heartbeats.mkdir(parents=True)
        self.started = started_at(os.getpid()) or 0
        self.hosts: list[HostWatch] = []
        self.folders: list[Path] = []
        self.steps = 0.0
        for first in range(0, ranks, RANKS_PER_HOST):
            host = f"node{first // RANKS_PER_HOST}"
            folder = local_folders(self.paths, LAUNCH, host)[0]
            folder.mkdir(mode=0o700, exist_ok=True)
            self.folders.append(folder)
            view = SharedView(self.paths.heartbeats, host, LAUNCH, ranks, RANKS_PER_HOST, changed_at=0.0)
            self.hosts.append(HostWatch(self.paths, view, Watch(ranks, None, 0.0, period_s=view.period_s)))

    def beat(self, rank: int, step: int) -> None:
        host = rank // RANKS_PER_HOST
        file = RankFile(self.folders[host], rank)
        common = {"launch": LAUNCH, "host": f"node{host}", "phase": "step"}
        count = int(self.now * 2)
        file.write(Beat(rank=rank, pid=os.getpid(), started=self.started, step=step, count=count, **common))
        file.close()

    def poll(self, silent: frozenset[int] = frozenset(), dead: frozenset[int] = frozenset()) -> dict[int, list[int]]:
        """Let half a second go by; return what each host's watchdog has found, if it has found a hang.

        Steps take two seconds; with a rank that is silent or on a dead host, nobody makes another step.
        """
        self.now += POLL_S
        self.steps += 0.0 if silent or dead else POLL_S / 2
        found = {}
        for rank in range(self.ranks):
            if rank not in silent and rank // RANKS_PER_HOST not in dead:
                self.beat(rank, int(self.steps))
        for number, host in enumerate(self.hosts):
            culprits = None if number in dead else host.poll(self.now)
            if culprits is not None:
                found[number] = culprits
        return found

    def remove(self) -> None:
        for folder in self.folders:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()


def heartbeats(ranks: int, simulated_s: float = SIMULATED_S) -> float:
    """Return the file operations a second on the shared disk while a cluster trains."""
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(Path(name) / "run", ranks)
        try:
            for _ in range(6):
                cluster.poll()
            with counting(cluster.paths.root) as calls:
                for _ in range(round(simulated_s / POLL_S)):
                    assert not cluster.poll()
            return calls.total() / simulated_s
        finally:
            cluster.remove()


def heartbeats_before(ranks: int) -> float:
    """Return the same of the version before: ranks write and rename, hosts write one file and open those of all."""
    hosts = -(-ranks // RANKS_PER_HOST)
    return ranks * 2 + hosts * (1 + ranks) / POLL_S


def write_checkpoint(checkpoints: Path, ranks: int) -> Path:
    """Write a checkpoint as so many ranks would, of one parameter."""
    final = layout.folder_of(checkpoints, 5)
    partial = final.with_name(final.name + ".partial")
    partial.mkdir(parents=True)
    chunk, facts, held = NUMEL // ranks, {}, []
    for rank in range(ranks):
        for kind in KINDS:
            spans = [Span(key=f"{kind}.w", start=rank * chunk, numel=chunk)]
            name = rank_file_name(kind, rank, ranks)
            facts[name] = write_rank_file(partial / name, spans, [torch.full((chunk,), float(rank))])
        held.append(rank_spans(kind, spans))
    layout.commit_folder(
        partial,
        final,
        layout.Commit(
            step=5,
            progress={"steps_done": 5, "skipped": []},
            world_size=ranks,
            identity={},
            shapes={"w": [NUMEL]},
            files=layout.files_record(facts),
            spans=runs_of(held),
        ),
    )
    return final


def restore_calls(ranks: int, folder: Path, wanted_ranks: int | None = None) -> Counter[str]:
    """Return the file operations of a restore by so many ranks, as Checkpoints.restore makes them one after another."""
    size = wanted_ranks or ranks
    chunk = NUMEL // size
    with counting(folder) as calls:
        commit = layout.read_commit(folder)  # the first rank's choice
        for rank in range(size):
            seen = layout.read_commit_file(folder)
            assert seen.digest == commit.digest
            dealt = layout.files_of_rank(commit, rank, size)
            layout.check_sizes(folder, commit, dealt)
            assert not layout.damaged_files(folder, commit, dealt)
            with layout.stored_state(folder, commit) as state:
                for kind in KINDS:
                    state.read(f"{kind}.w", rank * chunk, torch.empty(chunk))
    return calls


def restore_before(ranks: int) -> Counter[str]:
    """Return the same of the version before: two stats a file by every rank and once more by the first; all opened."""
    files = len(KINDS) * ranks
    return Counter(stat=2 * files * (ranks + 1), open=(ranks + 1) + files + ranks * files + ranks * len(KINDS))


def table() -> list[dict[str, Any]]:
    """Return a line for each number of ranks."""
    lines = []
    for ranks in SIZES:
        with tempfile.TemporaryDirectory() as name:
            calls = restore_calls(ranks, write_checkpoint(Path(name), ranks))
        before = restore_before(ranks)
        lines.append(
            {
                "case": "growth of ranks",
                "ranks": ranks,
                "heartbeat_ops_per_s": round(heartbeats(ranks), 1),
                "heartbeat_ops_per_s_before": heartbeats_before(ranks),
                "restore_stats": calls["stat"],
                "restore_stats_before": before["stat"],
                "restore_opens": calls["open"],
                "restore_opens_before": before["open"],
            }
        )
    return lines


def main() -> None:
    for line in table():
        print(json.dumps(line))


if __name__ == "__main__":
    main()
