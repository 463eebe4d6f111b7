"""The interface that leads to the other hosts; tests/slurm/ has hosts that know themselves as 127.0.1.1."""

from __future__ import annotations

import pytest

from cluster.network.interfaces import interface_of, interface_towards, main, own_address_towards


def test_an_address_is_found_on_its_interface() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


def test_a_host_that_resolves_to_this_one_tells_no_interface() -> None:
    assert own_address_towards("127.0.1.1") is not None
    assert interface_towards(["127.0.1.1", "no-such-host.invalid"]) is None


def test_the_address_of_a_host_that_is_alone_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("127.0.1.1") == 0
    assert capsys.readouterr().out == f"{own_address_towards('127.0.1.1')}\n"
    assert main("no-such-host.invalid") == 1
