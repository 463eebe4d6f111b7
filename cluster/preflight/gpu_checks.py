"""Judge the GPUs of all hosts: present, usable by torch, healthy, free, of one kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.preflight.findings import (
    Finding,
    Hosts,
    Problem,
    answered,
    differing,
    failure,
    judge_each,
    or_ok,
    warning,
)
from cluster.preflight.gpu_probes import FAULT
from cluster.wording import count_of, is_or_are

FREE_MIB = 1024  # what a driver and its display may hold
HARDWARE_XIDS = {48, 61, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120}  # NVIDIA's catalogue; others are a program's faults
DRAIN = "have the host drained and the GPU reset, or submit with --exclude=HOST"
ECC, PENDING, FAILED, RETIRED = (
    "ecc.errors.uncorrected.volatile.total",
    "remapped_rows.pending",
    "remapped_rows.failure",
    "retired_pages.pending",
)


def check_gpus(hosts: Hosts) -> list[Finding]:
    """Judge each host's GPUs as nvidia-smi sees them, then compare them."""
    is_alone = len(hosts) == 1
    found = [*judge_each("gpus", hosts, lambda facts: judge_gpus(facts, is_alone)), *compare_gpus(hosts)]
    return or_ok("gpus", found, summary_of(answered("gpus", hosts)))


def summary_of(answers: dict[str, Any]) -> str:
    gpus = next(iter(answers.values()))["gpus"] if answers else []
    if not gpus:
        return "none here: training on the CPU"
    each = "" if len(answers) == 1 else f" on each of {len(answers)} hosts"
    return f"{len(gpus)} {gpus[0]['name']}{each}, healthy and free; driver {gpus[0]['driver_version']}"


def judge_gpus(facts: dict[str, Any], is_alone: bool) -> Iterator[Problem]:
    instances = (facts["visible"] or "").split(",")
    if is_alone and len(instances) == 1 and instances[0].startswith("MIG-"):  # one rank, which has nobody to reach
        yield warning("it trains on one MIG instance", "a whole GPU, or a model that fits", "nvidia-smi -L")
        return
    yield from judge_presence(facts)
    for line in facts.get("said", []):
        if FAULT.search(line):
            yield failure(f"nvidia-smi: {line}", "a list of GPUs and nothing else", DRAIN)
    for gpu in facts["gpus"]:
        yield from judge_gpu(gpu)
    if wrong := sorted({xid["number"] for xid in facts["xids"] or []} & HARDWARE_XIDS):
        numbers = ", ".join(str(number) for number in wrong)
        yield warning(f"the driver reported Xid {numbers} in the last day", "no hardware errors", f"see dmesg; {DRAIN}")
    if "MIG-" in (facts["visible"] or ""):
        yield mig_problem("CUDA_VISIBLE_DEVICES names a MIG instance")


