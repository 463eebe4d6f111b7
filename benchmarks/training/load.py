"""Memory of every rank while a pretrained model is loaded, by number of ranks and ZeRO stage.

Models are written as bf16 safetensors with random weights. Each rank samples its own /proc/self/status: `anon` is its
private memory, `file` the mapped pages of safetensors files and libraries, which ranks share. The baseline is taken
after all imports, once the ranks have joined and a tiny model was loaded in the same way. In ZeRO-3, a rank must hold
18 bytes per parameter of its shard: 2 of weight, 12 of master weight and moments, 4 of accumulated gradient.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SIZES = {  # hidden, layers: Llama, vocabulary of 8,192
    "tiny": (64, 1),
    "50M": (512, 13),
    "200M": (1024, 14),
    "500M": (1536, 16),
}
VOCABULARY, ROW_TOKENS = 8192, 64
CASES = [("zero3", 1), ("zero3", 2), ("zero3", 4), ("zero2", 2)]
SMALL_BUCKETS = 1_000_000  # the templates' own are for GPUs: gigabytes


def main() -> None:
    from cluster.launching.local_launcher import run_ranks

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size, files in (("tiny", 1), ("50M", 1), ("200M", 1), ("200M", 4), ("500M", 4)):
            model = folder / f"{size}-{files}"
            parameters = write_model(model, size, files)
            for template, ranks in CASES if size != "tiny" else []:
                output = folder / "ranks"
                output.mkdir(exist_ok=True)
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.training.load",
                    str(model),
                    str(folder / "tiny-1"),
                    template,
                ]
                if run_ranks([*command, str(output)], ranks):
                    raise SystemExit(f"failed: {command}")
                facts = [json.loads(path.read_text()) for path in sorted(output.glob("*.json"))[:ranks]]
                print(json.dumps(line(size, files, template, parameters, facts)), flush=True)
            if size != "tiny":
                (model / "model.safetensors.index.json").unlink(missing_ok=True)
                for path in model.glob("*.safetensors"):
                    path.unlink()


def line(size: str, files: int, template: str, parameters: int, facts: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "case": "load",
        "model": size,
        "parameters": parameters,
        "files": files,
        "template": template,
        "ranks": len(facts),
        "peak_anon_mb": round(max(fact["peak_anon_mb"] for fact in facts)),
        "peak_file_mb": round(max(fact["peak_file_mb"] for fact in facts)),
        "bytes_per_own_parameter": round(
            max(fact["peak_anon_mb"] for fact in facts) * 2**20 / (parameters / len(facts)), 2
        ),
        "load_s": round(max(fact["load_s"] for fact in facts), 1),
    }


def write_model(folder: Path, size: str, files: int) -> int:
    """Write a model's folder; return its number of parameters."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    from training.models.source import skeleton_of

    hidden, layers = SIZES[size]
    config = AutoConfig.for_model(
        "llama",
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=8,
        vocab_size=VOCABULARY,
        max_position_embeddings=ROW_TOKENS,
    )
    config.save_pretrained(folder)
    shapes = {name: parameter.shape for name, parameter in skeleton_of(config).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    file_of: dict[str, str] = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        tensors = {
            name: torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name in list(shapes)[number::files]
        }
        save_file(tensors, folder / file)
        file_of |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    return sum(shape.numel() for shape in shapes.values())


class Peak(threading.Thread):
    """Samples this process's memory, by kind, until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.peak = resident_mb()
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.005):
            self.peak = {kind: max(mb, self.peak[kind]) for kind, mb in resident_mb().items()}

    def stop(self) -> dict[str, float]:
        """Return the peaks, as differences to what was there when it began."""
        self.stopped.set()
        self.join()
        return {kind: self.peak[kind] - self.first[kind] for kind in self.peak}


def resident_mb() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {key: value for key, _, value in (text.partition(":") for text in lines)}
    return {kind: int(found[f"Rss{kind}"].split()[0]) / 1024 for kind in ("Anon", "File")}


def rank(model: str, warm_up: str, template: str, output: str) -> None:
    """Load a model as one rank of a world, and keep what that took."""
    from cluster.environment import enter_world, read_world

    world = read_world()
    assert world is not None
    enter_world(world)
    from training.zero.engine import join_world, leave_world

    join_world(world)
    load(Path(warm_up), template, world)
    peak = Peak()
    peak.start()
    began = time.perf_counter()
    engine = load(Path(model), template, world)
    seconds = time.perf_counter() - began
    taken = peak.stop()
    facts = {"peak_anon_mb": taken["Anon"], "peak_file_mb": taken["File"], "load_s": seconds}
    (Path(output) / f"{world.rank}.json").write_text(json.dumps(facts))
    del engine
    leave_world()


def load(folder: Path, template: str, world: Any) -> Any:
    """Return an engine that holds a folder's weights."""
    from transformers import AutoConfig

    from benchmarks.plans import plan_of
    from training.config import TrainConfig
    from training.models.source import ModelOrigin
    from training.zero.ds_config import DEFAULT_TEMPLATE, deepspeed_config, read_template
    from training.zero.engine import ZeroEngine

    train = TrainConfig(global_batch_rows=world.size)
    origin = ModelOrigin(config=AutoConfig.from_pretrained(folder), tokenizer=None, folder=folder)
    plan = plan_of(train, world.size, ROW_TOKENS, steps=1)
    chosen = read_template(DEFAULT_TEMPLATE.parent / f"{template}.json")
    zero = chosen["zero_optimization"]
    zero |= {key: SMALL_BUCKETS for key in zero if key.endswith("bucket_size")}
    engine = ZeroEngine(origin.config, train, plan, deepspeed_config(chosen, train, plan), world)
    engine.start_from(origin.first_weights(0))
    return engine


if __name__ == "__main__":
    rank(*sys.argv[1:])
