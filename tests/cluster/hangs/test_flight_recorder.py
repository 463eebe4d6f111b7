"""What ranks wait in, from the files that torch's flight recorder writes."""

from __future__ import annotations

import io
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.hangs.flight_recorder import (
    PlainUnpickler,
    Wait,
    ask_for_dumps,
    of_all_hosts,
    read_wait,
    recorder_variables,
    waits_of,
    waits_text,
)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What torch itself has recorded of an all-reduce and a broadcast: of gloo, as NCCL needs a GPU."""
    store = tmp_path_factory.mktemp("recorder") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    try:
        dist.all_reduce(torch.ones(3))
        dist.broadcast(torch.ones(3), src=0)
        written: bytes = torch._C._distributed_c10d._dump_fr_trace()  # type: ignore[attr-defined]
        content: dict[str, Any] = PlainUnpickler(io.BytesIO(written)).load()
    finally:
        dist.destroy_process_group()
    return content


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a rank with NCCL; returns how the names of its dumps begin."""
    prefix = tmp_path / "local-1-nccl-rank"
    for name, value in recorder_variables(prefix, tmp_path).items():
        monkeypatch.setenv(name, value)
    return prefix


def dump(content: dict[str, Any], completed: int) -> bytes:
    """Return what a rank would write that has completed so many of the two collectives; gloo completes none."""
    entries = [
        {**entry, "state": "completed" if number < completed else "started"}
        for number, entry in enumerate(content["entries"][-2:])
    ]
    return pickle.dumps({**content, "entries": entries}, protocol=2)


def test_a_dump_of_torch_tells_the_oldest_collective_that_is_not_over(dumped: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(dump(dumped, 0))
    assert read_wait(path, 3) == Wait(
        rank=3, operation="all_reduce", group="the default group", number=1, is_over=False
    )
    path.write_bytes(dump(dumped, 1))
    assert read_wait(path, 3) == Wait(rank=3, operation="broadcast", group="the default group", number=2, is_over=False)
    path.write_bytes(dump(dumped, 2))
    assert read_wait(path, 3) == Wait(rank=3, operation="broadcast", group="the default group", number=2, is_over=True)


def test_a_rank_is_asked_by_its_pipe_and_what_it_writes_is_read(dumped: dict[str, Any], prefix: Path) -> None:
    pipe = prefix.parent / "nccl-1.pipe"
    os.mkfifo(pipe)
    os.mkfifo(prefix.parent / "nccl-2.pipe")  # nobody reads it: its rank has no NCCL yet
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def rank() -> None:
        while os.read(descriptor, 8) == b"":
            time.sleep(0.05)
        Path(f"{prefix}1").write_bytes(dump(dumped, 1))

    thread = threading.Thread(target=rank)
    began = time.time()
    asked = ask_for_dumps([0, 1, 2])
    thread.start()
    found = waits_of([0, 1, 2], asked, began)
    thread.join()
    os.close(descriptor)
    assert asked == [1]
    assert [(wait.rank, wait.operation) for wait in found] == [(1, "broadcast")]


def test_without_nccl_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in recorder_variables(Path("a"), Path("b")):
        monkeypatch.delenv(name, raising=False)
    assert ask_for_dumps([0, 1]) == [] and waits_of([0, 1], [], 0.0) == []


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("content", [b"", b"torn", pickle.dumps(Harmful()), pickle.dumps({"entries": [{"state": 1}]})])
def test_a_file_that_is_no_dump_is_told_and_calls_nothing(
    content: bytes, prefix: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prefix.parent)
    Path(f"{prefix}0").write_bytes(content)
    assert waits_of([0], [], 0.0) == []
    assert "not a dump of NCCL's flight recorder" in caplog.text
    assert not Path("harm").exists()


def wait(rank: int, number: int, *, is_over: bool = False) -> Wait:
    return Wait(rank=rank, operation="all_gather", group="the default group", number=number, is_over=is_over)


def test_the_verdict_puts_ranks_in_the_same_collective_together() -> None:
    waits = [*(wait(rank, 412) for rank in (0, 1, 2, 5)), wait(3, 411, is_over=True)]
    assert waits_text(waits) == (
        "ranks 0-2, 5 wait in all_gather number 412 of the default group;"
        " rank 3 is in no collective, the last was all_gather number 411 of the default group"
    )


def test_what_the_ranks_of_all_hosts_wait_in_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.hangs.flight_recorder.OTHERS_S", 0.3)
    there = of_all_hosts(tmp_path, "7-1", "b", ["a", "b"], [wait(1, 2)])
    here = of_all_hosts(tmp_path, "7-1", "a", ["a", "b", "gone"], [wait(0, 2)])
    assert there == [wait(1, 2)] and here == [wait(0, 2), wait(1, 2)]
