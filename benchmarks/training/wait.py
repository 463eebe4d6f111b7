"""How long a step waits for its data: the share of `data_wait_s` in real training on two CPU ranks."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.english import write_english
from cluster.journal.records import read_lines

STEPS, WARM_UP = 60, 8  # the first steps also pay for what is loaded and compiled once
RUN = """
name: wait
data:
  sources: [{{path: {folder}/text.jsonl}}]
  row_tokens: 256
  tokenizer: {{train: {{vocab_size: 2048}}}}
model:
  new:
    model_type: llama
    config: {{hidden_size: 128, intermediate_size: 384, num_hidden_layers: 4, num_attention_heads: 4}}
train: {{steps: {steps}, global_batch_rows: 8, micro_batch_rows: 2, save_every_steps: {steps}}}
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_english(folder / "text.jsonl", 4_000_000)
        (folder / "run.yaml").write_text(RUN.format(folder=folder, steps=STEPS))
        for verb in (["prepare"], ["train", "--ranks", "2"]):
            command = [sys.executable, "-m", "launch", verb[0], str(folder / "run.yaml"), *verb[1:]]
            subprocess.run(command, check=True, stdout=sys.stderr, cwd=folder)
        (metrics,) = folder.rglob("metrics.jsonl")
        lines = read_lines(metrics)[WARM_UP:]
        waited, took = (sum(line[key] for line in lines) for key in ("data_wait_s", "step_s"))
        print(
            json.dumps(
                {
                    "case": "wait",
                    "ranks": 2,
                    "steps": len(lines),
                    "step_s": round(statistics.median(line["step_s"] for line in lines), 4),
                    "data_wait_s": round(statistics.median(line["data_wait_s"] for line in lines), 6),
                    "share": round(waited / took, 6),
                    "largest_data_wait_s": max(line["data_wait_s"] for line in lines),
                }
            )
        )
