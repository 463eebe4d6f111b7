"""How a step's time and memory grow: with the model, with the CPU ranks of ZeRO-3, and with the length of a row.

CPU-seconds are a rank's, the least of the steps. `state` is the memory that the engine holds between steps, `step` what
a step takes beyond that. The state per parameter must fall with the ranks, and what a step takes per token must not
grow with the row.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measuring import fresh_peak, machine_facts, status_bytes
from benchmarks.training.step_work import LEARNING_RATE, SHAPES, Job, Shape, Taken, tokens_of_step
from cluster.environment import enter_world, read_world
from cluster.launching.local_launcher import run_ranks

SIZES = {"3m": (128, 4), "10m": (256, 8), "32m": (512, 8), "76m": (768, 10)}  # width and layers
RANKS = (1, 2, 4)
ROWS = (1024, 2048, 4096, 8192, 16384, 32768)
AT_SIZE, AT_RANKS, AT_ROW = "10m", 2, 1024
PRECISION, STEPS, FIRST = "fp32", 3, 1
LINEAR = 1.25  # so many times as much per token, at most, as in the row in which it is least


def shape_of(size: str, row_tokens: int) -> Shape:
    """Return a Llama of about this many parameters, and rows of documents of 256 tokens."""
    width, layers = SIZES[size]
    heads = width // 64
    config = {
        **SHAPES["10m"].config,
        "hidden_size": width,
        "intermediate_size": width * 8 // 3 // 16 * 16,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": max(ROWS),
    }
    return Shape(config=config, row_tokens=row_tokens, document_tokens=256)


def rank(output: str, size: str, rows: str) -> None:
    """Take steps on rows of each of these lengths, and write what they took as OUTPUT-RANK.json."""
    from benchmarks.training.step_ranks import Levers, engine_of

    world = read_world()
    assert world is not None
    enter_world(world)
    lengths = [int(row) for row in rows.split(",")]
    job = Job(world=world, shape=shape_of(size, max(lengths)), precision=PRECISION, steps=STEPS)
    import_everything()
    before = status_bytes("RssAnon")
    engine = engine_of(job, Levers())
    engine.check_isolation([replace(job, shape=shape_of(size, min(lengths))).batch(0)])
    found = []
    for length in (min(lengths), *lengths):  # the first of all is not counted: it pays for what is allocated once
        taken = Taken()
        here = replace(job, shape=shape_of(size, length))
        peaks = []
        for step in range(STEPS):
            batch, tokens = here.batch(step), tokens_of_step(here.shape, step, world)
            start = fresh_peak()
            taken.time(lambda: engine.step(step, [batch], tokens, LEARNING_RATE, lambda stats: None).loss)  # noqa: B023
            peaks.append(status_bytes("VmHWM") - start)
        fresh_peak()  # gives back what glibc keeps of the step
        state = status_bytes("RssAnon") - before
        found.append(
            {
                "row_tokens": length,
                "cpu_s": min(taken.cpu_s[FIRST:]),
                "wall_s": min(taken.wall_s[FIRST:]),
                "state_mb": state / 1e6,
                "step_mb": max(peaks[FIRST:]) / 1e6,
                "loss": taken.losses[0],
            }
        )
    parameters = sum(slot.numel for slot in engine.layout())
    Path(f"{output}-{world.rank}.json").write_text(json.dumps({"parameters": parameters, "rows": found[1:]}))


def import_everything() -> None:
    """Import what an engine needs before its memory is measured."""
    import transformers.models.llama.modeling_llama

    import training.zero.engine  # noqa: F401

    assert transformers.models.llama.modeling_llama


def measured(size: str, ranks: int, rows: tuple[int, ...]) -> list[dict[str, Any]]:
    """Run the ranks; print a line of JSON for each length of rows and return them: what the largest rank took."""
    with tempfile.TemporaryDirectory() as folder:
        job = ["-m", "benchmarks.growth_step", f"{folder}/taken", size, ",".join(map(str, rows))]
        if run_ranks([sys.executable, *job], ranks):
            raise SystemExit(f"growth_step: the ranks of {size} failed")
        ends = [json.loads(Path(f"{folder}/taken-{number}.json").read_text()) for number in range(ranks)]
    lines = []
    for of_ranks in zip(*(end["rows"] for end in ends), strict=True):
        largest = {key: round(max(one[key] for one in of_ranks), 4) for key in of_ranks[0]}
        line = {"case": "growth_step", "size": size, "parameters": ends[0]["parameters"], "ranks": ranks, **largest}
        lines.append(line)
        print(json.dumps({**line, "precision": PRECISION, **machine_facts()}), flush=True)
    return lines


def row_of(line: dict[str, Any]) -> str:
    parameters, tokens = line["parameters"], line["row_tokens"]
    return (
        f"{parameters / 1e6:6.1f}M parameters  {line['ranks']} ranks  rows of {tokens:>6}  CPU {line['cpu_s']:.2f} s"
        f" ({line['cpu_s'] * 1e6 / tokens:.0f} us a token)  state {line['state_mb']:.0f} MB"
        f" ({line['state_mb'] * 1e6 / parameters:.1f} bytes a parameter)  step {line['step_mb']:.0f} MB"
        f" ({line['step_mb'] * 1e3 / tokens:.1f} kB a token)"
    )


def main() -> None:
    starts = [(size, AT_RANKS) for size in SIZES] + [(AT_SIZE, ranks) for ranks in RANKS if ranks != AT_RANKS]
    table = [row_of(line) for size, ranks in starts for line in measured(size, ranks, (AT_ROW,))]
    lengths = measured("3m", 1, ROWS)
    each = [line["step_mb"] / line["row_tokens"] for line in lengths]
    linear = "linear" if each[-1] <= LINEAR * min(each) else "NOT linear"
    table += [row_of(line) for line in lengths]
    print(
        "\n".join(
            [*table, f"memory of a step at {ROWS[-1]} tokens: {each[-1] / min(each):.2f} times the least, {linear}"]
        )
    )


if __name__ == "__main__":
    rank(*sys.argv[1:])
