"""What is wrong with GPUs is seen in what nvidia-smi and the kernel say: a fake nvidia-smi on PATH says it here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.preflight import gpu_probes
from cluster.preflight.deadline import answers
from cluster.preflight.findings import Finding, exit_code_of_findings
from cluster.preflight.gpu_checks import check_gpus, check_torch
from cluster.preflight.gpu_probes import probe_gpus

H100 = "{index}, GPU-{index}abc, NVIDIA H100 80GB HBM3, 550.90.07, 81559, {used}, {mig}"
SMI = """#!/bin/sh
case "$*" in
*--query-gpu=index*) cat {folder}/gpus ;;
*--query-gpu=ecc*) cat {folder}/health ;;
*--query-compute*) cat {folder}/processes ;;
esac
"""


def gpu(index: int = 0, used: int = 4, mig: str = "Disabled") -> str:
    return H100.format(index=index, used=used, mig=mig)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a fake nvidia-smi and dmesg on PATH, which say what is given."""

    def make(gpus: list[str], health: str = "0, No, No, No", processes: str = "", dmesg: str = "") -> None:
        for name, text in (("gpus", "\n".join(gpus)), ("processes", processes), ("dmesg_text", dmesg)):
            (tmp_path / name).write_text(text + "\n")
        (tmp_path / "health").write_text("\n".join([health] * len(gpus)) + "\n")
        program(tmp_path / "nvidia-smi", SMI.format(folder=tmp_path))
        program(tmp_path / "dmesg", f"#!/bin/sh\ncat {tmp_path}/dmesg_text\n")

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_probes, "XID_S", float("inf"))  # the test's machine may have been up for longer
    return make


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def found_here() -> list[Finding]:
    return check_gpus({"node1": {"gpus": probe_gpus()}})


def test_healthy_free_gpus_are_ok(machine: Any) -> None:
    machine([gpu(0), gpu(1)])
    assert [(f.level, f.found) for f in found_here()] == [
        ("ok", "2 NVIDIA H100 80GB HBM3, healthy and free; driver 550.90.07")
    ]


@pytest.mark.parametrize(
    ("fault", "level", "message"),
    [
        ({"health": "3, No, No, No"}, "failure", "GPU 0 has had 3 uncorrected memory errors since its reset"),
        ({"health": "0, No, Yes, No"}, "failure", "GPU 0 could not remap a damaged row of its memory"),
        ({"health": "0, Yes, No, No"}, "warning", "GPU 0 waits for a reset to remap damaged memory"),
        ({"gpus": [gpu(mig="Enabled")]}, "failure", "GPU 0 is divided into MIG instances"),
        ({"gpus": [gpu(used=40000)]}, "failure", "40,000 MiB are in use, by a process that nvidia-smi does not show"),
        (
            {"gpus": [gpu(used=900)], "processes": "GPU-0abc, 4711, python, 890"},
            "warning",
            "900 MiB are in use by python (process 4711)",
        ),
        (
            {"gpus": [gpu(), "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost. Reboot"]},
            "failure",
            "nvidia-smi: Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost",
        ),
        (
            {"gpus": [H100.format(index=0, used="[GPU requires reset]", mig="Disabled")]},
            "failure",
            "GPU 0: nvidia-smi gives [GPU requires reset] for memory.used",
        ),
        ({"dmesg": "[  1.5] NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off"}, "warning", "Xid 79 in the last day"),
    ],
    ids=["ECC", "failed remapping", "pending remapping", "MIG", "in use", "a process", "lost", "needs a reset", "Xid"],
)
def test_a_fault_of_a_gpu_is_named(machine: Any, fault: dict[str, Any], level: str, message: str) -> None:
    machine(**{"gpus": [gpu()], **fault})
    findings = found_here()
    assert [f.level for f in findings] == [level]
    assert message in findings[0].found
    assert findings[0].expected and findings[0].next_step
    assert exit_code_of_findings(findings) == (2 if level == "failure" else 0)


