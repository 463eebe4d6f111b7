"""Where the ranks meet: what a rank says that finds the place taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import torch

from cluster.network.world import World, rank_variables
from training.zero.engine import join_world


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def as_many_threads_after() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_port_that_is_in_use_is_named_with_what_to_do(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(rank=0, size=1, local_rank=0, local_size=1, master=("127.0.0.1", taken_port))
    for name, value in {**rank_variables(world), "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError) as caught:
        join_world(world)
    said = f"port {taken_port} of 127.0.0.1, where the ranks were to meet, is in use by another program; start the run"
    assert str(caught.value).startswith(said)
