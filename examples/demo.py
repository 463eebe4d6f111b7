"""The whole pipeline on this machine, in minutes; every stage is a `shardline` command that you can type yourself.

    python examples/demo.py

Corpus -> shards -> a new model, killed during training and resumed -> export -> fine-tuning on
conversations -> evaluation -> answers -> report. Everything goes to runs/demo-base and runs/demo.
"""

from __future__ import annotations

import ast
import os
import pydoc_data.topics
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

BASE, TUNED = Path("examples/pretrain.yaml"), Path("examples/boutique.yaml")
CORPUS = Path("runs/demo-corpus")
KILL_AT_STEP = 130  # after the first checkpoint, before the second
QUESTIONS = [
    "What are your opening hours?",
    "Can I return a dress after two weeks?",
    "How much is gift wrapping?",
    "Hello! I need a present for my sister.",
]


def main() -> int:
    began = time.monotonic()
    write_corpus()
    shardline("Prepare the text: clean, tokenize and pack it with Ray", "prepare", BASE)
    train_and_kill("Train a new model, and kill every rank halfway", BASE)
    shardline("Resume it with the same command, from its newest checkpoint", "train", BASE)
    shardline("Export the model as a Hugging Face folder", "export", BASE)
    shardline("Prepare the conversations", "prepare", TUNED)
    shardline("Fine-tune the exported model on them", "train", TUNED)
    shardline("Export the tuned model", "export", TUNED)
    shardline("Score both models on held-out conversations", "evaluate", TUNED)
    prompts = [word for question in QUESTIONS for word in ("--prompt", question)]
    shardline("Ask the tuned model", "generate", TUNED, *prompts)
    shardline("Write the report", "report", TUNED)
    say(f"\nDone in {time.monotonic() - began:.0f} s. Open runs/demo/report.html. Next:")
    say(f"  shardline generate {TUNED} --prompt 'Do you ship abroad?'")
    say(f"  shardline inspect {TUNED} --step 7          which conversations were in step 7")
    say("  shardline init conversations --data YOUR.jsonl --model HuggingFaceTB/SmolLM2-135M")
    say("  sbatch -N2 launch/train.sh run.yaml         the same on a Slurm cluster")
    return 0


def write_corpus() -> None:
    """Write the documentation inside Python's standard library, one text file for each module and topic."""
    began = headline("Write a corpus: the documentation inside Python's standard library")
    CORPUS.mkdir(parents=True, exist_ok=True)
    texts = {**dict(module_texts()), **{f"topic-{name}": text for name, text in pydoc_data.topics.topics.items()}}
    for name, text in texts.items():
        (CORPUS / f"{name}.txt").write_text(text, encoding="utf-8")
    size = sum(len(text) for text in texts.values())
    say(f"{len(texts)} documents, {size / 1e6:.1f} million characters in {CORPUS}")
    footline(began)


def module_texts() -> Iterator[tuple[str, str]]:
    """Yield the name and the docstrings of every top-level module that has some."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        nodes = ast.walk(ast.parse(path.read_bytes()))
        holders = [node for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        text = "\n\n".join(doc for node in holders if (doc := ast.get_docstring(node)) and len(doc) > 80)
        if text:
            yield path.stem, text + "\n"


def shardline(title: str, *arguments: str | Path) -> None:
    """Run one command and print how long it took; a command that fails ends the demo with its exit code."""
    began = headline(title, *arguments)
    code = subprocess.run(command(*arguments), check=False).returncode
    if code:
        raise SystemExit(code)
    footline(began)


def train_and_kill(title: str, run: Path) -> None:
    """Start training; at KILL_AT_STEP steps in metrics.jsonl, kill the ranks as a power cut would."""
    began = headline(title, "train", run)
    metrics = Path("runs/demo-base/metrics.jsonl")
    process = subprocess.Popen(command("train", run))
    while process.poll() is None and steps_in(metrics) < KILL_AT_STEP:
        time.sleep(0.1)
    if process.poll() is None:
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for rank in ranks:
            os.kill(int(rank), signal.SIGKILL)
        say(f"sent SIGKILL to the ranks: {', '.join(ranks)}")
    code = process.wait()
    if steps_in(metrics) < KILL_AT_STEP:  # it ended by itself, too early to be killed
        raise SystemExit(code or 1)
    footline(began)


def steps_in(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "launch", *map(str, arguments)]


def headline(title: str, *arguments: str | Path) -> float:
    say(f"\n== {title}")
    if arguments:
        say("$ " + shlex.join(["shardline", *map(str, arguments)]))
    return time.monotonic()


def footline(began: float) -> None:
    say(f"-- {time.monotonic() - began:.1f} s")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