def test_errors_of_programs_and_what_a_driver_cannot_tell_are_no_fault(machine: Any) -> None:
    machine([gpu()], health="[N/A], [N/A], [N/A], [N/A]", dmesg="[  1.5] NVRM: Xid (PCI:0000:3b:00): 31, pid=1")
    assert [f.level for f in found_here()] == ["ok"]


def test_what_computes_on_a_gpu_may_remain_untold(machine: Any, tmp_path: Path) -> None:
    machine([gpu()])
    script = (tmp_path / "nvidia-smi").read_text()
    (tmp_path / "nvidia-smi").write_text(script.replace(f"cat {tmp_path}/processes", "echo no permission; exit 4"))
    assert [f.level for f in found_here()] == ["ok"]


def test_another_s_gpu_is_not_ours_to_judge(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([gpu(0), gpu(1, used=40000)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [f.level for f in found_here()] == ["ok"]


def test_one_mig_instance_of_one_host_is_told_and_several_are_refused(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine([gpu()])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-4711")
    assert [f.level for f in found_here()] == ["warning"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-4711,MIG-4712")
    assert [f.level for f in found_here()] == ["failure"]


def test_gpus_of_another_maker_are_not_taken_for_missing(
    tmp_path: Path, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine([])
    (tmp_path / "nvidia-smi").unlink()
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    assert [(f.level, f.found) for f in found_here()] == [("failure", "0 of 8 GPUs are seen")]
    monkeypatch.setattr(gpu_probes, "AMD", tmp_path)
    assert [f.level for f in found_here()] == ["warning"]


def test_nvidia_smi_on_a_host_without_gpus_is_no_failure_unless_slurm_gave_some(
    tmp_path: Path, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine([])
    monkeypatch.setattr(gpu_probes, "gpus_of_host", lambda: 0)
    program(tmp_path / "nvidia-smi", "#!/bin/sh\necho 'No devices were found'; exit 6\n")
    assert [(f.level, f.found) for f in found_here()] == [("warning", "nvidia-smi: No devices were found")]
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert [f.level for f in found_here()] == ["failure"]


def test_fewer_gpus_than_slurm_has_given_are_a_failure(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([gpu()])
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert [(f.level, f.found) for f in found_here()] == [("failure", "1 of 2 GPUs is seen")]


def test_a_driver_that_fails_or_hangs_is_a_failure(
    tmp_path: Path, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine([])
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    row = gpu(1)  # of the other GPU, which still answers
    lost = "Unable to determine the device handle for GPU0"
    program(tmp_path / "nvidia-smi", f"#!/bin/sh\necho '{row}'; echo '{lost}'; exit 15\n")
    assert "Unable to determine the device handle" in found_here()[0].found
    program(tmp_path / "nvidia-smi", "#!/bin/sh\nsleep 60\n")
    findings = check_gpus({"node1": answers({"gpus": probe_gpus}, within_s=0.5)})
    assert [(f.level, f.found) for f in findings] == [("failure", "no answer within 0.5 s")]


def test_hosts_with_other_gpus_or_drivers_are_named(machine: Any) -> None:
    machine([gpu()])
    ours = probe_gpus()
    other = {**ours, "gpus": [{**ours["gpus"][0], "name": "NVIDIA A100", "driver_version": "535.1"}]}
    findings = check_gpus({"node1": {"gpus": ours}, "node2": {"gpus": other}, "node3": {"gpus": ours}})
    assert [f.level for f in findings] == ["warning", "warning"]
    assert findings[0].found.startswith("not of one kind: node2: 1 NVIDIA A100")
    assert findings[1].found == "drivers differ: node2: 535.1; node1, node3: 550.90.07"


def test_a_gpu_that_torch_cannot_use_is_a_warning_in_plain_words() -> None:
    facts = {"devices": 1, "version": "2.13.0+cpu", "usable": 0, "problem": "Torch not compiled with CUDA enabled"}
    findings = check_torch({"node1": {"torch": facts}})
    assert [f.level for f in findings] == ["warning"]
    assert "Training would run on the CPU" in findings[0].found
    broken = {**facts, "devices": 8, "usable": 7, "problem": None}
    assert [f.level for f in check_torch({"node1": {"torch": broken}})] == ["failure"]
