"""Data with uneven rows, and runs of the real command that can be watched and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.journal.records import read_events, read_lines
from cluster.launching.forking import FORK_SERVER_NAME
from cluster.paths import RunPaths
from data_prep.shards import SPLITS, Manifest, Piece, template_digest, tokenizer_digest
from data_prep.shards.writing import (
    PackedRow,
    PackedRows,
    list_others,
    row_schema,
    write_manifest,
    write_shard,
    write_split_files,
)
from tests.rank_server import RankServer

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "rank_programs"
FAULTY = PROGRAMS / "faulty.py"
TWO_RANKS = """import sys
from cluster.launching.fork_server import fork_server_for
from cluster.launching.local_launcher import RankNews, run_ranks
with fork_server_for(sys.argv[1:], 2, restart=False) as server:
    news = RankNews(note_cause=lambda cause: print("cause:", cause))
    code = run_ranks(sys.argv[1:], 2, news=news, server=server)
sys.exit(code)
"""
ROW_TOKENS = 64


def uneven_row(generator: np.random.Generator, vocab_size: int, position: int) -> PackedRow:
    """Return a row of some pieces of random length, most tokens of some documents masked, padding at its end."""
    used = int(generator.integers(ROW_TOKENS // 2, ROW_TOKENS + 1))
    cuts = np.sort(generator.choice(np.arange(1, used), size=int(generator.integers(0, 5)), replace=False))
    lengths = np.diff([0, *cuts, used]).tolist()
    ids = np.zeros(ROW_TOKENS, dtype=np.uint32)
    ids[:used] = generator.integers(2, vocab_size, size=used)
    mask = np.zeros(ROW_TOKENS, dtype=np.bool_)
    mask[:used] = generator.random(used) < generator.random()
    mask[[0, *cuts]] = False
    if used > 1 and lengths[0] > 1:
        mask[1] = True
    pieces = [Piece(tokens=n, source=0, position=position + k, start=0) for k, n in enumerate(lengths)]
    return PackedRow(input_ids=ids, loss_mask=mask, pieces=pieces)


def write_data(folder: Path, tokenizer: Any, splits: dict[str, Sequence[PackedRow]]) -> Path:
    """Write prepared data: one shard a split, each row a block of its own."""
    schema = row_schema(ROW_TOKENS, len(tokenizer))
    shards = {}
    for split in SPLITS:
        relative = f"{split}/data-00000-of-00001.arrow"
        rows = splits.get(split, [])
        shards[split] = (
            [write_shard(folder / relative, relative, [PackedRows.of([row], len(tokenizer)) for row in rows], schema)]
            if rows
            else []
        )
        write_split_files(folder / split, shards[split], schema, split)
    tokenizer.save_pretrained(folder / "tokenizer")
    manifest = Manifest(
        version=1,
        config_digest="",
        tokenizer_digest=tokenizer_digest(tokenizer),
        template_digest=template_digest(None),
        row_tokens=ROW_TOKENS,
        vocab_size=len(tokenizer),
        packing="best_fit",
        files=[],
        splits=shards,
        documents={},
        tokens={},
        conversational=False,
        others=list_others(folder),
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="session")
def uneven_shards(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Write prepared data for `tiny_model` whose rows differ in pieces, padding and trained tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def write(rows: int) -> Path:
        generator = np.random.default_rng(0)
        train = [uneven_row(generator, len(tokenizer), 5 * number) for number in range(rows)]
        held_out = [uneven_row(generator, len(tokenizer), 5 * number) for number in range(rows, rows + 6)]
        return write_data(tmp_path_factory.mktemp("uneven_shards"), tokenizer, {"train": train, "validation": held_out})

    return write


@dataclass(frozen=True)
class Trial:
    """What the ranks of one world wrote: see ranks.py."""

    folder: Path
    world_size: int

    def facts(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return values

    def by_rank(self, name: str) -> list[dict[str, Any]]:
        from safetensors.torch import load_file

        return [load_file(self.folder / f"{name}-{rank}.safetensors") for rank in range(self.world_size)]

    def joined(self, name: str) -> dict[str, Any]:
        """Return the flat tensors that the ranks' parts make up."""
        import torch

        parts = self.by_rank(name)
        return {key: torch.cat([rank[key] for rank in parts]) for key in parts[0]}


