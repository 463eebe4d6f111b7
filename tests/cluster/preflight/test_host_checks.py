"""What hosts are like is judged by facts alone: the facts of this machine, with one of them changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.preflight.findings import Finding, as_text
from cluster.preflight.host_checks import (
    check_caches,
    check_clocks,
    check_code,
    check_files,
    check_folder,
    check_limits,
    check_name,
)
from cluster.preflight.host_probes import (
    filesystem_of,
    probe_caches,
    probe_code,
    probe_files,
    probe_folder,
    probe_limits,
    probe_name,
)
from cluster.preflight.meeting import meeting_in, unseen_in
from cluster.preflight.network_checks import check_network
from cluster.preflight.slurm_facts import check_slurm, seconds_of

GOOD_LIMITS = {
    "open_files": 65536,
    "open_files_hard": 1 << 20,
    "locked_bytes": None,
    "core_bytes": 0,
    "file_bytes": None,
    "shared_memory_bytes": 8 << 30,
    "shared_memory_free_bytes": 8 << 30,
    "has_infiniband": True,
}
NAME = {"name": "node2", "addresses": ["10.0.0.2"], "interfaces": {"lo": "127.0.0.1", "ib0": "10.0.0.2"}}
JOB = {"job": "7", "is_batch": True, "may_requeue": True, "problem": None, "left_s": 7200.0, "left_over": []}


@pytest.fixture(scope="module")
def code() -> dict[str, str]:
    return probe_code()


def only(findings: list[Finding], level: str) -> Finding:
    """Return the one finding there is, after a look at its level and whether it says what to do."""
    assert [finding.level for finding in findings] == [level], findings
    assert level == "ok" or (findings[0].expected and findings[0].next_step)
    return findings[0]


def test_what_is_measured_here_fits_what_is_judged(code: dict[str, str], tmp_path: Path) -> None:
    hosts = {
        "here": {
            "code": code,
            "limits": probe_limits(),
            "name": probe_name(["localhost"]),
            "caches": probe_caches(),
            "folder": probe_folder(tmp_path, None),
            "files": probe_files(None, tmp_path / "manifest.json"),
        }
    }
    assert GOOD_LIMITS.keys() == hosts["here"]["limits"].keys()
    checks = (check_code, check_limits, check_name, check_caches, check_files)
    found = [finding for check in checks for finding in check(hosts)] + check_folder(hosts, 1)
    assert {"code", "limits", "name", "caches", "files", "folder"} == {finding.check for finding in found}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "level"), [("code", "failure"), ("torch", "failure"), ("python", "warning")])
def test_a_host_with_another_version_is_named(code: dict[str, str], name: str, level: str) -> None:
    hosts = {f"node{n}": {"code": {**code, name: "9.9" if n == 3 else "1.0"}} for n in range(1, 5)}
    assert only(check_code(hosts), level).found.endswith("differs: node3: 9.9; node1, node2, node4: 1.0")


@pytest.mark.parametrize(
    ("fault", "level", "message"),
    [
        ({"open_files": 256}, "failure", "256 open files are allowed"),
        ({"open_files": 1024, "open_files_hard": 2048}, "warning", "1,024 open files"),
        ({"core_bytes": None}, "warning", "a core of up to any size"),
        ({"locked_bytes": 65536}, "failure", "locked memory is limited to 65.5 kB"),
        (
            {"shared_memory_bytes": 64 << 20, "shared_memory_free_bytes": 60 << 20},
            "failure",
            "/dev/shm has 62.9 MB free",
        ),
        ({"shared_memory_free_bytes": 500 << 20}, "warning", "/dev/shm has 524.3 MB free of 8.6 GB"),
        ({"locked_bytes": 65536, "has_infiniband": False}, "ok", "open files 65,536"),
    ],
)
def test_a_limit_that_is_too_low_is_told_with_its_remedy(fault: dict[str, Any], level: str, message: str) -> None:
    assert message in only(check_limits({"node1": {"limits": GOOD_LIMITS | fault}}), level).found


def test_a_host_that_knows_itself_as_127_0_1_1_is_told_the_interface_to_set() -> None:
    facts = {**NAME, "addresses": ["127.0.1.1"], "suggested": "ib0", "set": {}}
    good = {**NAME, "name": "node1", "suggested": "ib0", "set": {}}
    finding = only(check_name({"node1": {"name": good}, "node2": {"name": facts}}), "warning")
    assert finding.hosts == ("node2",)
    assert "resolves to 127.0.1.1" in finding.found
    assert "launch/train.sh uses ib0; elsewhere export GLOO_SOCKET_IFNAME=ib0" in finding.next_step
    lost = {**facts, "suggested": None}  # the ranks find none either
    assert "=INTERFACE" in only(check_name({"node1": {"name": good}, "node2": {"name": lost}}), "failure").next_step
    only(check_name({"node2": {"name": facts}}), "ok")  # alone, nobody else has to reach it
    was_set = {**facts, "set": {"GLOO_SOCKET_IFNAME": "ib0"}}
    only(check_name({"node1": {"name": good}, "node2": {"name": was_set}}), "ok")


def test_an_interface_that_is_not_there_is_a_failure() -> None:
    facts = {**NAME, "suggested": "ib0", "set": {"NCCL_SOCKET_IFNAME": "eth7"}}
    assert "NCCL_SOCKET_IFNAME=eth7" in only(check_name({"node2": {"name": facts}}), "failure").found
    only(check_name({"node2": {"name": {**facts, "set": {"NCCL_SOCKET_IFNAME": "^docker,lo"}}}}), "ok")


def test_a_clock_that_is_off_is_named_and_by_how_much() -> None:
    assert only(check_clocks({"a": 0.0, "b": -4.2}), "warning").found == "its clock is 4 s behind the first host's"
    assert only(check_clocks({"a": 0.0, "b": 3600.0}), "failure").hosts == ("b",)
    only(check_clocks({"a": 0.0, "b": 0.3}), "ok")


def test_a_folder_that_is_not_shared_is_found_from_both_sides(tmp_path: Path) -> None:
    with meeting_in(tmp_path / "runs" / "one") as meeting:
        assert meeting is not None
        seen = probe_folder(tmp_path / "runs" / "one", meeting)
        elsewhere = {**seen, "left": "node2-1"}  # it wrote to a folder of the same name on its own disk
        unmounted = probe_folder(tmp_path / "runs" / "one", tmp_path / "private" / meeting.name)
        hosts = {"node1": {"folder": seen}, "node2": {"folder": elsewhere}, "node3": {"folder": unmounted}}
        assert unseen_in(meeting, hosts) == ["node2"]
        findings = check_folder(hosts, None, unseen_in(meeting, hosts))
    assert [(f.level, f.hosts) for f in findings] == [("failure", ("node3",)), ("failure", ("node2",))]
    assert all("is not shared" in finding.found for finding in findings)
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_folder_without_room_for_the_checkpoints_is_a_failure(tmp_path: Path) -> None:
    hosts = {"a": {"folder": probe_folder(tmp_path / "run", None)}}
    assert "the checkpoints still need 1000000.0 TB" in only(check_folder(hosts, 10**18), "failure").found
    only(check_folder(hosts, 10), "ok")


def test_a_folder_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    with meeting_in(Path("/proc/no/such")) as meeting:
        hosts = {"a": {"folder": probe_folder(Path("/proc/no/such"), meeting)}}
    assert meeting is None
    assert "/proc/no/such cannot be written to" in only(check_folder(hosts, None), "failure").found


def test_a_file_in_the_folder_s_place_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with meeting_in(tmp_path / "run") as meeting:
        hosts = {"a": {"folder": probe_folder(tmp_path / "run", meeting)}}
    assert "run is a file" in only(check_folder(hosts, None), "failure").found


def test_a_model_that_only_the_network_has_is_told_by_whether_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    facts = probe_files("nobody/no-such-model", tmp_path / "manifest.json")
    only(check_files({"a": {"files": facts}}), "warning")
    offline = only(check_files({"a": {"files": {**facts, "is_offline": True}}}), "failure")
    assert "HF_HUB_OFFLINE is set" in offline.found
    assert "hf download nobody/no-such-model" in offline.next_step
    missing = probe_files(str(tmp_path / "model"), tmp_path / "manifest.json")
    assert "holds no config.json here" in only(check_files({"a": {"files": missing}}), "failure").found


def test_data_that_one_host_does_not_see_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    here, there = (probe_files(None, tmp_path / name) for name in ("manifest.json", "none"))
    finding = only(check_files({"a": {"files": here}, "b": {"files": there}, "c": {"files": here}}), "failure")
    assert finding.found.startswith("the prepared data differs: b: missing")


def test_a_compile_cache_on_a_network_disk_is_a_warning() -> None:
    caches = {"TRITON_CACHE_DIR": {"path": "/home/me/.triton/cache", "filesystem": "nfs4"}}
    assert "on nfs4" in only(check_caches({"a": {"caches": caches}}), "warning").found


def test_the_file_system_of_a_path_is_that_of_its_innermost_mount() -> None:
    assert filesystem_of(Path("/proc/self")) == "proc"


def measured(rates: list[float], **changes: Any) -> dict[str, dict[str, Any]]:
    return {
        f"node{n}": {"is_sum_right": True, "from_previous_mb_per_s": rate, "nccl": "none", **changes}
        for n, rate in enumerate(rates)
    }


@pytest.mark.parametrize(
    ("rates", "named"),
    [
        ([900, 900, 900, 900], []),
        ([900, 8, 8, 900], [("node1",)]),  # what it receives and what the next one receives from it
        ([8, 900, 900, 8], [("node3",)]),
        ([900, 900, 8, 900], [("node1", "node2")]),  # one link: either of them
        ([8, 8], [("node0", "node1")]),
    ],
)
def test_the_slow_host_of_a_ring_is_named(rates: list[float], named: list[tuple[str, ...]]) -> None:
    facts = measured(rates)
    findings = check_network(list(facts), facts, {}, 50.0)
    assert [finding.hosts for finding in findings if finding.level == "failure"] == named


def test_a_host_that_does_not_come_to_the_all_reduce_is_named_with_srun_s_words() -> None:
    facts = measured([900, 900])
    finding = only(check_network(["node0", "node1", "node9"], facts, {"node9": "it did not answer"}, 50.0), "failure")
    assert (finding.hosts, finding.found) == (("node9",), "no all-reduce: it did not answer")


def test_nccl_that_hangs_or_fails_is_a_failure_though_gloo_is_right() -> None:
    for state, message in (("begun", "by NCCL: it did not answer"), ("unhandled system error", "unhandled system")):
        facts = measured([900, 900])
        facts["node1"]["nccl"] = state
        findings = check_network(list(facts), facts, {"node1": "it did not answer"}, 50.0)
        assert message in only(findings, "failure").found
    fast = measured([900, 900], nccl=24000.0)
    assert "NCCL 24,000 MB/s" in only(check_network(list(fast), fast, {}, 50.0), "ok").found


@pytest.mark.parametrize(
    ("fault", "level", "message"),
    [
        ({}, "ok", "job 7 may be requeued; 120 minutes left"),
        ({"may_requeue": False}, "warning", "job 7 may not be requeued"),
        ({"problem": "no answer"}, "warning", "no answer"),
        ({"is_batch": False, "may_requeue": False}, "ok", "job 7 is interactive"),
        ({"left_s": 90.0}, "warning", "the time limit ends this job in 90 s"),
        ({"left_over": ["SLURM_CPU_BIND"]}, "warning", "SLURM_CPU_BIND set: options of an outer srun"),
    ],
)
def test_what_slurm_says_of_the_job_is_judged(fault: dict[str, Any], level: str, message: str) -> None:
    assert message in only(check_slurm({"a": {"slurm": JOB | fault}}), level).found


def test_the_times_of_slurm_are_understood() -> None:
    assert [seconds_of(text) for text in ("1-02:00:00", "00:01:30", "UNLIMITED", "")] == [93600.0, 90.0, None, None]


def test_a_report_fits_into_80_columns() -> None:
    facts = {f"host-with-a-long-name-{n:03}": {"limits": GOOD_LIMITS | {"open_files": 256}} for n in range(40)}
    text = as_text(check_limits(facts), len(facts), 3.0)
    assert max(map(len, text.splitlines())) <= 80
    assert "and 36 more" in " ".join(text.split())
