"""Ctrl-C ends a preparation with one line, and no process of it remains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from data_prep.encode.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def test_ctrl_c_ends_a_preparation_with_one_line_and_leaves_nothing_running(
    tmp_path: Path, lines_file: Callable[..., Path]
) -> None:
    """SIGINT goes to every process of the terminal, as soon as both workers are there."""
    train_tokenizer(["The geese sing over the lazy dog. " * 9], 400).save_pretrained(tmp_path / "tokenizer")
    rows = lines_file(*({"text": f"{n} geese sing over the lazy dog. " * 300} for n in range(1500)))
    (tmp_path / "run.yaml").write_text(
        f"name: interrupted\nfolder: {tmp_path}/run\ndata:\n  sources: [{{path: {rows}}}]\n  executor: local\n"
        f"  workers: 2\n  slice_bytes: 500000\n  tokenizer: {{path: {tmp_path}/tokenizer}}\nmodel:\n  new:\n"
        "    model_type: llama\n    config: {hidden_size: 64}\n"
    )
    command = [sys.executable, "-m", "launch", "prepare", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(group(process.pid)) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)  # itself, what tracks its resources, and two workers
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=120)

    assert process.returncode == 130
    assert "Traceback" not in told
    assert told.splitlines()[-1].endswith("E interrupted")
    assert told.count("interrupted") == 1
    deadline = time.monotonic() + 60
    while group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)  # what tracks resources ends when it has seen that its process is gone
    assert not group(process.pid)


def group(leader: int) -> list[int]:
    """Return the living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(process_group) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found