@pytest.fixture(scope="session")
def trial_of(
    tiny_model: Path,
    uneven_shards: Callable[[int], Path],
    rank_server: RankServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Trial]:
    """Run ranks.py, or another script of ranks, in a world of so many ranks, once, and return what it left."""

    @cache
    def code_and_trial(world_size: int, script: str, *arguments: str, rows: int) -> tuple[int, Trial]:
        shards = uneven_shards(rows)
        folder = tmp_path_factory.mktemp(f"trial_{world_size}_")
        command = [str(PROGRAMS / script), str(folder), str(tiny_model), str(shards), *arguments]
        return rank_server.run(command, world_size), Trial(folder, world_size)

    def run(world_size: int, script: str = "ranks.py", *arguments: str, rows: int = 8) -> Trial:
        code, trial = code_and_trial(world_size, script, *arguments, rows=rows)
        assert code == 0, f"{script} on {world_size} ranks ended with {code}"
        return trial

    return run


@dataclass(frozen=True)
class Run:
    """A run of the real command that can be watched, killed and started again."""

    yaml: Path
    paths: RunPaths

    def start(self, *arguments: str, ranks: int = 2) -> subprocess.Popen[str]:
        """Start training as a process of its own, its words kept beside the run."""
        return self.launch([*self.command(ranks), *arguments])

    def command(self, ranks: int = 2) -> list[str]:
        """Return the command that trains on so many ranks."""
        return [sys.executable, "-m", "launch", "train", str(self.yaml), "--ranks", str(ranks)]

    def start_with(self, fault: str, first: int, last: int) -> subprocess.Popen[str]:
        """Start two ranks, to the second of which something happens in steps first..last (from 0): see faulty.py."""
        rank = [sys.executable, str(FAULTY), fault, "1", str(first), str(last), "train", str(self.yaml)]
        return self.launch([sys.executable, "-c", TWO_RANKS, *rank])

    def launch(self, command: Sequence[str]) -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)

    @property
    def log(self) -> Path:
        return self.yaml.with_suffix(".log")

    def train(self, *arguments: str, ranks: int = 2) -> int:
        """Train until the command ends; return its exit code."""
        return self.start(*arguments, ranks=ranks).wait()

    def kill_when(self, moment: Callable[[Run], bool], *, ranks: int = 2) -> None:
        """Train, and take the power away at a moment: the ranks die with their launcher."""
        self.kill(self.start(ranks=ranks), moment)

    def kill(self, process: subprocess.Popen[str], moment: Callable[[Run], bool]) -> None:
        self.watch(process, moment)
        children = ranks_of(process)
        process.kill()
        process.wait()
        self.wait_for_death(children)

    def wait_for_death(self, ranks: Sequence[int]) -> None:
        while any(map(is_alive, ranks)):
            time.sleep(0.002)

    def ranks(self, process: subprocess.Popen[str]) -> list[int]:
        """Return the processes of the ranks of a start, in their order; none before they are there."""
        try:
            return ranks_of(process)
        except (FileNotFoundError, ProcessLookupError):
            return []

    def watch(self, process: subprocess.Popen[str], moment: Callable[[Run], bool]) -> None:
        """Wait for a moment of a run that is under way."""
        while not moment(self):
            assert process.poll() is None, f"the run ended before the moment came:\n{self.log.read_text()}"
            time.sleep(0.002)

    def signal_rank(self, process: subprocess.Popen[str], rank: int, number: signal.Signals) -> None:
        os.kill(ranks_of(process)[rank], number)

    def metrics(self) -> list[dict[str, Any]]:
        return read_lines(self.paths.metrics)

    def steps(self) -> list[int]:
        return [line["step"] for line in self.metrics()]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in read_events(self.paths) if line["event"] == name]

    def ends(self) -> list[dict[str, Any]]:
        return self.events("end")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the processes of a launcher's ranks, in their order; its fork server is none of them."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() != FORK_SERVER_NAME]


@pytest.fixture(scope="session")
def short_run(
    run_yaml: Callable[..., Path], run_in: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Run]:
    """Write a run of short steps on a tiny model into a folder of its own; keywords go to `train:`."""

    def write(**train: Any) -> Run:
        folder = tmp_path_factory.mktemp("short")
        values = json.loads(run_yaml(folder, precision="fp32", **train).read_text())
        return run_in(folder, **{key: values[key] for key in ("data", "model", "train")})

    return write


@pytest.fixture(scope="session")
def run_in() -> Callable[..., Run]:
    """Write a run into a folder; keywords are the YAML's sections."""

    def write(folder: Path, **sections: Any) -> Run:
        folder.mkdir(parents=True, exist_ok=True)
        values = {"name": "trial", "folder": str(folder / "run"), "trackers": [], **sections}
        (folder / "run.yaml").write_text(json.dumps(values, indent=1))  # JSON is YAML
        return Run(folder / "run.yaml", RunPaths(folder / "run"))

    return write


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many bytes, and return its folder."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)
