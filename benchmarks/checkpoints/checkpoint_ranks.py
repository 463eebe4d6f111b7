"""One rank of ckpt_stall and ckpt_bw: a real engine, saved in turns by us, by DeepSpeed and as a bare copy.

python -m benchmarks.checkpoints.checkpoint_ranks {stall,bandwidth} FOLDER ROUNDS
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.environment import enter_world, read_world

if TYPE_CHECKING:
    from training.checkpoints.layout import Commit

LLAMA = {  # 209 million parameters
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 15,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "tie_word_embeddings": True,
    "vocab_size": 16_384,
}
ROW_TOKENS = 32
STEPS_BETWEEN = 6
PAUSE_S = 8.0  # a disk takes some gigabytes at once, and is slow for the next ones


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that the slowest rank took."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    started = time.perf_counter()
    work()
    taken = torch.tensor(time.perf_counter() - started)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    return float(taken)


def forget(paths: list[Path]) -> None:
    """Take files out of the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_raw(path: Path) -> None:
    buffer = bytearray(8 << 20)
    with path.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def write_raw(path: Path, memory: memoryview, *, hinted: bool = False) -> None:
    """Write memory one chunk after the other, and make it durable; `hinted`, with our word to the disk to begin."""
    with path.open("wb", buffering=0) as stream:
        for start in range(0, len(memory), 8 << 20):
            chunk = memory[start : start + (8 << 20)]
            stream.write(chunk)
            if hinted:
                os.posix_fadvise(stream.fileno(), start, len(chunk), os.POSIX_FADV_DONTNEED)
        os.fsync(stream.fileno())