def judge_presence(facts: dict[str, Any]) -> Iterator[Problem]:
    """Yield what contradicts: Slurm, the kernel's files, nvidia-smi and CUDA_VISIBLE_DEVICES."""
    if problem := facts.get("smi_problem"):
        is_expected = bool(facts["devices"]) or facts["of_slurm"] not in (None, "", "0")
        if is_expected:
            yield failure(f"nvidia-smi: {problem}", "a list of GPUs", f"the driver does not work; {DRAIN}")
        else:  # many sites install it on hosts without GPUs too
            yield warning(f"nvidia-smi: {problem}", "a list of GPUs, if this host has one", DRAIN)
        return
    if facts["devices"] and facts["visible"] is not None and facts["visible"].strip() in ("", "-1"):
        yield warning(
            f"CUDA_VISIBLE_DEVICES hides all of {count_of(facts['devices'], 'GPU')}: training on the CPU",
            "the GPUs to be seen",
            "unset CUDA_VISIBLE_DEVICES unless that is meant",
        )
        return
    if facts.get("others") and not facts["devices"]:
        yield warning("its GPUs are AMD's, which are not examined", "GPUs of NVIDIA", "look at them with rocm-smi")
        return
    asked = facts["of_slurm"]
    seen = len(facts["gpus"]) if facts["has_smi"] else facts["devices"]
    if asked is not None and asked.isdecimal() and seen < int(asked):
        yield failure(
            f"{seen} of {count_of(int(asked), 'GPU')} {is_or_are(seen or int(asked))} seen",
            "all that Slurm has given to the job",
            DRAIN,
        )
    elif facts["devices"] and facts["has_smi"] and not facts["gpus"] and facts["visible"] is None:
        yield failure("nvidia-smi lists no GPU", f"{count_of(facts['devices'], 'GPU')}, as the kernel does", f"{DRAIN}")
    elif facts["devices"] and not facts["has_smi"]:
        yield warning(
            "there is a GPU but no nvidia-smi, so its health is not known",
            "nvidia-smi on PATH",
            "in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        )


def judge_gpu(gpu: dict[str, Any]) -> Iterator[Problem]:
    name = f"GPU {gpu['index']}"
    for key in ("memory.total", "memory.used"):
        if is_error(gpu[key]):
            yield failure(f"{name}: nvidia-smi gives {gpu[key]} for {key}", "a number of MiB", DRAIN)
    if gpu["mig.mode.current"] == "Enabled":
        yield mig_problem(f"{name} is divided into MIG instances")
    health = gpu["health"] or {}
    if number(health.get(ECC)):
        yield failure(f"{name} has had {health[ECC]} uncorrected memory errors since its reset", "none", DRAIN)
    if is_yes(health.get(FAILED)):
        yield failure(f"{name} could not remap a damaged row of its memory", "no failed remapping", DRAIN)
    if is_yes(health.get(PENDING)) or is_yes(health.get(RETIRED)):
        yield warning(f"{name} waits for a reset to remap damaged memory", "nothing pending", DRAIN)
    yield from judge_use(gpu, name)


def judge_use(gpu: dict[str, Any], name: str) -> Iterator[Problem]:
    """Yield a problem if somebody else holds memory of a GPU."""
    used = number(gpu["memory.used"])
    if not gpu["processes"] and used <= FREE_MIB:
        return
    users = ", ".join(f"{one['process_name']} (process {one['pid']})" for one in gpu["processes"])
    by = f" by {users}" if users else ", by a process that nvidia-smi does not show"
    is_little = used <= number(gpu["memory.total"]) // 10  # as a desktop takes
    problem = warning if is_little else failure
    yield problem(f"{name}: {used:,} MiB are in use{by}", "a free GPU", "end that process, or use another host")


def mig_problem(found: str) -> Problem:
    return failure(
        found,
        "whole GPUs: a process sees one instance only, and instances cannot reach one another",
        "ask for whole GPUs, or have MIG switched off: nvidia-smi -mig 0",
    )


def number(text: str | None) -> int:
    """Return a count of nvidia-smi; 0 for what it cannot tell, as [N/A]."""
    return int(text) if text and text.isdecimal() else 0


def is_error(text: str) -> bool:
    """Return whether nvidia-smi gives an error in place of a number: [GPU requires reset], [Unknown Error], ERR!."""
    return not text.isdecimal() and text.strip("[]").lower() not in ("n/a", "not supported", "not available")


def is_yes(text: str | None) -> bool:
    return text is not None and (text == "Yes" or number(text) > 0)


def compare_gpus(hosts: Hosts) -> Iterator[Finding]:
    """Yield findings about hosts whose GPUs differ in kind, number or driver, and about GPUs of one host that do."""
    with_list = {host: facts for host, facts in answered("gpus", hosts).items() if not facts.get("smi_problem")}
    kinds = {host: kinds_of(facts["gpus"]) for host, facts in with_list.items()}
    drivers = {
        host: ", ".join(sorted({gpu["driver_version"] for gpu in facts["gpus"]})) for host, facts in with_list.items()
    }
    mixed = {host: kind for host, kind in kinds.items() if " and " in kind}
    if kinds_text := differing(kinds) or "; ".join(f"{host}: {kind}" for host, kind in mixed.items()):
        yield Finding(
            check="gpus",
            level="warning",
            found=f"not of one kind: {kinds_text}",
            expected="the same GPUs everywhere: the slowest and the smallest decides for all",
            next_step="ask for one kind, as in --gpus-per-node=h100:8 or --constraint=...",
        )
    if text := differing({host: driver for host, driver in drivers.items() if driver}):
        yield Finding(
            check="gpus",
            level="warning",
            found=f"drivers differ: {text}",
            expected="one driver on all hosts",
            next_step="exclude the odd host, or tell its administrator",
        )


def kinds_of(gpus: list[dict[str, Any]]) -> str:
    """Return how many GPUs of which kind, as 8 NVIDIA H100 80GB HBM3."""
    names = [f"{gpu['name']} ({gpu['memory.total']} MiB)" for gpu in gpus]
    return " and ".join(f"{names.count(name)} {name}" for name in sorted(set(names))) or "no GPU"


def check_torch(hosts: Hosts) -> list[Finding]:
    """Judge whether torch can compute on the GPUs that are there."""
    answers = answered("torch", hosts)
    asked = {host: facts["devices"] for host, facts in answers.items() if facts["devices"]}
    ok = f"computes on {count_of(sum(asked.values()), 'GPU')}" if asked else "not asked: no GPU here"
    return or_ok("torch", judge_each("torch", hosts, judge_torch), ok)


def judge_torch(facts: dict[str, Any]) -> Iterator[Problem]:
    if problem := facts["problem"]:
        there, them = count_of(facts["devices"], "GPU"), "it" if facts["devices"] == 1 else "them"
        yield warning(
            f"{there} here, but torch {facts['version']} cannot use {them}: {problem}. Training would run on the CPU",
            "a torch that was built for CUDA, and a driver that is new enough for it",
            "pip install torch from the index for your driver: https://pytorch.org/get-started",
        )
    elif facts["usable"] < facts["devices"]:
        yield failure(
            f"torch computes on {facts['usable']} of {count_of(facts['devices'], 'GPU')}",
            "on each",
            f"see dmesg; {DRAIN}",
        )
