"""Facts of this host's GPUs, by the kernel's files and nvidia-smi; nothing of CUDA is loaded."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.environment import variables
from cluster.machine import gpus_of_host

NVIDIA_SMI = "nvidia-smi"
AMD = Path("/dev/kfd")  # the driver of AMD's GPUs
ABOUT = ("index", "uuid", "name", "driver_version", "memory.total", "memory.used", "mig.mode.current")
HEALTH = (
    "ecc.errors.uncorrected.volatile.total",
    "remapped_rows.pending",
    "remapped_rows.failure",
    "retired_pages.pending",
)
PROCESSES = ("gpu_uuid", "pid", "process_name", "used_memory")
SMI_S = 15.0  # a healthy driver answers in one or two seconds, even without persistence mode
FAULT = re.compile("unable to|lost|error|fail|no devices", re.IGNORECASE)  # among the rows of GPUs that still answer
XID = re.compile(r"\[\s*(?P<at>[\d.]+)\].*NVRM: Xid \((?P<gpu>[^)]*)\): (?P<number>\d+)")
XID_S = 86400.0  # older ones are told by nobody: the GPU has been reset or replaced since


def probe_gpus() -> dict[str, Any]:
    """Return the GPUs that this process sees, their health, and what else computes on them."""
    asked = variables("CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE")
    facts: dict[str, Any] = {
        "devices": gpus_of_host(),
        "visible": asked.get("CUDA_VISIBLE_DEVICES"),
        "of_slurm": asked.get("SLURM_GPUS_ON_NODE"),
        "has_smi": shutil.which(NVIDIA_SMI) is not None,
        "gpus": [],
        "xids": [],
        "said": [],
        "others": AMD.exists(),
    }
    if not facts["has_smi"]:
        return facts
    try:
        gpus, facts["said"] = query("gpu", ABOUT)
    except RuntimeError as error:
        return {**facts, "smi_problem": str(error)}
    for gpu, health in zip(gpus, health_of(len(gpus)), strict=True):
        gpu["health"] = health
        gpu["processes"] = []
    for process in processes_on_gpus():
        for gpu in gpus:
            if gpu["uuid"] == process["gpu_uuid"]:
                gpu["processes"].append(process)
    facts["gpus"] = [gpu for gpu in gpus if is_visible(gpu, facts["visible"])]
    facts["xids"] = recent_xids()
    return facts


def query(what: str, fields: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return nvidia-smi's answer, a row each, and the lines that are none, as in place of a GPU that is lost.

    Raises RuntimeError with what it says if it fails.
    """
    result = run([NVIDIA_SMI, f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"])
    rows = [[cell.strip() for cell in row] for row in csv.reader(result.splitlines()) if row]
    found = [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]
    return found, [", ".join(row) for row in rows if len(row) != len(fields)]


def run(command: Sequence[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=SMI_S, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer within {SMI_S:g} s") from None
    if result.returncode:
        said = (result.stdout + result.stderr).strip().splitlines()
        fault = next((line for line in said if FAULT.search(line)), f"exit code {result.returncode}")
        raise RuntimeError(fault)
    return result.stdout


def health_of(gpus: int) -> list[dict[str, str] | None]:
    """Return the counters of each GPU; None where this driver does not know one of them."""
    try:
        found, _ = query("gpu", HEALTH)
    except RuntimeError:
        found = []
    return list(found) if len(found) == gpus else [None] * gpus


def processes_on_gpus() -> list[dict[str, Any]]:
    """Return what computes on the GPUs; nothing where this driver does not tell, as the memory in use still does."""
    try:
        return query("compute-apps", PROCESSES)[0]
    except RuntimeError:
        return []


def is_visible(gpu: dict[str, Any], visible: str | None) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES leaves this GPU to the process."""
    if visible is None:
        return True
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return any(name == gpu["index"] or (name.startswith("GPU-") and gpu["uuid"].startswith(name)) for name in names)


def recent_xids() -> list[dict[str, Any]] | None:
    """Return the driver's errors in the kernel's log of the last day; None if we may not read it."""
    try:
        lines = run(["dmesg"]).splitlines()
    except (RuntimeError, OSError):
        return None
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    found = [match for line in lines if (match := XID.search(line)) and uptime_s - float(match["at"]) < XID_S]
    return [{"gpu": match["gpu"], "number": int(match["number"])} for match in found]
