"""The whole pipeline on this machine, in minutes; every stage is a `shardline` command that you can type yourself.

    python examples/demo.py

Text -> shards -> a new model, killed during training and resumed -> export -> fine-tuning on questions and answers ->
evaluation -> answers to questions that are in no row -> report. Everything goes to runs/demo-base and runs/demo.
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

import shop

BASE, TUNED = Path("examples/text.yaml"), Path("examples/pairs.yaml")
CORPUS = Path("runs/demo-corpus")
TEXTS, QUESTIONS = CORPUS / "texts", CORPUS / "questions.jsonl"
KILL_AT_STEP = 130  # after the first checkpoint, before the second
IN_THE_END = """
Done in {seconds:.0f} s. Open runs/demo/report.html for the curves and the answers.

This model has 1 million parameters and knows 120 facts of one shop, and nothing else. An assistant that understands
more than it was taught starts from a pretrained model: one H200 trains a model of 1.2 billion parameters at 37,000
tokens/s (benchmarks/RESULTS.md), so 10,000 questions and answers like these, three times over, take it under a minute.

  shardline init --data YOUR.jsonl --model HuggingFaceTB/SmolLM2-135M      the same with your data
  shardline inspect runs/demo --step 7      which questions were in step 7
  sbatch -N2 launch/train.sh run.yaml       the same on a Slurm cluster
  shardline chat runs/demo                  talk to the model
"""


def main() -> int:
    began = time.monotonic()
    write_texts()
    shardline("Prepare the text: clean, tokenize and pack it with Ray", "prepare", BASE)
    train_and_kill("Train a new model, and kill every rank halfway", BASE)
    shardline("Resume it with the same command, from its newest checkpoint", "train", BASE)
    shardline("Export the model as a Hugging Face folder", "export", BASE)
    write_questions()
    shardline("Prepare them", "prepare", TUNED)
    shardline("Fine-tune the exported model on them", "train", TUNED)
    shardline("Export the tuned model", "export", TUNED)
    shardline("Score both models on the questions that were held out", "evaluate", TUNED)
    ask("Ask the tuned model questions that are in none of the rows")
    shardline("Write the report", "report", TUNED)
    say(IN_THE_END.format(seconds=time.monotonic() - began))
    return 0


def write_texts() -> None:
    """Write the documentation inside Python's standard library, one text file for each module and topic."""
    began = headline("Write a corpus: the documentation inside Python's standard library")
    TEXTS.mkdir(parents=True, exist_ok=True)
    texts = {**dict(module_texts()), **{f"topic-{name}": text for name, text in pydoc_data.topics.topics.items()}}
    for name, text in texts.items():
        (TEXTS / f"{name}.txt").write_text(text, encoding="utf-8")
    size = sum(len(text) for text in texts.values())
    say(f"{len(texts)} documents, {size / 1e6:.1f} million characters in {TEXTS}")
    footline(began)


def write_questions() -> None:
    """Write the questions and answers about a shop's stock."""
    began = headline("Write questions and answers about the stock of a shop")
    say(f"{shop.write_rows(QUESTIONS)} rows in {QUESTIONS}; not among them: {' '.join(shop.ASKED)}")
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


def ask(title: str) -> None:
    """Ask the tuned model, and count the right answers."""
    arguments = ["generate", TUNED, *(word for question in shop.ASKED for word in ("--prompt", question))]
    began = headline(title, *arguments)
    result = subprocess.run(command(*arguments), check=False, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(result.returncode)
    right = sum(answer in result.stdout.splitlines() for answer in shop.ASKED.values())
    say(f"{result.stdout.strip()}\n\n{right} of {len(shop.ASKED)} answers are right")
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
