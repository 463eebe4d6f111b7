"""Seconds from a command to the first step: of a new run, and of one killed with SIGKILL, in turns.

Ours, transformers' Trainer with DeepSpeed, and the floor: only the imports of torch, DeepSpeed and the model's class,
in as many processes.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cluster.journal.records import read_lines

RANKS, ROUNDS, ROW_TOKENS = 2, 3, 64
MODEL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}  # 26 million
IMPORTS = "import torch, deepspeed; from transformers import LlamaForCausalLM"


def until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> float:
    """Return the seconds until something is there."""
    started = time.perf_counter()
    while not ready():
        if process.poll() is not None:
            raise SystemExit(f"exited with {process.returncode} before it was ready: {process.args!r}")
        time.sleep(0.005)
    return time.perf_counter() - started


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen([sys.executable, *command], stdout=stream, stderr=stream, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and all it has started, and wait until they are gone."""
    everything = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in everything:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(everything)


def floor() -> float:
    """Return the seconds of the imports alone, in as many processes at once."""
    started = time.perf_counter()
    processes = [subprocess.Popen([sys.executable, "-c", IMPORTS], stderr=subprocess.DEVNULL) for _ in range(RANKS)]
    for process in processes:
        process.wait()
    return time.perf_counter() - started


class Ours:
    """A run of ours on a small corpus."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.phases = folder, list[dict[str, float]]()
        (folder / "text.txt").write_text("\n".join(f"line {n}: {n * n} is the square of {n}." for n in range(20_000)))
        values = {
            "name": "restart",
            "folder": str(folder / "run"),
            "data": {
                "sources": [{"path": str(folder / "text.txt")}],
                "row_tokens": ROW_TOKENS,
                "tokenizer": {"train": {"vocab_size": 512}},
                "validation_fraction": 0,
            },
            "model": {"new": {"model_type": "llama", "config": {**MODEL, "max_position_embeddings": ROW_TOKENS}}},
            "train": {"steps": 1000, "global_batch_rows": RANKS, "save_every_steps": 3, "keep_last": 1},
        }
        self.yaml = folder / "run.yaml"
        self.yaml.write_text(json.dumps(values))
        subprocess.run([sys.executable, "-m", "launch", "prepare", str(self.yaml)], check=True, capture_output=True)

    def first_step(self, *, resume: bool) -> float:
        """Return the seconds until the first line of metrics of this start."""
        run = self.folder / "run"
        if not resume:
            for name in ("checkpoints", "metrics.jsonl", "attempts.jsonl"):
                shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink(missing_ok=True)

        def starts() -> list[dict[str, Any]]:
            return [line for line in read_lines(run / "attempts.jsonl") if line["event"] == "start"]

        before = len(starts())

        def stepped() -> bool:
            lines = starts()
            steps = [line["step"] for line in read_lines(run / "metrics.jsonl")]
            return len(lines) > before and bool(steps) and steps[-1] > lines[-1]["step"]

        process = start(["-m", "launch", "train", str(self.yaml), "--ranks", str(RANKS)], self.folder / "ours.log")
        seconds = until(stepped, process)
        until(lambda: any((run / "checkpoints").glob("step-*[0-9]/commit.json")), process)
        end(process)
        self.phases.append(starts()[-1]["phases"])
        return seconds


class Peer:
    """The same model under transformers' Trainer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def first_step(self, *, resume: bool) -> float:
        """Return the seconds until its first step is done."""
        (self.folder / "first").unlink(missing_ok=True)
        if not resume:
            shutil.rmtree(self.folder / "peer", ignore_errors=True)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
        model = json.dumps({**MODEL, "vocab_size": 512, "max_position_embeddings": ROW_TOKENS})
        peer = ["-m", "benchmarks.checkpoints.restart_peer", str(self.folder), model, str(ROW_TOKENS), "1000"]
        process = start([*torchrun, *peer, "resume" if resume else "new"], self.folder / "peer.log")
        seconds = until((self.folder / "first").exists, process)
        until(lambda: any((self.folder / "peer").glob("checkpoint-*/trainer_state.json")), process)
        end(process)
        return seconds


def main(case: str) -> None:
    """Print the medians, and the ratios that matter."""
    with tempfile.TemporaryDirectory() as place:
        ours, peer = Ours(Path(place)), Peer(Path(place))
        taken: dict[str, list[float]] = {"imports": [], "ours": [], "trainer": []}
        for turn in range(ROUNDS + 1):
            if turn == 0 or case == "coldstart":
                seconds = {"ours": ours.first_step(resume=False), "trainer": peer.first_step(resume=False)}
            if turn and case == "resume":
                seconds = {"ours": ours.first_step(resume=True), "trainer": peer.first_step(resume=True)}
            if turn:
                taken["imports"].append(floor())
                for name, value in seconds.items():
                    taken[name].append(value)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    for name, value in middle.items():
        print(json.dumps({"case": case, "what": name, "s": round(value, 2), "times": ROUNDS}))
    for name in ours.phases[0]:
        phase_s = statistics.median(phases[name] for phases in ours.phases[1:])
        print(json.dumps({"case": case, "what": f"ours, of a rank: {name}", "s": round(phase_s, 2)}))
    ratios = {
        "ours_by_imports": middle["ours"] / middle["imports"],
        "ours_by_trainer": middle["ours"] / middle["trainer"],
    }
    print(json.dumps({"case": case, **{name: round(value, 2) for name, value in ratios.items()}}))
