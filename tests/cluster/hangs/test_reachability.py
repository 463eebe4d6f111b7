"""Which hosts answer: a refusal is an answer, silence is none."""

from __future__ import annotations

import socket

from cluster.hangs.reachability import unreachable
from cluster.machine import hold_port


def test_a_host_that_refuses_has_answered_and_a_name_that_nobody_knows_says_nothing() -> None:
    with hold_port() as held:
        assert unreachable(["127.0.0.1", "nowhere.invalid"], held.getsockname()[1], timeout_s=5.0) == []


def test_a_host_that_lets_a_connection_wait_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # the queue is full now: Linux drops what follows
            assert unreachable(["127.0.0.1"], port, timeout_s=0.2) == ["127.0.0.1"]
