"""What the preflight decides from what it found: a host's fault, everybody's, or nobody's."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.preflight.findings import Finding
from cluster.preflight.host_checks import check_code
from cluster.preflight.verdict import decide, of_working_checks

HOSTS = ("a1", "a2", "a3")


def failing(
    check: str, *hosts: str, level: Any = "failure", found: str = "it is broken", odd: tuple[str, ...] = ()
) -> Finding:
    return Finding(check=check, level=level, found=found, expected="whole", hosts=hosts, odd=odd)


@pytest.mark.parametrize("check", ["gpus", "torch", "code", "folder", "files"])
def test_what_is_wrong_on_some_hosts_is_theirs_and_on_all_nobody_s(check: str) -> None:
    assert decide([failing(check, "a2")], HOSTS, {}).broken == {"a2": f"{check}: it is broken; expected: whole"}
    everywhere = decide([failing(check, *HOSTS)], HOSTS, {})
    assert (everywhere.broken, "it is broken" in everywhere.refusal) == ({}, True)
    one_by_one = decide([failing(check, host, found=f"{host} is broken") for host in HOSTS], HOSTS, {})
    assert (one_by_one.broken, "a3 is broken" in one_by_one.refusal) == ({}, True)


@pytest.mark.parametrize("check", ["limits", "name", "caches", "network", "plan"])
def test_what_a_run_can_live_with_excludes_and_refuses_nothing(check: str) -> None:
    for finding in (failing(check, "a2"), failing(check), failing("gpus", "a2", level="warning")):
        assert decide([finding], HOSTS, {}) == decide([], HOSTS, {})


def test_a_broken_gpu_of_the_only_host_is_the_host_s_and_a_wrong_folder_is_not() -> None:
    assert list(decide([failing("gpus", "a1")], ["a1"], {}).broken) == ["a1"]
    assert decide([failing("folder", "a1")], ["a1"], {}).refusal.startswith("folder: a1: it is broken")


def test_hosts_that_say_nothing_are_named_unless_none_says_anything() -> None:
    assert decide([], HOSTS, {"a2": "no route"}).silent == {"a2": "no route"}
    assert decide([], HOSTS, dict.fromkeys(HOSTS, "no answer")) == decide([], HOSTS, {})
    both = decide([failing("gpus", "a1")], HOSTS, {"a2": "no route"})
    assert (list(both.broken), list(both.silent), both.refusal) == (["a1"], ["a2"], "")
    left = decide([failing("folder", "a1")], ["a1", "a2"], {"a2": "no route"})  # one that answers is not all
    assert (list(left.broken), left.refusal) == (["a1"], "")


def test_a_driver_that_gives_no_answer_is_a_host_s_fault_unless_it_gives_none_anywhere() -> None:
    slow = [failing("gpus", host, found=f"no answer within {n}.1 s") for n, host in enumerate(HOSTS)]
    assert decide(slow[:1], HOSTS, {}).silent == {"a1": "gpus: no answer within 0.1 s"}
    assert decide(slow, HOSTS, {}) == decide(slow[:2], HOSTS, {"a3": "no route"}) == decide([], HOSTS, {})
    assert decide([failing("gpus", *HOSTS, found="nvidia-smi: no answer within 15 s")], HOSTS, {}) == decide(
        [], HOSTS, {}
    )


def test_of_hosts_that_differ_the_few_are_to_blame_and_of_two_neither() -> None:
    code = {"code": "1", "torch": "2.13", "commit": "c"}
    hosts = {host: {"code": {**code, "torch": "9" if host == "a3" else "2.13"}} for host in HOSTS}
    assert list(decide(check_code(hosts), HOSTS, {}).broken) == ["a3"]
    two = {host: hosts[host] for host in ("a1", "a3")}
    assert "torch differs" in decide(check_code(two), tuple(two), {}).refusal
    two["a3"] = {"code": {**code, "torch": "not installed"}}  # that one cannot be right
    assert list(decide(check_code(two), tuple(two), {}).broken) == ["a3"]


def test_a_check_with_a_mistake_in_it_is_left_out_and_a_driver_that_hangs_is_not() -> None:
    facts = {
        "gpus": {"error": "KeyError: 'uuid'"},
        "folder": {"error": "OSError: [Errno 116] Stale file handle"},
        "files": {"error": "no answer within 9 s"},
        "torch": {"error": "no answer within 9 s"},  # its import
        "clock": 17.5,
    }
    working, mistakes = of_working_checks({"a1": facts})
    assert working["a1"].keys() == {"folder", "files", "clock"}
    assert mistakes == {"gpus": {"a1": "KeyError: 'uuid'"}, "torch": {"a1": "no answer within 9 s"}}
