"""A bf16 checkpoint of 2 ranks to bf16 safetensors: ours, which proves itself, and zero_to_fp32, which does not.

The checkpoint is plain DeepSpeed's; ours is made of it by `shardline checkpoint convert`'s function, so both export the
same state, and must write the same bits. Each export is a process of its own, in turns, imports included; `imports` of
both are measured beside them. Memory is above that after the imports. `checksums` is the part of ours that reads all
master weights and compares the sha256 of their files; zero_to_fp32 checks nothing.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.native_checkpoint import SIZES, llama

ROUNDS = 3
SAMPLE_S = 0.005
VARIANTS = ("shardline", "zero_to_fp32", "checksums")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one process took: CPU-seconds, and its largest anonymous and whole resident memory."""

    cpu_s: float
    wall_s: float
    anonymous_mb: float
    resident_mb: float


def status_mb(pid: int, key: str) -> float:
    """Return a size from a process's status; 0 when it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def watched(arguments: list[str]) -> Usage:
    """Run `python ARGUMENTS`, and watch its memory."""
    began, anonymous, resident = time.perf_counter(), 0.0, 0.0
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        anonymous = max(anonymous, status_mb(process.pid, "RssAnon"))
        resident = max(resident, status_mb(process.pid, "VmHWM"))
        pid, code, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(SAMPLE_S)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}: {' '.join(arguments)}")
    return Usage(
        cpu_s=usage.ru_utime + usage.ru_stime,
        wall_s=time.perf_counter() - began,
        anonymous_mb=anonymous,
        resident_mb=resident,
    )


def shardline(size: str, folder: str, output: str) -> None:
    """Export our checkpoint, or only import what that needs."""
    from transformers import AutoTokenizer

    from training.config import ExportConfig
    from training.export import export
    from training.model import ModelOrigin

    if size == "imports":
        return
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/tokenizer")
    origin = ModelOrigin(config=llama(size), tokenizer=tokenizer, folder=None)
    export(origin, Path(folder, "ours"), ExportConfig(dtype="bf16"), Path(output))


def checksums(size: str, folder: str, output: str) -> None:
    """Check the bytes of our checkpoint, from the imports of an export."""
    from training import export
    from training.checkpoint_files import newest_checkpoint

    if size != "imports":
        export.verify_checkpoint(newest_checkpoint(Path(folder, "ours")), kind="master")


def zero_to_fp32(size: str, folder: str, output: str) -> None:
    """Export DeepSpeed's checkpoint, or only import what that needs."""
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_state_dict

    if size != "imports":
        convert_zero_checkpoint_to_state_dict(f"{folder}/native", output, dtype="bf16", safe_serialization=True)


def write_checkpoints(size: str, folder: Path) -> int:
    """Write DeepSpeed's checkpoint and ours of the same state; return the number of parameters."""
    from benchmarks.english import write_tokenizer
    from training.import_deepspeed import import_deepspeed, sub_groups, tag_folder

    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    native = folder / "native"
    subprocess.run([*ranks, "-m", "benchmarks.native_checkpoint", size, str(native)], check=True, capture_output=True)
    shapes = {name: shape for group in sub_groups(tag_folder(native, None)) for name, shape in group.items()}
    import_deepspeed(native, None, folder / "ours", shapes, {})
    write_tokenizer(folder / "tokenizer")
    return sum(math.prod(shape) for shape in shapes.values())


def check_same(outputs: list[Path]) -> None:
    """Check that all have written the same tensors."""
    from safetensors import safe_open

    first, second = ({key: path for path in out.glob("*.safetensors") for key in keys_of(path)} for out in outputs)
    if first.keys() != second.keys():
        raise SystemExit(f"{outputs} hold other tensors")
    for key in first:
        with safe_open(first[key], "pt") as one, safe_open(second[key], "pt") as other:
            if not one.get_tensor(key).equal(other.get_tensor(key)):
                raise SystemExit(f"{key} differs between {outputs}")


def keys_of(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        return list(stored.keys())


def line(size: str, parameters: int, variant: str, usages: list[Usage], imports: list[Usage]) -> dict[str, object]:
    cpu, start = (statistics.median(usage.cpu_s for usage in these) for these in (usages, imports))
    before = max(usage.anonymous_mb for usage in imports)
    return {
        "case": "export",
        "variant": variant,
        "size": size,
        "parameters": parameters,
        "cpu_s": round(cpu, 2),
        "cpu_s_without_imports": round(cpu - start, 2),
        "wall_s": round(statistics.median(usage.wall_s for usage in usages), 2),
        "peak_anonymous_mb_above_imports": round(max(usage.anonymous_mb for usage in usages) - before),
        "peak_resident_mb": round(max(usage.resident_mb for usage in usages)),
    }


def main() -> None:
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            parameters = write_checkpoints(size, folder)
            taken: dict[tuple[str, str], list[Usage]] = {}
            for _ in range(ROUNDS):
                for variant in VARIANTS:
                    for what in (size, "imports"):
                        arguments = ["-m", "benchmarks.export", variant, what, name, str(folder / variant)]
                        taken.setdefault((variant, what), []).append(watched(arguments))
            check_same([folder / "shardline", folder / "zero_to_fp32"])
            for variant in VARIANTS:
                found = line(size, parameters, variant, taken[variant, size], taken[variant, "imports"])
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    {"shardline": shardline, "zero_to_fp32": zero_to_fp32, "checksums": checksums}[sys.argv[1]](*sys.argv[2:])