class Bench:
    """An engine with every element of its state set, and where its files go."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import LlamaConfig

        from benchmarks.plans import plan_of
        from training.checkpoints.async_save import SavePolicy
        from training.checkpoints.checkpoint import Checkpoints
        from training.config import TrainConfig
        from training.zero.ds_config import deepspeed_config, read_template
        from training.zero.engine import ZeroEngine, join_world

        world = read_world()
        assert world is not None
        enter_world(world)
        join_world(world)
        self.folder, self.world = folder, world
        train = TrainConfig(steps=1000, global_batch_rows=world.size, learning_rate=1e-5)
        plan = plan_of(train, world.size, ROW_TOKENS, steps=1000)
        config = LlamaConfig(**LLAMA)
        self.engine = ZeroEngine(config, train, plan, deepspeed_config(read_template(None), train, plan), world)
        generator = torch.Generator().manual_seed(world.rank)
        for part in self.engine.parts(writing=True):
            for tensor in part.values.values():
                tensor.normal_(0.0, 0.02, generator=generator).abs_()
        self.engine.continue_after(1)
        policy = SavePolicy(keep_last=1, keep_every_steps=None, copy_bytes=1 << 40)
        self.checkpoints = Checkpoints(folder / "ours", {}, policy, first_weights=lambda: None)  # type: ignore[arg-type,return-value]
        self.number = 0

    @property
    def state_bytes(self) -> int:
        return sum(4 * tensor.numel() for part in self.engine.parts() for tensor in part.values.values())

    def step(self) -> None:
        """Take an optimizer step on random tokens."""
        import torch

        from training.step.batches import micro_batch_of

        ids = torch.randint(0, LLAMA["vocab_size"], (1, ROW_TOKENS))
        batch = micro_batch_of(ids, torch.ones_like(ids, dtype=torch.bool), [[ROW_TOKENS]], index=0)
        self.engine.step(self.number, [batch], self.world.size * ROW_TOKENS, 1e-5, lambda stats: None)
        self.number += 1

    def copy(self) -> None:
        """Copy the state into memory that is there: the floor of being blocked."""
        assert self.checkpoints.saver.staging is not None
        self.checkpoints.saver.staging.copy(self.engine)

    def begin(self) -> None:
        from training.train_state import TrainState

        self.number += 1
        self.checkpoints.saver.begin(self.engine, TrainState(steps_done=self.number))

    def deepspeed_save(self) -> None:
        self.engine.deepspeed.save_checkpoint(str(self.folder / "deepspeed"), tag="one")

    def deepspeed_load(self) -> None:
        self.engine.deepspeed.load_checkpoint(str(self.folder / "deepspeed"), tag="one")

    def restore(self) -> None:
        self.checkpoints.restore(self.engine)

    def load(self) -> None:
        self.checkpoints.load(self.engine, *self.newest())

    def check(self) -> None:
        folder, commit = self.newest()
        if self.checkpoints.check(folder, commit, self.engine):
            raise SystemExit(f"{folder} is damaged")

    def newest(self) -> tuple[Path, Commit]:
        from training.checkpoints.layout import newest_checkpoint, read_commit

        folder = newest_checkpoint(self.folder / "ours")
        return folder, read_commit(folder)


def memcpy(bench: Bench) -> Callable[[], None]:
    """Return one copy of as many bytes as the rank's state has, both sides there before."""
    import torch

    source = torch.ones(bench.state_bytes // 4)
    target = torch.zeros_like(source)

    def copy() -> None:
        target.copy_(source)

    return copy


def stall(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each way of saving blocks, and those of steps beside a write and without one."""
    bench.begin()
    bench.checkpoints.saver.conclude()
    bare = memcpy(bench)
    bare()
    bench.step()
    taken: dict[str, list[float]] = {}

    def keep(name: str, seconds: float) -> None:
        taken.setdefault(name, []).append(seconds)

    for _ in range(rounds):
        keep("memcpy", timed(bare))
        for _ in range(STEPS_BETWEEN):
            keep("step", timed(bench.step))
        keep("ours", timed(bench.begin))
        while not bench.engine.all_reduce_max(int(bench.checkpoints.saver.pending.done())):  # type: ignore[union-attr]
            keep("step_while_writing", timed(bench.step))
        bench.checkpoints.saver.conclude()
        shutil.rmtree(bench.folder / "deepspeed", ignore_errors=True)
        keep("deepspeed", timed(bench.deepspeed_save))
    return taken


def bandwidth(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Return the seconds in which all ranks' state is durable, and in which it is read and checked again."""
    from training.checkpoints.layout import newest_checkpoint
    from training.checkpoints.shard_files import bytes_of

    bench.begin()
    bench.checkpoints.saver.conclude()
    bench.deepspeed_save()
    memory = bytes_of(bench.checkpoints.saver.staging.buffer)  # type: ignore[union-attr]
    raw = bench.folder / f"raw-{bench.world.rank}"
    taken: dict[str, list[float]] = {}

    def keep(name: str, work: Callable[[], object]) -> None:
        time.sleep(PAUSE_S)
        taken.setdefault(name, []).append(timed(work))

    def cold(name: str, work: Callable[[], object], files: Iterable[Path]) -> None:
        forget(list(files))
        keep(name, work)

    def save() -> None:
        bench.begin()
        bench.checkpoints.saver.conclude()

    for _ in range(rounds):
        raw.unlink(missing_ok=True)
        keep("write_raw", lambda: write_raw(raw, memory))
        if bench.world.is_first:
            shutil.rmtree(newest_checkpoint(bench.folder / "ours"))  # or removing it would count
        keep("write_ours", save)
        raw.unlink()
        keep("write_raw_hinted", lambda: write_raw(raw, memory, hinted=True))
        ours = list(newest_checkpoint(bench.folder / "ours").iterdir())
        cold("read_raw", lambda: read_raw(raw), [raw])
        cold("check_ours", bench.check, ours)
        cold("load_ours", bench.load, ours)
        cold("restore_ours", bench.restore, ours)
        cold("load_deepspeed", bench.deepspeed_load, (bench.folder / "deepspeed" / "one").iterdir())
    return taken


def main(case: str, folder: str, rounds: str) -> None:
    """Run one case and write what was taken, in seconds."""
    bench = Bench(Path(folder))
    taken: Any = {"stall": stall, "bandwidth": bandwidth}[case](bench, int(rounds))
    if bench.world.is_first:
        facts = {"state_mb_a_rank": bench.state_bytes / 1e6, "ranks": bench.world.size, "seconds": taken}
        (Path(folder) / "taken.json").write_text(json.dumps(facts))
    from training.zero.engine import leave_world

    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
