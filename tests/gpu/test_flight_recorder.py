"""A collective that waits on a GPU is found in what NCCL's flight recorder writes when it is asked."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cluster.environment import child_environment
from cluster.hangs.flight_recorder import ask_for_dumps, recorder_variables, waits_of
from cluster.machine import hold_port

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch sees on this machine"),
]

RANK = """
import sys, time, torch, torch.distributed as dist
dist.init_process_group("nccl", init_method=sys.argv[1], rank=0, world_size=1)
ones = torch.ones(4, device="cuda")
dist.all_reduce(ones)
torch.cuda.synchronize()
torch.cuda._sleep(60 * 10**9)
dist.broadcast(ones, src=0)
print("waits", flush=True)
time.sleep(600)
"""


def test_what_a_rank_waits_in_is_read_from_its_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = recorder_variables(tmp_path / "dump-", tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    held = hold_port()
    command = [sys.executable, "-c", RANK, f"tcp://127.0.0.1:{held.getsockname()[1]}"]
    with held, subprocess.Popen(command, env=child_environment({}), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "waits\n"
            began = time.time()
            asked = ask_for_dumps([0])
            (wait,) = waits_of([0], asked, began)
        finally:
            process.kill()
    assert asked == [0]
    assert (wait.operation, wait.is_over, wait.group) == ("broadcast", False, "the default group")
