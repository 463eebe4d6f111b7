"""A bf16 checkpoint of 2 ranks to bf16 safetensors: ours, which verifies itself, and zero_to_fp32, which does not.

The checkpoint is plain DeepSpeed's, and ours is converted from it by the function behind `shardline checkpoint
convert`: both export the same state and must write the same bits. The exports take turns, each in its own process, and
report what they used after their imports: CPU time, and memory above the level then. `checksums` is the part of ours
that reads all master weights and compares the sha256 of their files; zero_to_fp32 checks nothing.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from benchmarks.checkpoints.native_checkpoint import SIZES, llama

ROUNDS = 5
SAMPLE_S = 0.005
VARIANTS = ("shardline", "zero_to_fp32", "checksums")
Work = Callable[[], object]


def shardline(size: str, folder: Path, output: Path) -> Work:
    """Export our checkpoint."""
    from transformers import AutoTokenizer

    from training.config import ExportConfig
    from training.export.export import export
    from training.models.source import ModelOrigin

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    origin = ModelOrigin(config=llama(size), tokenizer=tokenizer, folder=None)
    return lambda: export(origin, folder / "ours", ExportConfig(dtype="bf16"), output)


def checksums(size: str, folder: Path, output: Path) -> Work:
    """Check the bytes of our checkpoint."""
    from training.checkpoints.layout import newest_checkpoint, verify

    return lambda: verify(newest_checkpoint(folder / "ours"), kind="master")


def zero_to_fp32(size: str, folder: Path, output: Path) -> Work:
    """Export DeepSpeed's checkpoint."""
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_state_dict

    return lambda: convert_zero_checkpoint_to_state_dict(
        str(folder / "native"), str(output), dtype="bf16", safe_serialization=True
    )


def status_mb(key: str) -> float:
    """Return a size from this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1]) / 1024


def measured(work: Work) -> dict[str, float]:
    """Do the work; return its CPU-seconds and how far its memory rose."""
    before_mb, before = status_mb("RssAnon"), resource.getrusage(resource.RUSAGE_SELF)
    peaks, done = [before_mb], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            peaks.append(status_mb("RssAnon"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    work()
    done.set()
    sampler.join()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "user_s": after.ru_utime - before.ru_utime,
        "system_s": after.ru_stime - before.ru_stime,
        "anonymous_mb": max(peaks) - before_mb,
        "resident_mb": status_mb("VmHWM"),
    }


def run(variant: str, size: str, folder: Path) -> dict[str, float]:
    """Run one export as a process of its own."""
    command = [sys.executable, "-m", "benchmarks.checkpoints.export", variant, size, str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    facts: dict[str, float] = json.loads((folder / "facts.json").read_text())
    return facts


def write_checkpoints(size: str, folder: Path) -> int:
    """Write DeepSpeed's checkpoint and ours of the same state; return the number of parameters."""
    from benchmarks.english import write_tokenizer
    from training.checkpoints.import_deepspeed import import_deepspeed, sub_groups, tag_folder

    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    native = folder / "native"
    subprocess.run(
        [*ranks, "-m", "benchmarks.checkpoints.native_checkpoint", size, str(native)], check=True, capture_output=True
    )
    shapes = {name: shape for group in sub_groups(tag_folder(native, None)) for name, shape in group.items()}
    import_deepspeed(native, None, folder / "ours", shapes, {})
    write_tokenizer(folder / "tokenizer")
    return sum(math.prod(shape) for shape in shapes.values())


def check_same(outputs: list[Path]) -> None:
    """Check that all have written the same tensors."""
    from safetensors import safe_open

    first, second = ({key: path for path in out.glob("*.safetensors") for key in keys_of(path)} for out in outputs)
    if first.keys() != second.keys():
        raise SystemExit(f"{outputs} hold different tensors")
    for key in first:
        with safe_open(first[key], "pt") as one, safe_open(second[key], "pt") as other:
            if not one.get_tensor(key).equal(other.get_tensor(key)):
                raise SystemExit(f"{key} differs between {outputs}")


def keys_of(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        return list(stored.keys())


def main() -> None:
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            parameters = write_checkpoints(size, folder)
            taken: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
            for _ in range(ROUNDS):
                for variant in VARIANTS:
                    taken[variant].append(run(variant, size, folder))
            check_same([folder / "shardline", folder / "zero_to_fp32"])
            for variant, found in taken.items():
                middle = {key: round(statistics.median(facts[key] for facts in found), 2) for key in found[0]}
                cpu = round(middle["user_s"] + middle["system_s"], 2)
                facts = {"variant": variant, "size": size, "parameters": parameters, "cpu_s": cpu, **middle}
                print(json.dumps({"case": "export", **facts}), flush=True)


if __name__ == "__main__":
    variant, size, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    work = {"shardline": shardline, "zero_to_fp32": zero_to_fp32, "checksums": checksums}[variant]
    facts = measured(work(size, folder, folder / variant))
    (folder / "facts.json").write_text(json.dumps(facts))
